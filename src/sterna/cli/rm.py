"""`sterna rm`: remove a model that was downloaded from the hub or converted by Sterna."""

from __future__ import annotations

import argparse
import difflib
import shutil

from sterna.base.cache import Entry, entries
from sterna.base.errors import UsageError
from sterna.checkpoint.hub import SCHEME
from sterna.checkpoint.local_stores import LM_STUDIO, OLLAMA
from sterna.cli.arguments import Subparsers, add_verb, closest
from sterna.cli.hub_cache import hub_models, remove_hub_model
from sterna.cli.say import size

_MOST = 12  # names in a sentence


def add(verbs: Subparsers) -> None:
    parser = add_verb(
        verbs,
        "rm",
        "remove a model from this machine",
        "Remove a model that `sterna list` shows: one that was downloaded from the hub, by "
        "HF://user/repo, or one that Sterna converted, by its name there. Models of Ollama and "
        "LM Studio are theirs to remove.",
        "  sterna rm HF://user/repo",
    )
    parser.add_argument("model", metavar="MODEL", help="as `sterna list` names it")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    name = str(args.model)
    for prefix, program in ((OLLAMA, "Ollama (`ollama rm`)"), (LM_STUDIO, "LM Studio")):
        if name.startswith(prefix):
            raise UsageError(f"{name} belongs to {program}; remove it there")
    if name[: len(SCHEME)].upper() == SCHEME:
        freed = _remove_downloaded(SCHEME + name[len(SCHEME) :])
    else:
        freed = _remove_converted(name)
    print(f"removed {name}: {size(freed)} freed")
    return 0


def _remove_downloaded(name: str) -> int:
    known = hub_models()
    if name not in known:
        raise UsageError(f"{name} is not on this machine; {_hint(name, list(known))}")
    return remove_hub_model(name)


def _remove_converted(name: str) -> int:
    converted = [entry for entry in entries() if entry.kind == "models"]
    found = [entry for entry in converted if entry.path.name == name]
    if not found:
        names = [entry.path.name for entry in converted]
        raise UsageError(f"no converted model is called {name}; {_hint(name, names)}")
    return sum(_remove(entry) for entry in found)


def _remove(entry: Entry) -> int:
    if entry.path.is_dir() and not entry.path.is_symlink():
        shutil.rmtree(entry.path)
    else:
        entry.path.unlink()
    return entry.bytes


def _hint(name: str, known: list[str]) -> str:
    begun = [one for one in known if name and one.startswith(f"{name}-")]
    if begun:
        return f"did you mean {' or '.join(begun[:_MOST])}?"
    if len(known) > _MOST and not difflib.get_close_matches(name, known, n=1):
        return f"there are {len(known)}, which `sterna list` shows"
    return closest(name, known) if known else "there are none"
