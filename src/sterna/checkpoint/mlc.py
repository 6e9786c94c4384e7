"""The MLC-style model folder, which Sterna reads and writes.

In: a folder with `mlc-chat-config.json`, an index and `params_shard_*.bin`. Out: MlcFolder, whose
tensors are read one at a time. The other way: MlcWriter takes named arrays and files, streams them
into a folder beside the target, and swaps it in whole. Knows nothing of schemes: a packed weight
is a uint32 tensor like any other.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Protocol

import numpy as np

from sterna.base.dtype import BF16, F32
from sterna.base.errors import CheckpointError, MissingTensor, UnsafeFile, UsageError
from sterna.checkpoint.beside import (
    PartialFolder,
    carry_over,
    disk_errors,
    recover,
    sync,
    write_file,
)
from sterna.checkpoint.config import read_errors, read_json
from sterna.checkpoint.folder import TOKENIZER_FILES
from sterna.checkpoint.mlc_index import (
    B16_INDEX,
    INDEX,
    OLD_INDEX,
    SHARD_FORMAT,
    Shard,
    find_mlc_index,
    read_mlc_index,
)
from sterna.checkpoint.names import plain_file_name
from sterna.checkpoint.safetensors import dtype_of
from sterna.checkpoint.tensor import F32_AS_BF16, RAW, TensorRef

CONFIG = "mlc-chat-config.json"
SHARD_BYTES = 32 << 20
_CHUNK = 4 << 20  # elements encoded at a time

_WEIGHT_FILE = re.compile(r"params_shard_\d+\.bin|(tensor|ndarray)-cache(-b16)?\.json")
_MODEL_FILES = frozenset((CONFIG, "sterna.json", *TOKENIZER_FILES))


@dataclass(frozen=True, slots=True)
class MlcFolder:
    """An opened model. A tensor read from a "f32-to-bf16" record comes as float32."""

    folder: Path
    config: dict[str, Any]
    tensors: Mapping[str, TensorRef]
    metadata: dict[str, Any]
    shards: tuple[Shard, ...]


def read_mlc_folder(folder: Path) -> MlcFolder:
    """Open a converted model; reads the config and the index, and looks at each shard's size.

    Raises CheckpointError for a folder that is none, MissingTensor for an absent shard, UnsafeFile
    for an index that lies.
    """
    with read_errors(folder):
        return _read_folder(Path(folder).resolve())


def _read_folder(folder: Path) -> MlcFolder:
    recover(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give a converted model or HF://user/repo")
    index = read_mlc_index(find_mlc_index(folder))
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} has no {CONFIG}; make one with `sterna gen_config`")
    for shard in index.shards:
        _check_size(shard)
    return MlcFolder(
        folder=folder,
        config=read_json(folder / CONFIG),
        tensors=MappingProxyType(index.tensors),
        metadata=index.metadata,
        shards=index.shards,
    )


def _check_size(shard: Shard) -> None:
    if not shard.path.is_file():
        raise MissingTensor(
            f"the shard {shard.path.name} is not in {shard.path.parent}; "
            "copy or download the model again"
        )
    size = shard.path.stat().st_size
    if size != shard.nbytes:
        raise UnsafeFile(
            f"{shard.path} has {size} bytes, but the index says {shard.nbytes}; "
            "copy or download the model again"
        )


def check_md5(model: MlcFolder) -> None:
    """Read every shard whole and refuse one that is not what the index says."""
    for shard in model.shards:
        if shard.md5 is None:
            continue
        with read_errors(shard.path), open(shard.path, "rb") as file:
            found = hashlib.file_digest(file, _md5).hexdigest()
        if found != shard.md5:
            raise UnsafeFile(
                f"{shard.path} is damaged: its md5 is {found}, the index says {shard.md5}; "
                "copy or download the model again"
            )


class _Digest(Protocol):
    def update(self, data: Any, /) -> None: ...
    def digest(self) -> bytes: ...
    def hexdigest(self) -> str: ...


def _md5() -> Any:
    return hashlib.md5(usedforsecurity=False)


@dataclass(frozen=True, slots=True)
class WrittenShard:
    """A shard as it lies on the disk; the index itself has room for an md5 only."""

    file: str
    nbytes: int
    sha256: str


class MlcWriter:
    """Write a converted model: `with MlcWriter(folder) as out: out.add(...); out.commit({...})`.

    Until `commit` the target is untouched, and a block left without it leaves nothing behind. An
    existing model is replaced; a folder that holds anything else is refused, and files that
    belong to no model (notes, libraries) stay. At most a shard (32 MiB) and the tensor at hand
    are in memory.
    """

    def __init__(self, folder: Path, *, f32_as_bf16: bool = True) -> None:
        self.folder = Path(folder).resolve()
        self._f32_as_bf16 = f32_as_bf16
        self._partial: PartialFolder | None = None
        self._names: set[str] = set()
        self._parameter_bytes = 0
        self._shards: list[dict[str, Any]] = []
        self._written: list[WrittenShard] = []
        self._pending: list[bytes] = []
        self._pending_records: list[dict[str, Any]] = []
        self._pending_bytes = 0

    def __enter__(self) -> MlcWriter:
        with disk_errors(self.folder):
            recover(self.folder)
            _check_replaceable(self.folder)
            self._partial = PartialFolder(self.folder)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._partial is not None:
            self._partial.discard()
            self._partial = None

    def add(
        self, name: str, array: np.ndarray[Any, Any], *, f32_as_bf16: bool | None = None
    ) -> None:
        """Append a tensor. float32 is cut to bfloat16 on disk unless `f32_as_bf16` is False."""
        folder = self._writing()
        if name in self._names:
            raise CheckpointError(f"tensor {name!r} was given twice for {self.folder}")
        self._names.add(name)
        self._parameter_bytes += array.nbytes
        short = self._f32_as_bf16 if f32_as_bf16 is None else f32_as_bf16
        record = _record(name, array, F32_AS_BF16 if short else RAW)
        nbytes: int = record["nbytes"]
        with disk_errors(self.folder):
            if self._pending_bytes + nbytes >= SHARD_BYTES:
                if 2 * nbytes >= SHARD_BYTES:
                    self._write_shard(folder, [record], _encoded(array, short))
                    return
                self._flush(folder)
            record["byteOffset"] = self._pending_bytes
            self._pending.extend(bytes(chunk) for chunk in _encoded(array, short))
            self._pending_records.append(record)
            self._pending_bytes += nbytes

    def add_file(self, name: str, content: bytes | Path) -> None:
        """Put a config or tokenizer file into the folder, from bytes or copied from a path."""
        folder = self._writing()
        plain_file_name(name, "the writer")
        if _WEIGHT_FILE.fullmatch(name):
            raise UsageError(f"{name} is written by the writer itself")
        with disk_errors(self.folder):
            write_file(folder / name, content)

    def finish_shards(self) -> list[WrittenShard]:
        """Write what is pending and tell what there is; a tensor added later opens a new shard."""
        folder = self._writing()
        with disk_errors(self.folder):
            self._flush(folder)
        return list(self._written)

    def commit(self, metadata: Mapping[str, Any] | None = None) -> None:
        """Write the index and let the new folder take the target's name.

        `metadata` joins ParamSize and ParamBytes in the index; BitsPerParam is the caller's, who
        alone knows the number of original parameters.
        """
        folder = self._writing()
        assert self._partial is not None, "_writing() has checked it"
        with disk_errors(self.folder):
            self._flush(folder)
            self._write_indexes(folder, dict(metadata or {}))
            if self.folder.is_dir():
                carry_over(self.folder, folder, is_model_file)
            self._partial.swap_in()
            self._partial = None

    def _writing(self) -> Path:
        if self._partial is None:
            raise UsageError("MlcWriter writes inside a `with` block and before commit() only")
        return self._partial.path

    def _flush(self, folder: Path) -> None:
        if self._pending_records:
            self._write_shard(folder, self._pending_records, iter(self._pending))
        self._pending, self._pending_records, self._pending_bytes = [], [], 0

    def _write_shard(
        self, folder: Path, records: list[dict[str, Any]], chunks: Iterator[bytes | memoryview]
    ) -> None:
        name = f"params_shard_{len(self._shards)}.bin"
        digest: _Digest = _md5()
        strong: _Digest = hashlib.sha256()
        with open(folder / name, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
                digest.update(chunk)
                strong.update(chunk)
            nbytes = file.tell()
            sync(file)
        self._written.append(WrittenShard(name, nbytes, strong.hexdigest()))
        self._shards.append(
            {
                "dataPath": name,
                "format": SHARD_FORMAT,
                "nbytes": nbytes,
                "records": records,
                "md5sum": digest.hexdigest(),
            }
        )

    def _write_indexes(self, folder: Path, metadata: dict[str, Any]) -> None:
        metadata = {
            "ParamSize": len(self._names),
            "ParamBytes": float(self._parameter_bytes),
            **metadata,
        }
        _write_json(folder / INDEX, {"metadata": metadata, "records": self._shards})
        if any(_is_cut(record) for shard in self._shards for record in shard["records"]):
            shards = [{**shard, "records": _as_b16(shard["records"])} for shard in self._shards]
            _write_json(folder / B16_INDEX, {"metadata": metadata, "records": shards})


def _record(name: str, array: np.ndarray[Any, Any], encoding: str) -> dict[str, Any]:
    dtype = dtype_of(array, name)
    cut = encoding == F32_AS_BF16 and dtype == F32
    return {
        "name": name,
        "shape": list(array.shape),
        "dtype": dtype.long_name,
        "format": encoding,
        "nbytes": array.size * (2 if cut else dtype.bytes),
        "byteOffset": 0,
    }


def _is_cut(record: dict[str, Any]) -> bool:
    return bool(record["format"] == F32_AS_BF16 and record["dtype"] == F32.long_name)


def _as_b16(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**record, "format": RAW, "dtype": BF16.long_name} if _is_cut(record) else record
        for record in records
    ]


def _encoded(array: np.ndarray[Any, Any], f32_as_bf16: bool) -> Iterator[memoryview]:
    """Yield the bytes of `array` as the shard holds them, a bounded piece at a time."""
    dtype = dtype_of(array, "")
    flat = np.ascontiguousarray(array, dtype.numpy).reshape(-1)
    for first in range(0, flat.size, _CHUNK):
        piece = flat[first : first + _CHUNK]
        if f32_as_bf16 and dtype == F32:
            piece = encode_bf16(piece)
        yield piece.view("u1").data


def encode_bf16(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Cut float32 to the bits of bfloat16 (uint16), rounding half to even as MLC's writer does.

    Values at or beyond the largest finite bfloat16 are truncated, so nothing becomes infinite.
    """
    bits = values.view("<u4")
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    largest = np.uint32(0x7F7F0000)
    inside = (bits & np.uint32(0x7FFFFFFF)) < largest
    return (np.where(inside, rounded, bits) >> np.uint32(16)).astype("<u2")


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with open(path, "wb") as file:
        file.write(json.dumps(value, indent=4, ensure_ascii=False, allow_nan=False).encode())
        sync(file)


def is_model_file(name: str) -> bool:
    return name in _MODEL_FILES or _WEIGHT_FILE.fullmatch(name) is not None


def _check_replaceable(target: Path) -> None:
    """Refuse to replace what is not a model: `--output ~` must not empty a home folder."""
    if not target.name:
        raise UsageError(f"{target} cannot be a model folder; give a folder with a name")
    if not target.exists():
        return
    if not target.is_dir():
        raise UsageError(f"{target} is a file; give a folder for the model")
    names = sorted(path.name for path in target.iterdir())
    if names and not {CONFIG, INDEX, OLD_INDEX, "sterna.json"}.intersection(names):
        raise UsageError(
            f"{target} holds other things ({', '.join(names[:3])}) and no converted model; "
            "give a new or empty folder"
        )
