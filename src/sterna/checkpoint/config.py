"""JSON from strangers: bounded in size and depth, no duplicate keys, no NaN, valid Unicode only.

In: a path. Out: a plain dict. What the keys mean is the business of whoever asked.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from sterna.base.errors import CheckpointError, UnsafeFile

MAX_JSON_BYTES = 64 << 20
_LFS_POINTER = b"version https://git-lfs"
MAX_DEPTH = 64

T = TypeVar("T")


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read the JSON object in the file `path`.

    Raises CheckpointError when the file is absent or is no JSON object, and UnsafeFile when it is
    too large, nested too deeply, repeats a key, or holds NaN, infinities or broken Unicode.
    """
    return parse_json(read_bytes(path, max_bytes), str(path))


def read_json_list(path: Path) -> list[Any]:
    """Read the JSON list in the file `path`, under the same rules."""
    value = _parse(read_bytes(path, MAX_JSON_BYTES), str(path))
    if not isinstance(value, list):
        raise CheckpointError(f"{path} must hold one JSON list, not a {type(value).__name__}")
    return value


def read_config(folder: Path) -> dict[str, Any]:
    """Read `config.json` of a Hugging Face folder.

    Here alone Infinity, as Python writes it and Mamba-2's files have it, is the word "Infinity".
    """
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no config.json; give a model folder in Hugging Face layout "
            "(config.json, *.safetensors, tokenizer.json)"
        )
    return parse_json(read_bytes(path, MAX_JSON_BYTES), str(path), infinity=True)


def read_generation_config(folder: Path) -> dict[str, Any]:
    """Read `generation_config.json`, which is optional: {} where it is absent."""
    path = folder / "generation_config.json"
    return read_json(path) if path.is_file() else {}


@contextlib.contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Turn a failed system call on `path` or below it into one sentence."""
    try:
        yield
    except OSError as error:
        named = error.filename or path
        raise CheckpointError(f"cannot read {named}: {error.strerror or error}") from error


def refuse_pointer(path: Path, start: bytes) -> None:
    """Refuse what a clone without Git LFS has in place of a large file."""
    if start and _LFS_POINTER.startswith(start[: len(_LFS_POINTER)]):
        raise CheckpointError(
            f"{path} is a pointer of Git LFS, not the file itself: run `git lfs pull` where it was "
            "cloned, or download it again"
        )


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """Read a whole regular file of at most `max_bytes`."""
    with read_errors(path):
        # A stranger's FIFO would keep open() waiting, so look before opening.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UnsafeFile(f"{path} is not a regular file")
        with open(path, "rb") as file:
            data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise UnsafeFile(f"{path} is larger than {max_bytes} bytes, the most that is read from it")
    return data


def parse_json(data: bytes, source: str, *, infinity: bool = False) -> dict[str, Any]:
    """Parse one JSON object under the rules of `read_json`; `source` names it in errors.

    With `infinity` that number is taken, as a word.
    """
    value = _parse(data, source, _infinity if infinity else _refuse_constant)
    if not isinstance(value, dict):
        raise CheckpointError(f"{source} must hold one JSON object, not a {type(value).__name__}")
    return value


def _parse(data: bytes, source: str, constant: Callable[[str], str] | None = None) -> Any:
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique if constant is not _infinity else _with_infinity,
            parse_constant=constant or _refuse_constant,
            parse_float=_finite,
        )
    except UnicodeDecodeError as error:
        raise UnsafeFile(f"{source} is not valid UTF-8 (byte {error.start})") from error
    except RecursionError as error:
        raise UnsafeFile(f"{source} nests deeper than {MAX_DEPTH} levels") from error
    except ValueError as error:
        raise UnsafeFile(f"{source} is not valid JSON: {error}") from error
    _check_nesting(value, source)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"the key {name[:200]!r} appears twice")
            seen.add(name)
    return found


def _with_infinity(pairs: list[tuple[str, Any]]) -> Any:
    """As newer versions of transformers write it, {"__float__": "Infinity"}, is a word too."""
    return "Infinity" if pairs == [("__float__", "Infinity")] else _unique(pairs)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _infinity(name: str) -> str:
    return name if name == "Infinity" else _refuse_constant(name)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is out of range")
    return value


def _check_nesting(value: Any, source: str) -> None:
    """Refuse depth beyond MAX_DEPTH and strings that no file could hold (lone surrogates)."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, str):
                _check_text(item, source)
            elif isinstance(item, dict):
                inner.extend(item)
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        if not inner:
            return
        level = inner
    raise UnsafeFile(f"{source} nests deeper than {MAX_DEPTH} levels")


def _check_text(text: str, source: str) -> None:
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UnsafeFile(f"{source} holds a string that is not valid Unicode") from error


def field(record: object, key: str, kind: type[T], source: str) -> T:
    """Take `record[key]`, which must be a `kind`; True is no integer here."""
    if not isinstance(record, dict):
        raise UnsafeFile(f"{source} must be a JSON object")
    value = record.get(key)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        found = "nothing" if key not in record else type(value).__name__
        raise UnsafeFile(f"{source} needs {key!r} as {kind.__name__}, found {found}")
    return value
