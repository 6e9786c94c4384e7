"""The safetensors format: a strict lazy reader and a small streaming writer.

In: one file. Out: a TensorRef for each tensor; data is read when a ref is, one tensor at a time.
A file is 8 bytes of header length (little-endian), the header (JSON: name -> dtype, shape,
data_offsets), and the data, which the tensors must cover without overlap or hole.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import struct
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sterna.base.dtype import DTYPES, U8, DType
from sterna.base.errors import CheckpointError, UnsafeFile, UnsupportedModel
from sterna.checkpoint.beside import replace_file
from sterna.checkpoint.config import field, parse_json, read_errors, refuse_pointer
from sterna.checkpoint.tensor import E4M3, RAW, TensorRef, check_apart, check_ref, checked_shape

__all__ = ["TensorRef", "open_safetensors", "write_safetensors"]

MAX_HEADER_BYTES = 100_000_000  # the format's own limit

_F8 = "F8_E4M3"
_SUPPORTED = {dtype.name.upper(): dtype for dtype in DTYPES.values()} | {_F8: U8}
_UNSUPPORTED = frozenset(
    ("F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F6_E2M3", "F6_E3M2", "F4",
     "C64", "C128")
)  # fmt: skip


def open_safetensors(path: Path) -> dict[str, TensorRef]:
    """Read and check the header of `path`; return its tensors by name, in file order.

    Raises UnsafeFile when the header lies, UnsupportedModel for an element type that Sterna does
    not have (FP8 but E4M3, and smaller), CheckpointError when the file cannot be read.
    """
    header, start, size = _read_header(path)
    entries = parse_json(header, f"the header of {path}")
    _check_metadata(entries.pop("__metadata__", {}), path)
    refs = [_tensor(name, entry, path, start) for name, entry in entries.items()]
    for ref in refs:
        check_ref(ref, size)
    ordered = check_apart(refs)
    _check_covered(ordered, path, start, size)
    return {ref.name: ref for ref in ordered}


def _read_header(path: Path) -> tuple[bytes, int, int]:
    """Return the header's bytes, the offset at which data starts, and the file's size."""
    with read_errors(path):
        # A stranger's FIFO would keep open() waiting, so look before opening.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UnsafeFile(f"{path} is not a regular file")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            refuse_pointer(path, prefix)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise UnsafeFile(
                    f"{path} is truncated or not a safetensors file: it has {size} bytes and "
                    f"claims a header of {length} (at most {MAX_HEADER_BYTES} are read)"
                )
            header = file.read(length)
    if len(header) != length or not header.startswith(b"{"):
        raise UnsafeFile(f"{path} is not a safetensors file: its header is not a JSON object")
    return header, 8 + length, size


def _check_metadata(metadata: object, path: Path) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise UnsafeFile(f"{path}: __metadata__ must map strings to strings")


def _tensor(name: str, entry: object, path: Path, start: int) -> TensorRef:
    source = f"{path}: tensor {name[:200]!r}"
    kind = field(entry, "dtype", str, source)
    dtype = _dtype(kind, source)
    shape = checked_shape(field(entry, "shape", list, source), source)
    offsets = field(entry, "data_offsets", list, source)
    if len(offsets) != 2 or any(type(offset) is not int for offset in offsets):
        raise UnsafeFile(f"{source}: data_offsets must be two whole numbers")
    first, last = offsets
    if not 0 <= first <= last < 2**63:
        raise UnsafeFile(f"{source}: data_offsets {offsets} are not a range of bytes")
    encoding = E4M3 if kind == _F8 else RAW
    return TensorRef(name, dtype, shape, path, start + first, last - first, encoding)


def _dtype(name: str, source: str) -> DType:
    if name in _UNSUPPORTED:
        raise UnsupportedModel(
            f"{source} has element type {name}, which Sterna cannot read; "
            f"known: {', '.join(_SUPPORTED)}"
        )
    if name not in _SUPPORTED:
        raise UnsafeFile(
            f"{source} has unknown element type {name[:40]!r}; known: {', '.join(_SUPPORTED)}"
        )
    return _SUPPORTED[name]


def _check_covered(ordered: list[TensorRef], path: Path, start: int, size: int) -> None:
    """The format allows no hole: bytes that no tensor owns could hide anything."""
    end = start
    for ref in ordered:
        if ref.offset != end:
            raise UnsafeFile(f"{path}: bytes {end} to {ref.offset} belong to no tensor")
        end += ref.nbytes
    if end != size:
        raise UnsafeFile(f"{path}: the last {size - end} bytes belong to no tensor")


def write_safetensors(
    path: Path,
    tensors: Mapping[str, np.ndarray[Any, Any]] | Iterable[tuple[str, np.ndarray[Any, Any]]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write named arrays to `path`, one in memory at a time; the old file stays until the end.

    The header stands first but is known last, so the data is spooled to a temporary file beside.
    """
    pairs = tensors.items() if isinstance(tensors, Mapping) else tensors
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    with replace_file(path) as file, tempfile.TemporaryFile(dir=path.parent) as data:
        for name, array in pairs:
            if name in header:
                raise CheckpointError(f"tensor {name!r} was given twice for {path}")
            header[name] = _append(data, array, name)
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        file.write(struct.pack("<Q", len(text)) + text)
        data.seek(0)
        shutil.copyfileobj(data, file, 1 << 20)


def _append(data: Any, array: np.ndarray[Any, Any], name: str) -> dict[str, Any]:
    dtype = dtype_of(array, name)
    first = data.tell()
    flat = np.ascontiguousarray(array, dtype.numpy).reshape(-1)
    data.write(flat.view("u1").data if flat.size else b"")
    return {
        "dtype": dtype.name.upper(),
        "shape": list(array.shape),
        "data_offsets": [first, data.tell()],
    }


def dtype_of(array: np.ndarray[Any, Any], name: str) -> DType:
    """The element type of an array, in either byte order."""
    plain = array.dtype.newbyteorder("<") if array.dtype.kind in "fiu" else array.dtype
    for dtype in DTYPES.values():
        if dtype.numpy == plain:
            return dtype
    raise CheckpointError(
        f"tensor {name!r} has element type {array.dtype}; known: {', '.join(DTYPES)}"
    )
