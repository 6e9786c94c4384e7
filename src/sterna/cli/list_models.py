"""`sterna list`: the models on this machine that can be used at once, and what they take."""

from __future__ import annotations

import argparse

from sterna.base.cache import entries
from sterna.checkpoint.local_stores import local_models
from sterna.cli.arguments import Subparsers, add_verb
from sterna.cli.hub_cache import hub_models
from sterna.cli.say import one_line, size


def add(verbs: Subparsers) -> None:
    parser = add_verb(
        verbs,
        "list",
        "list the models on this machine",
        "List models that are here already: downloaded from the hub, converted by Sterna, or "
        "downloaded by Ollama and LM Studio, with the room that each takes on the disk. "
        "`sterna rm` removes those that are Sterna's or the hub's.",
        "  sterna list",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    local = local_models()
    rows = [("downloaded", name, room) for name, room in hub_models().items()]
    rows += [("converted", e.path.name, e.bytes) for e in entries() if e.kind == "models"]
    total = sum(room for _, _, room in rows)
    total += sum({m.path: m.bytes for m in local}.values())  # Ollama's names may share a file
    rows += [(m.name.partition(":")[0], m.name, m.bytes) for m in local]
    for kind, name, room in rows:
        print(f"{kind:10} {size(room):>10}  {one_line(name)}")
    print(f"{size(total)} in {len(rows)} models")
    return 0
