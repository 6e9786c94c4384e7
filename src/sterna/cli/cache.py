"""`sterna cache`: what lies in the cache, and clearing it."""

from __future__ import annotations

import argparse
import time

from sterna.base.cache import cache_root, clear, entries
from sterna.base.errors import UsageError
from sterna.cli.arguments import Subparsers, add_verb, closest
from sterna.cli.say import one_line, size


def add(verbs: Subparsers) -> None:
    parser = add_verb(
        verbs,
        "cache",
        "list or clear the cache",
        "List what Sterna keeps in its cache, the largest first, or remove one kind or all of it. "
        "The cache lies in $STERNA_CACHE, else in $XDG_CACHE_HOME/sterna or ~/.cache/sterna.",
        "  sterna cache list\n  sterna cache clear libraries",
    )
    parser.add_argument(
        "action",
        choices=("list", "clear"),
        nargs="?",
        default="list",
        help="what to do (default: list)",
    )
    parser.add_argument("kind", metavar="KIND", nargs="?", help="only this kind (default: all)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    kinds = sorted({entry.kind for entry in entries()})
    if args.kind is not None and args.kind not in kinds:
        found = closest(args.kind, kinds) if kinds else "the cache is empty"
        raise UsageError(f"the cache at {cache_root()} has no {args.kind!r}; {found}")
    if args.action == "clear":
        print(f"removed {size(clear(args.kind))} from {cache_root()}")
    else:
        _list(args.kind)
    return 0


def _list(kind: str | None) -> None:
    shown = [entry for entry in entries() if kind in (None, entry.kind)]
    for entry in shown:
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.mtime))
        print(f"{entry.kind:10} {size(entry.bytes):>10}  {day}  {one_line(entry.path.name)}")
    total = size(sum(entry.bytes for entry in shown))
    print(f"{total} in {len(shown)} entries at {cache_root()}")
