"""GGUF files made byte by byte, so that each of their claims can be a lie."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

U8, U32, I32, F32, BOOL, STRING, ARRAY, U64 = 0, 4, 5, 6, 7, 8, 9, 10
_PLAIN = {U8: "<B", U32: "<I", I32: "<i", F32: "<f", BOOL: "<B", U64: "<Q"}


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def value(kind: int, content: Any) -> bytes:
    """A typed metadata value; bytes stand for themselves."""
    head = struct.pack("<I", kind)
    if isinstance(content, bytes):
        return head + content
    if kind == STRING:
        return head + text(content)
    return head + struct.pack(_PLAIN[kind], content)


def array(kind: int, items: Sequence[Any], count: int | None = None) -> bytes:
    """An array value, which may claim another count."""
    head = struct.pack("<IIQ", ARRAY, kind, len(items) if count is None else count)
    if kind == STRING:
        return head + b"".join(text(item) for item in items)
    return head + b"".join(struct.pack(_PLAIN[kind], item) for item in items)


@dataclass
class Gguf:
    """A file of one or more F32 tensors; every field may be set to something untrue."""

    magic: bytes = b"GGUF"
    version: int = 3
    tensor_count: int | None = None
    pair_count: int | None = None
    pairs: list[tuple[str | bytes, bytes]] = field(default_factory=list)
    # (name, dims fastest first, type, offset)
    tensors: list[tuple[str | bytes, tuple[int, ...], int, int]] = field(
        default_factory=lambda: [("a", (4, 2), 0, 0), ("b", (4,), 0, 32)]
    )
    data: bytes = bytes(range(64))
    alignment: int = 32

    def __bytes__(self) -> bytes:
        tensors = len(self.tensors) if self.tensor_count is None else self.tensor_count
        pairs = len(self.pairs) if self.pair_count is None else self.pair_count
        out = self.magic + struct.pack("<IQQ", self.version, tensors, pairs)
        for key, typed in self.pairs:
            out += text(key) + typed
        for name, dims, kind, offset in self.tensors:
            out += text(name) + struct.pack("<I", len(dims))
            out += b"".join(struct.pack("<Q", dim) for dim in dims)
            out += struct.pack("<IQ", kind, offset)
        return out + bytes(-len(out) % self.alignment) + self.data
