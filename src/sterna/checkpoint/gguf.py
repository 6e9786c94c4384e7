"""The GGUF format, versions 2 and 3: a strict reader of headers; blocks are read when asked for.

In: one file, or the first of a split model. Out: GgufFile, metadata and tensors by their names in
the file. A file is a magic word, counts, key-value pairs, tensor descriptions, and aligned data.
Every length is held against what is left of the file before anything is allocated. Knows no model:
what keys and names mean is for `convert.gguf_model` to say.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np

from sterna.base.dtype import U8
from sterna.base.errors import MissingTensor, UnsafeFile, UnsupportedModel
from sterna.checkpoint.config import read_errors, refuse_pointer
from sterna.checkpoint.ggml_types import GgmlType, ggml_type
from sterna.checkpoint.tensor import TensorRef, check_apart, check_ref, checked_shape

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER_BYTES = 512 << 20
MAX_STRINGS = 4 << 20  # of one array: a Python string costs ten times its least size in the file
MAX_NAME_BYTES = 255
MAX_RANK = 4
MAX_ALIGNMENT = 1 << 16
MAX_SHARDS = 1000

_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "<u1",
    10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_LEAST_PAIR = 8 + 1 + 4 + 1  # bytes: key length, key, type, value
_LEAST_TENSOR = 8 + 1 + 4 + 8 + 4 + 8
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor as it lies in the file. `shape` has the slowest dimension first, as numpy does.

    `rows` refers to the raw bytes, u8 [product of all dims but the last, bytes of one row].
    """

    name: str
    type: GgmlType
    shape: tuple[int, ...]
    rows: TensorRef


@dataclass(frozen=True, slots=True)
class GgufFile:
    """An opened model. Values are int, float, bool, str, a flat numpy array or a list of str."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def open_gguf(path: Path) -> GgufFile:
    """Read and check the headers of a model; the first of several files leads to the others.

    Raises UnsafeFile when a header lies, UnsupportedModel for versions and element types that
    Sterna does not read, MissingTensor for an absent part, CheckpointError when it cannot be read.
    """
    first = _open_one(Path(path))
    count = first.metadata.get("split.count", 1)
    if not isinstance(count, int) or not 0 <= count <= MAX_SHARDS:
        raise UnsafeFile(f"{path}: split.count must be a number of files, not {count!r:.40}")
    if count <= 1:
        return first
    tensors = dict(first.tensors)
    for part in _parts(first, count):
        for name, tensor in _open_one(part).tensors.items():
            if name in tensors:
                raise UnsafeFile(f"{part}: tensor {name!r} is in another part of the model too")
            tensors[name] = tensor
    wanted = first.metadata.get("split.tensors.count", len(tensors))
    if wanted != len(tensors):
        raise MissingTensor(
            f"{path} and its parts hold {len(tensors)} tensors, but {wanted!r:.40} are announced"
        )
    return GgufFile(first.path, first.metadata, MappingProxyType(tensors))


def _parts(first: GgufFile, count: int) -> list[Path]:
    match = _SHARD.fullmatch(first.path.name)
    if match is None or int(match[2]) != 1 or int(match[3]) != count:
        raise UnsafeFile(
            f"{first.path} is part of a model in {count} files; give the first of them, named "
            f"...-00001-of-{count:05}.gguf"
        )
    parts = [first.path.with_name(f"{match[1]}-{i:05}-of-{count:05}.gguf") for i in
             range(2, count + 1)]  # fmt: skip
    for part in parts:
        if not part.is_file():
            raise MissingTensor(f"{part.name}, a part of {first.path.name}, is not beside it")
    return parts


def _open_one(path: Path) -> GgufFile:
    with read_errors(path):
        # A stranger's FIFO would keep open() waiting, so look before opening.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UnsafeFile(f"{path} is not a regular file")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            return _Header(path, file, size).read()


class _Header:
    """A cursor over the header that never reads, and never allocates, past the file's end."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path = path
        self.file = file
        self.size = size
        self.at = 0

    def read(self) -> GgufFile:
        version = self._version()
        tensor_count, pair_count = self.integer("<u8"), self.integer("<u8")
        for what, count, least in (("tensors", tensor_count, _LEAST_TENSOR),
                                   ("metadata keys", pair_count, _LEAST_PAIR)):  # fmt: skip
            if count * least > self.size - self.at:
                raise UnsafeFile(
                    f"{self.path} (version {version}) claims {count} {what}, which its "
                    f"{self.size} bytes cannot hold: truncated, or a header that lies"
                )
        metadata = self._metadata(pair_count)
        described = [self._tensor() for _ in range(tensor_count)]
        tensors = self._placed(described, _alignment(metadata, self.path))
        return GgufFile(self.path, MappingProxyType(metadata), MappingProxyType(tensors))

    def _version(self) -> int:
        magic = self.take(4, "the magic word")
        if magic != MAGIC:
            refuse_pointer(self.path, magic)
            raise UnsafeFile(f"{self.path} is not a GGUF file: it starts with {magic!r}")
        version = self.integer("<u4")
        if version in VERSIONS:
            return version
        if version & 0xFFFF == 0:
            raise UnsupportedModel(
                f"{self.path} is a big-endian GGUF file; only little-endian ones are read"
            )
        raise UnsupportedModel(
            f"{self.path} has GGUF version {version}; versions 2 and 3 are read, so convert or "
            "download the model again"
        )

    def take(self, count: int, what: str) -> bytes:
        """The next `count` bytes, which must be there."""
        if count > self.size - self.at:
            raise UnsafeFile(
                f"{self.path} ends inside {what}: {count} bytes are claimed at byte {self.at} of "
                f"{self.size}: truncated, or a header that lies"
            )
        if self.at + count > MAX_HEADER_BYTES:
            raise UnsafeFile(
                f"{self.path} has more than {MAX_HEADER_BYTES} bytes of header, the most that "
                "are read"
            )
        data = self.file.read(count)
        if len(data) != count:
            raise UnsafeFile(f"{self.path} shrank while it was being read")
        self.at += count
        return data

    def integer(self, dtype: str) -> int:
        return int(np.frombuffer(self.take(np.dtype(dtype).itemsize, "a number"), dtype)[0])

    def string(self, what: str, most: int = MAX_HEADER_BYTES) -> str:
        length = struct.unpack("<Q", self.take(8, what))[0]
        if length > most:
            raise UnsafeFile(f"{self.path}: {what} has {length} bytes; at most {most} are read")
        data = self.take(length, what)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UnsafeFile(
                f"{self.path}: {what} is not valid UTF-8 (byte {self.at - length + error.start})"
            ) from error

    def _name(self, what: str) -> str:
        name = self.string(what, MAX_NAME_BYTES)
        if not name or not name.isprintable():
            raise UnsafeFile(f"{self.path}: {what} {name!r} is empty or not printable")
        return name

    def _metadata(self, count: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(count):
            key = self._name("a metadata key")
            if key in found:
                raise UnsafeFile(f"{self.path}: the metadata key {key!r} appears twice")
            found[key] = self._value(self.integer("<u4"), f"the value of {key!r}")
        return found

    def _value(self, kind: int, what: str) -> Any:
        if kind == _STRING:
            return self.string(what)
        if kind == _ARRAY:
            return self._array(what)
        return _plain(self._scalars(kind, 1, what)[0])

    def _array(self, what: str) -> Any:
        kind, count = self.integer("<u4"), self.integer("<u8")
        if kind == _ARRAY:
            raise UnsupportedModel(f"{self.path}: {what} is an array of arrays, which is not read")
        if kind != _STRING:
            return self._scalars(kind, count, what)
        if count > MAX_STRINGS or count * 8 > self.size - self.at:
            raise UnsafeFile(
                f"{self.path}: {what} claims {count} strings; the file has {self.size} bytes, and "
                f"at most {MAX_STRINGS} strings are read"
            )
        return [self.string(what) for _ in range(count)]

    def _scalars(self, kind: int, count: int, what: str) -> np.ndarray[Any, Any]:
        if kind not in _SCALARS:
            raise UnsafeFile(f"{self.path}: {what} has the unknown type {kind}")
        dtype = np.dtype(_SCALARS[kind])
        values = np.frombuffer(self.take(count * dtype.itemsize, what), dtype)
        if kind == _BOOL:
            if values.size and values.max() > 1:
                raise UnsafeFile(f"{self.path}: {what} holds a BOOL other than 0 and 1")
            return values.view("?")
        return values

    def _tensor(self) -> tuple[str, GgmlType, tuple[int, ...], int]:
        name = self._name("a tensor's name")
        source = f"{self.path}: tensor {name!r}"
        rank = self.integer("<u4")
        if not 1 <= rank <= MAX_RANK:
            raise UnsafeFile(f"{source} has {rank} dimensions; 1 to {MAX_RANK} are possible")
        shape = checked_shape([self.integer("<u8") for _ in range(rank)][::-1], source)
        if 0 in shape:
            raise UnsafeFile(f"{source} has the shape {list(shape)}, so it holds nothing")
        kind = ggml_type(self.integer("<u4"), source)
        if shape[-1] % kind.weights:
            raise UnsafeFile(
                f"{source} has rows of {shape[-1]} weights, which blocks of {kind.weights} "
                f"({kind.name}) do not fill"
            )
        offset = self.integer("<u8")
        return name, kind, shape, offset

    def _placed(
        self, described: list[tuple[str, GgmlType, tuple[int, ...], int]], alignment: int
    ) -> dict[str, GgufTensor]:
        start = -(-self.at // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        for name, kind, shape, offset in described:
            source = f"{self.path}: tensor {name!r}"
            if name in tensors:
                raise UnsafeFile(f"{source} is described twice")
            if offset % alignment:
                raise UnsafeFile(f"{source} lies at {offset}, which is not aligned to {alignment}")
            row = shape[-1] // kind.weights * kind.bytes
            count = prod(shape[:-1])
            ref = TensorRef(name, U8, (count, row), self.path, start + offset, count * row)
            check_ref(ref, self.size)
            tensors[name] = GgufTensor(name, kind, shape, ref)
        check_apart(tensor.rows for tensor in tensors.values())
        return tensors


def _alignment(metadata: Mapping[str, Any], path: Path) -> int:
    value = metadata.get("general.alignment", 32)
    if type(value) is not int or not 8 <= value <= MAX_ALIGNMENT or value & (value - 1):
        raise UnsafeFile(
            f"{path}: general.alignment must be a power of two from 8 to {MAX_ALIGNMENT}, "
            f"not {value!r:.40}"
        )
    return value


def _plain(value: Any) -> int | float | bool:
    """A numpy scalar as Python's own."""
    plain: int | float | bool = value.item()
    return plain
