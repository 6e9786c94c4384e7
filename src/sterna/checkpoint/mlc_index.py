"""The index of an MLC-style folder: which shard holds which tensor, and where.

In: `tensor-cache.json`, or `ndarray-cache.json` as it was called before September 2025. Out:
MlcIndex, bounds and overlaps checked; the shards need not be there. Unlike safetensors the format
names dtypes in full ("float16"), and may store float32 as bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sterna.base.dtype import DTYPES, F32, DType
from sterna.base.errors import CheckpointError, UnsafeFile, UnsupportedModel
from sterna.checkpoint.config import field, read_json
from sterna.checkpoint.names import plain_file_name
from sterna.checkpoint.tensor import (
    F32_AS_BF16,
    RAW,
    TensorRef,
    check_apart,
    check_ref,
    checked_shape,
)

INDEX = "tensor-cache.json"
OLD_INDEX = "ndarray-cache.json"
B16_INDEX = "tensor-cache-b16.json"
SHARD_FORMAT = "raw-shard"

_LONG_NAMES = {dtype.long_name: dtype for dtype in DTYPES.values()}


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of raw bytes. `md5` is None in folders of 2023, which had none."""

    path: Path
    nbytes: int
    md5: str | None
    tensors: tuple[TensorRef, ...]


@dataclass(frozen=True, slots=True)
class MlcIndex:
    """What an index says: free metadata (ParamSize, ParamBytes, BitsPerParam) and the shards."""

    metadata: dict[str, Any]
    shards: tuple[Shard, ...]

    @property
    def tensors(self) -> dict[str, TensorRef]:
        return {ref.name: ref for shard in self.shards for ref in shard.tensors}


def find_mlc_index(folder: Path) -> Path:
    """Return the path of the folder's index, under its present or its old name."""
    for name in (INDEX, OLD_INDEX):
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(
        f"{folder} has neither {INDEX} nor {OLD_INDEX}, so it is no converted model; "
        "make one with `sterna convert_weight`"
    )


def read_mlc_index(path: Path) -> MlcIndex:
    """Read and check an index; no shard is opened.

    Raises UnsafeFile for paths that escape, records that overlap or leave their shard, sizes that
    do not match shapes and duplicate names; UnsupportedModel for formats and dtypes not known.
    """
    index = read_json(path)
    metadata = index.get("metadata", {})
    if not isinstance(metadata, dict):
        raise UnsafeFile(f"{path}: metadata must be a JSON object")
    entries = field(index, "records", list, str(path))
    shards = tuple(_shard(entry, path, i) for i, entry in enumerate(entries))
    _check_unique((shard.path.name for shard in shards), "the shard", path)
    _check_unique((ref.name for shard in shards for ref in shard.tensors), "the tensor", path)
    return MlcIndex(metadata, shards)


def _shard(entry: object, path: Path, position: int) -> Shard:
    source = f"{path}: shard {position}"
    # Some uploads split shards for browsers and note it as "params_shard_0.bin?partitions=4".
    given = field(entry, "dataPath", str, source).partition("?")[0]
    shard_path = path.parent / plain_file_name(given, source)
    source = f"{path}: shard {shard_path.name}"
    if field(entry, "format", str, source) != SHARD_FORMAT:
        raise UnsupportedModel(f"{source} is not in the format {SHARD_FORMAT!r}, the only one")
    nbytes = field(entry, "nbytes", int, source)
    records = field(entry, "records", list, source)
    refs = [_record(record, shard_path, source) for record in records]
    for ref in refs:
        check_ref(ref, nbytes)
    assert isinstance(entry, dict), "field() has refused anything else"
    md5 = field(entry, "md5sum", str, source).lower() if entry.get("md5sum") else None
    return Shard(shard_path, nbytes, md5, tuple(check_apart(refs)))


def _record(record: object, shard: Path, source: str) -> TensorRef:
    name = field(record, "name", str, source)
    source = f"{source}, tensor {name[:200]!r}"
    encoding = field(record, "format", str, source)
    if encoding not in (RAW, F32_AS_BF16):
        raise UnsupportedModel(f"{source} has format {encoding[:40]!r}; known: raw, f32-to-bf16")
    dtype = _dtype(field(record, "dtype", str, source), source)
    return TensorRef(
        name=name,
        dtype=dtype,
        shape=checked_shape(field(record, "shape", list, source), source),
        path=shard,
        offset=field(record, "byteOffset", int, source),
        nbytes=field(record, "nbytes", int, source),
        encoding=encoding if dtype == F32 else RAW,  # MLC writes it on every record
    )


def _dtype(name: str, source: str) -> DType:
    if name not in _LONG_NAMES:
        raise UnsupportedModel(
            f"{source} has dtype {name[:40]!r}, which Sterna cannot read; "
            f"known: {', '.join(_LONG_NAMES)}"
        )
    return _LONG_NAMES[name]


def _check_unique(names: Iterable[str], what: str, path: Path) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UnsafeFile(f"{path} lists {what} {name[:200]!r} twice")
        seen.add(name)
