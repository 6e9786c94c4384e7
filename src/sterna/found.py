"""Where the folder and the library of a model were found, so that the next start need not look.

In: what the user asked for. Out: the two paths that `jit` gave for it, or None when anything that
shaped them may have changed since: the model's files, Sterna's own, plans measured for this
machine, the C compiler. Looking takes milliseconds, where `jit` brings the compile wing with it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
from pathlib import Path

from sterna import demo
from sterna.base.cache import cache_root, key, lookup, store
from sterna.base.errors import Error
from sterna.base.target import parse_target
from sterna.base.version import file_state, source_state
from sterna.runtime.devices import target_of

_KIND = "found"

Asked = tuple[str | None, ...]  # quantization, KV cache's dtype, room for adapters


def identity(model: str | Path | None, device: str, asked: Asked) -> str | None:
    """A hash of all that decides what `jit` finds; None for what is no folder of this machine."""
    source = demo.FOLDER if model is None else Path(model).expanduser()
    try:
        files = sorted(path for path in source.iterdir() if path.is_file())
        return key(
            os.fsencode(source.resolve()),
            repr(parse_target(target_of(device))),
            repr(asked),
            *(file_state(file, file.name) for file in files),
            *_plans(),
            *_compiler(),
            *source_state("."),
        )
    except (Error, OSError, ValueError):
        return None


def recall(identity: str) -> tuple[Path, Path] | None:
    """The model folder and the library, if both are still there."""
    data = lookup(_KIND, identity)
    try:
        folder, library = (Path(text) for text in json.loads(data or b""))
    except (ValueError, TypeError):
        return None
    return (folder, library) if folder.is_dir() and library.is_file() else None


def remember(identity: str, folder: Path, library: Path) -> None:
    """Keep where they are."""
    store(_KIND, identity, json.dumps([str(folder.absolute()), str(library.absolute())]).encode())


def _plans() -> list[str]:
    """The state of what `sterna tune` keeps; every file, for a database may have several."""
    folder = cache_root() / "tuning"
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [file_state(path, path.name) for path in found if path.suffix]


def _compiler() -> list[str]:
    """The state of the program that compiles, found as `codegen.toolchain` finds it."""
    asked = os.environ.get("STERNA_CC", "")
    named = shutil.which((shlex.split(asked) or ["zig"])[0])
    spec = None if asked else importlib.util.find_spec("ziglang")
    places = [] if spec is None or spec.origin is None else [Path(spec.origin)]
    places += [] if named is None else [Path(named).resolve()]
    return [asked, *(file_state(path, str(path)) for path in places)]
