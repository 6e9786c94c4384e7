"""The index of a folder that a browser fetches: what the compile wing writes, and runtimes read.

`sterna-web.json` lists every other file with its hash, where each weight lies in which file, and
the programs, each an artifact of its own (see `artifact`) that reads the same weights. A reader
takes the first program that its device can run. Records only; who checks files is above.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any, Literal

import msgspec

from sterna.base.artifact import Model
from sterna.base.dtype import BF16, DTYPES, F32
from sterna.base.errors import ArtifactError

INDEX = "sterna-web.json"
FORMAT = 1  # raised by every change that an older reader could misread
MOST_BYTES = 2**53 - 1  # a whole number that every reader of JSON keeps


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Strict, immutable, keyword-only."""


class File(_Record, frozen=True):
    """A file of the folder; `sha256` is 64 hex digits."""

    name: str
    size: int
    sha256: str


class Tensor(_Record, frozen=True):
    """A weight: `size` bytes at `offset` of `file`, little-endian, in C order.

    `encoding` "f32-to-bf16": the file holds the upper 16 bits of each f32.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int
    size: int
    encoding: Literal["raw", "f32-to-bf16"] = "raw"


class Weights(_Record, frozen=True):
    """Every weight, once for all programs."""

    tensors: tuple[Tensor, ...]


class Memory(_Record, frozen=True):
    """Bytes by purpose; `kv_cache` holds one sequence as long as the context."""

    weights: int
    kv_cache: int
    arena: int
    io: int


class Program(_Record, frozen=True):
    """An artifact in `file`, and what a device must have for it.

    `features` and `limits` have the names that browsers give them. `barriers`: threads of a group
    wait for each other, which devices that only imitate groups do slowly.
    """

    file: str
    target: str
    features: tuple[str, ...]
    barriers: bool
    limits: dict[str, int]
    memory: Memory


class WebIndex(_Record, frozen=True):
    """All of the above. `programs` stand in order of preference."""

    format: int
    sterna: str
    model: Model
    files: tuple[File, ...]
    weights: Weights
    programs: tuple[Program, ...]


def encode(index: WebIndex) -> bytes:
    """Index to JSON."""
    return msgspec.json.format(msgspec.json.encode(index), indent=1)


def decode(data: bytes) -> WebIndex:
    """JSON to WebIndex, names and bounds checked; ArtifactError for anything else."""
    try:
        found: Any = msgspec.json.decode(data)
        version = found.get("format") if isinstance(found, dict) else None
        if version != FORMAT:
            raise ArtifactError(
                f"{INDEX} has format {version}, this Sterna reads {FORMAT}; compile the model again"
            )
        index = msgspec.convert(found, WebIndex)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactError(f"{INDEX} is malformed: {error}") from None
    _check(index)
    return index


def _check(index: WebIndex) -> None:
    sizes = {f.name: f.size for f in index.files}
    for f in index.files:
        plain = f.name == PurePosixPath(f.name).name and "\\" not in f.name and f.name != INDEX
        hexadecimal = len(f.sha256) == 64 and set(f.sha256) <= set("0123456789abcdef")
        if not (plain and hexadecimal and 0 <= f.size <= MOST_BYTES):
            raise ArtifactError(f"{INDEX} lists a file {f.name[:80]!r} that cannot be one")
    programs = {p.file for p in index.programs}
    tensors = {t.name for t in index.weights.tensors}
    if len(sizes) != len(index.files) or not programs or not programs <= sizes.keys():
        raise ArtifactError(f"{INDEX} lists a file twice, or names programs that it does not list")
    if len(programs) != len(index.programs) or len(tensors) != len(index.weights.tensors):
        raise ArtifactError(f"{INDEX} lists a program or a tensor twice")
    for t in index.weights.tensors:
        _check_tensor(t, sizes)


def _check_tensor(t: Tensor, sizes: dict[str, int]) -> None:
    count = 1
    for d in t.shape:
        count = count * d if 0 <= d <= MOST_BYTES else -1
    kind = DTYPES.get(t.dtype)
    cut = t.encoding != "raw"
    width = (BF16 if cut else kind or F32).bytes
    inside = t.offset >= 0 and t.offset + t.size <= sizes.get(t.file, -1)
    if kind is None or (cut and kind != F32) or count * width != t.size or not inside:
        raise ArtifactError(
            f"{INDEX} says that tensor {t.name[:80]!r} is {t.dtype}{list(t.shape)} at bytes "
            f"{t.offset} to {t.offset + t.size} of {t.file[:80]!r}, which cannot be"
        )
