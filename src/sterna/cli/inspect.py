"""`sterna inspect`: what is inside a library or a model folder, as text or as one HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path

from sterna.base.cache import write_atomic
from sterna.base.errors import UsageError
from sterna.cli.arguments import Subparsers, add_verb, number
from sterna.cli.say import harmless, note


def add(verbs: Subparsers) -> None:
    parser = add_verb(
        verbs,
        "inspect",
        "look inside a library or model folder",
        "Show a library's functions, launch program, kernels and memory plan, or a model folder's "
        "weights with their sizes.",
        "  sterna inspect ./dist/libs/M-cpu.so --context 4096\n"
        "  sterna inspect ./dist/M --html report.html",
    )
    parser.add_argument("path", metavar="PATH", help="a library or a model folder")
    parser.add_argument("--html", metavar="FILE", help="write one self-contained page instead")
    parser.add_argument(
        "--context",
        type=number(int),
        metavar="N",
        help="cached tokens for which costs are computed (default: a quarter of the window)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    path = Path(args.path)
    if not path.exists():
        raise UsageError(f"there is no file or folder {path}")
    if args.context is not None and args.context < 0:
        raise UsageError(f"--context is {args.context}, possible is 0 or more")
    from sterna import inspection

    if args.html is None:
        print(harmless(inspection.report(path, args.context)))
    else:
        write_atomic(Path(args.html), inspection.html(path, args.context).encode())
        note(f"wrote {args.html}")
    return 0
