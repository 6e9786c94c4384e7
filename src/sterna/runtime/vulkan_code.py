"""The kernels of an artifact as SPIR-V modules, and what each says at its beginning.

In: an artifact's code: every module behind its size in bytes, as a little-endian u32. Nothing here
looks at a module's instructions beyond those before its entry point; the driver does.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

from sterna.base.errors import ArtifactError

_MAGIC, _HEADER_WORDS = struct.pack("<I", 0x07230203), 5
_CAPABILITY, _ENTRY_POINT = 17, 15


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
    words = np.frombuffer(module, "<u4")
    at = _HEADER_WORDS
    while at + 1 < len(words):
        size, name = int(words[at]) >> 16, int(words[at]) & 0xFFFF
        if name == _CAPABILITY:
            asked.add(int(words[at + 1]))
        if name == _ENTRY_POINT:
            title = words[at + 3 : at + size].tobytes().partition(b"\0")[0]
            return title.decode(errors="replace"), asked
        at += max(1, size)
    raise ArtifactError("a kernel of the library has no entry point: compile the model again")
