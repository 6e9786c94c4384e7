"""Where one tensor lies on disk, checked before a byte is allocated, and read on its own.

In: what a header claims. Out: TensorRef. Knows nothing about the header's format; the formats
share the checks here: shapes that fit in memory's address range, ranges inside the file, no two
ranges over the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from sterna.base.dtype import BOOL, F32, DType
from sterna.base.errors import UnsafeFile
from sterna.checkpoint.config import read_errors

RAW = "raw"
F32_AS_BF16 = "f32-to-bf16"
E4M3 = "e4m3"  # 8-bit floats, read as the bytes they are

MAX_RANK = 32
_MAX_BYTES = 2**63 - 1


@dataclass(frozen=True, slots=True)
class TensorRef:
    """`nbytes` bytes at `offset` of `path` are a C-order little-endian tensor.

    `encoding` is "raw", "f32-to-bf16" when the file holds float32 values cut to bfloat16, or
    "e4m3" when the bytes of a u8 tensor are floats of 8 bits.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int
    encoding: str = RAW

    def rows(self, first: int, last: int) -> TensorRef:
        """The part `[first:last]` of the tensor's first dimension, still on disk."""
        row = self.nbytes // self.shape[0] if self.shape[0] else 0
        return replace(
            self,
            shape=(last - first, *self.shape[1:]),
            offset=self.offset + first * row,
            nbytes=(last - first) * row,
        )

    def read(self) -> np.ndarray[Any, Any]:
        """Read the tensor into a new array of `shape` and `dtype`.

        A copy and not a map of the file: a file that shrinks under a map kills the process.
        """
        if self.encoding == F32_AS_BF16:
            bits = _read_into(self, np.empty(self.shape, "<u2"))
            wide = bits.astype("<u4")
            wide <<= np.uint32(16)
            return wide.view("<f4")
        if self.dtype == BOOL:
            flags = _read_into(self, np.empty(self.shape, "u1"))
            if flags.size and flags.max() > 1:
                raise UnsafeFile(f"{self.path}: BOOL tensor {self.name!r} holds other than 0 and 1")
            return flags.view("?")
        return _read_into(self, np.empty(self.shape, self.dtype.numpy))


def _read_into(ref: TensorRef, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if array.nbytes == 0:
        return array
    with read_errors(ref.path), open(ref.path, "rb") as file:
        file.seek(ref.offset)
        count = file.readinto(array.reshape(-1).view("u1").data)
    if count != array.nbytes:
        raise UnsafeFile(
            f"{ref.path} ended inside tensor {ref.name!r} ({count} of {array.nbytes} bytes); "
            "the file shrank while it was being read"
        )
    return array


def checked_shape(value: object, source: str) -> tuple[int, ...]:
    """Return a claimed shape as a tuple of sizes that an array could have."""
    if not isinstance(value, list) or len(value) > MAX_RANK:
        raise UnsafeFile(f"{source}: the shape must be a list of at most {MAX_RANK} sizes")
    product = 8  # bytes of the widest element
    for size in value:
        if type(size) is not int or size < 0:
            raise UnsafeFile(f"{source}: the shape must hold whole numbers from 0 up")
        product *= size or 1  # an array with a zero size must still be representable
        if product > _MAX_BYTES:
            raise UnsafeFile(f"{source}: the shape asks for more bytes than can be addressed")
    return tuple(value)


def check_ref(ref: TensorRef, available: int) -> None:
    """Refuse a ref whose shape does not fill its bytes, or that reaches past `available`."""
    count = 1
    for size in ref.shape:
        count *= size
    width = 2 if ref.encoding == F32_AS_BF16 and ref.dtype == F32 else ref.dtype.bytes
    if count * width != ref.nbytes:
        raise UnsafeFile(
            f"{ref.path}: tensor {ref.name!r} is {ref.dtype} {list(ref.shape)}, "
            f"which is {count * width} bytes, but {ref.nbytes} are given"
        )
    if ref.offset < 0 or ref.offset + ref.nbytes > available:
        raise UnsafeFile(
            f"{ref.path}: tensor {ref.name!r} lies at bytes {ref.offset} to "
            f"{ref.offset + ref.nbytes} of a file of {available}: truncated, or a header that lies"
        )


def check_apart(refs: Iterable[TensorRef]) -> list[TensorRef]:
    """Return the refs of one file in file order, having checked that no two share a byte."""
    ordered = sorted(refs, key=lambda ref: (ref.offset, ref.nbytes))
    for before, after in pairwise(ordered):
        if before.offset + before.nbytes > after.offset:
            raise UnsafeFile(f"{after.path}: tensors {before.name!r} and {after.name!r} overlap")
    return ordered
