"""`sterna devices`: what this machine can run models on, and what each device lacks."""

from __future__ import annotations

import argparse
import sys

from sterna.cli.arguments import Subparsers, add_verb
from sterna.cli.say import one_line, styled


def add(verbs: Subparsers) -> None:
    parser = add_verb(
        verbs,
        "devices",
        "list this machine's devices",
        "List every device that Sterna knows, whether this machine has it, and what it lacks; and "
        "what makers' toolkits add to libraries here.",
        "  sterna devices",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from sterna.base.target import KINDS, parse_target
    from sterna.codegen.renderer import renderer_of
    from sterna.runtime.devices import automatic, devices

    for report in devices():
        mark, style = ("yes", "green") if report.present else ("no", "dim")
        parts = [report.detail, f"missing: {report.missing}" if report.missing else ""]
        text = one_line("; ".join(part for part in parts if part))
        print(f"{report.name:8} {styled(f'{mark:4}', style, sys.stdout)} {text}")
    print(f"{'auto':8} {styled('    ', 'dim', sys.stdout)} {one_line(automatic()[1])}")
    for kind in KINDS:
        toolkit = renderer_of(parse_target(kind)).toolkit
        if toolkit is not None:
            text = one_line(f"toolkit: {toolkit.report()}")
            print(f"{kind:8} {styled('    ', 'dim', sys.stdout)} {text}")
    return 0
