"""One strict reader for the JSON files that travel with a tokenizer.

In: a path to a file from outside; out: its top-level object. Size is checked before anything is
read, and every way a file can be broken ends in one `TokenizerError` that names it. Does not know
what any key means.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from sterna.base.errors import TokenizerError

MAX_BYTES = 256 << 20  # the largest published tokenizer.json is about 40 MB
MAX_CONFIG_BYTES = 16 << 20


def check_size(path: Path, limit: int = MAX_BYTES) -> None:
    """Refuse a missing, irregular, empty or absurdly large file before it is read."""
    if not path.is_file():
        raise TokenizerError(f"{path} is not a regular file")
    size = path.stat().st_size
    if not 0 < size <= limit:
        raise TokenizerError(
            f"{path} has {size} bytes; a file of this name holds 1 to {limit} bytes, "
            "so it is not what it claims: download it again"
        )


def read_text(path: Path, limit: int = MAX_CONFIG_BYTES) -> str:
    """Read a UTF-8 text file of at most `limit` bytes; TokenizerError otherwise."""
    check_size(path, limit)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path} is not readable UTF-8 text: {error}") from error


def read_object(path: Path, limit: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Read a JSON file whose top level is an object; TokenizerError when it is anything else."""
    check_size(path, limit)
    try:
        value = _decoded(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(
            f"{path} is not valid JSON ({error}); it is truncated or damaged: download it again"
        ) from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} must hold a JSON object, not a {type(value).__name__}")
    return value


def read_optional(path: Path) -> dict[str, Any]:
    """As `read_object`, but a file that is not there is an empty object."""
    return read_object(path) if path.exists() else {}


def _decoded(data: bytes) -> Any:
    """JSON, and the Infinity that Python writes into some models' config.json, as that word."""
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError:
        if b"Infinity" not in data:
            raise
        return json.loads(data, parse_constant=_infinity)


def _infinity(name: str) -> str:
    if name != "Infinity":
        raise ValueError(f"{name} is not a JSON number")
    return name
