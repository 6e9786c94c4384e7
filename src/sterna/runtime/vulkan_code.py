"""The kernels of an artifact as SPIR-V modules, and what each says at its beginning.

In: an artifact's code: every module behind its size in bytes, as a little-endian u32. Nothing here
looks at a module's instructions beyond those before its entry point, but for the types of matrices;
the driver does.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sterna.base.errors import ArtifactError

_MAGIC, _HEADER_WORDS = struct.pack("<I", 0x07230203), 5
_CAPABILITY, _ENTRY_POINT = 17, 15
_FLOAT, _CONSTANT, _MATRIX = 22, 43, 4456
MATRICES = 6022  # the capability of kernels that multiply them


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """c += a b, of [rows, depth] and [depth, columns], a and b of `operands`, c of `sums`."""

    rows: int
    columns: int
    depth: int
    operands: str
    sums: str

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}x{self.depth} {self.operands} to {self.sums}"


def modules_of(code: bytes) -> Iterator[bytes]:
    """The modules, in order; ArtifactError where the code is something else."""
    at = 0
    while at < len(code):
        size = int.from_bytes(code[at : at + 4], "little")
        module = code[at + 4 : at + 4 + size]
        at += 4 + size
        whole = len(module) == size and size % 4 == 0 and size >= 4 * _HEADER_WORDS
        if not whole or not module.startswith(_MAGIC):
            raise ArtifactError("the library's kernels are not SPIR-V: compile the model again")
        yield module


def entry_of(module: bytes) -> tuple[str, set[int]]:
    """A module's entry point, and the numbers of the capabilities that it asks for.

    ArtifactError where there is none.
    """
    asked: set[int] = set()
    for name, words in _instructions(module):
        if name == _CAPABILITY and len(words):
            asked.add(int(words[0]))
        if name == _ENTRY_POINT:
            title = words[2:].tobytes().partition(b"\0")[0]
            return title.decode(errors="replace"), asked
    raise ArtifactError("a kernel of the library has no entry point: compile the model again")


def shape_of(module: bytes) -> Shape:
    """Of the matrices that a module multiplies; ArtifactError where it has no such types."""
    floats: dict[int, str] = {}
    numbers: dict[int, int] = {}
    uses: dict[int, tuple[str, int, int]] = {}
    for name, words in _instructions(module):
        held = [int(word) for word in words]
        if name == _FLOAT and len(held) > 1:
            floats[held[0]] = f"f{held[1]}"
        elif name == _CONSTANT and len(held) > 2:
            numbers[held[1]] = held[2]
        elif name == _MATRIX and len(held) == 6:
            rows, columns, use = (numbers.get(n, 0) for n in held[3:])
            uses[use] = floats.get(held[1], "other numbers"), rows, columns
    if not {0, 1, 2} <= uses.keys():
        raise ArtifactError("a kernel of the library has no matrices: compile the model again")
    (operands, rows, depth), (sums, _, columns) = uses[0], uses[2]
    return Shape(rows, columns, depth, operands, sums)


def _instructions(module: bytes) -> Iterator[tuple[int, NDArray[np.uint32]]]:
    """The number of each instruction, and its operands, as far as they are there."""
    words = np.frombuffer(module, "<u4")
    at = _HEADER_WORDS
    while at < len(words):
        size, name = int(words[at]) >> 16, int(words[at]) & 0xFFFF
        yield name, words[at + 1 : at + size]
        at += max(1, size)
