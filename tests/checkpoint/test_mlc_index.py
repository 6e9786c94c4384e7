"""The index of an MLC-style folder is read under both names, and believed only when checked."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna.base.dtype import F16, F32, U32
from sterna.base.errors import CheckpointError, UnsafeFile, UnsupportedModel
from sterna.checkpoint.mlc_index import (
    INDEX,
    OLD_INDEX,
    MlcIndex,
    find_mlc_index,
    read_mlc_index,
)
from sterna.checkpoint.tensor import F32_AS_BF16, RAW


def record(**changes: Any) -> dict[str, Any]:
    plain = {
        "name": "w",
        "shape": [2, 3],
        "dtype": "float32",
        "format": "raw",
        "nbytes": 24,
        "byteOffset": 0,
    }
    return {**plain, **changes}


def shard(*records: dict[str, Any], **changes: Any) -> dict[str, Any]:
    plain = {
        "dataPath": "params_shard_0.bin",
        "format": "raw-shard",
        "nbytes": 48,
        "records": list(records),
        "md5sum": "0" * 32,
    }
    return {**plain, **changes}


def read(folder: Path, *shards: Any, **changes: Any) -> MlcIndex:
    path = folder / INDEX
    path.write_text(json.dumps({"metadata": {}, "records": list(shards), **changes}))
    return read_mlc_index(path)


SAMPLES = {
    # folder: shards, tensors, whether shards have an md5
    "Llama-3-8B-Instruct-q4f16_1": (108, 325, True),
    "Phi-3-mini-128k-instruct-q4f16_1": (83, 325, True),
    "Qwen2.5-0.5B-finetune-q4f16_1": (8, 267, True),
    "RedPajama-3B-q4f16_0-2023": (51, 710, False),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_published_samples(shared: Path, name: str) -> None:
    shards, tensors, hashed = SAMPLES[name]
    index = read_mlc_index(find_mlc_index(shared / "mlc-format" / name))
    assert len(index.shards) == shards
    assert len(index.tensors) == tensors == index.metadata["ParamSize"]
    assert all((shard.md5 is not None) == hashed for shard in index.shards)
    assert index.shards[0].path.name == "params_shard_0.bin", "without '?partitions=4'"
    assert {ref.dtype for ref in index.tensors.values()} <= {U32, F16, F32}
    if "ParamBytes" in index.metadata:
        assert sum(ref.nbytes for ref in index.tensors.values()) == index.metadata["ParamBytes"]


def test_both_names_and_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="convert_weight"):
        find_mlc_index(tmp_path)
    (tmp_path / OLD_INDEX).write_text("{}")
    assert find_mlc_index(tmp_path).name == OLD_INDEX
    (tmp_path / INDEX).write_text("{}")
    assert find_mlc_index(tmp_path).name == INDEX


def test_the_format_flag_matters_for_float32_only(tmp_path: Path) -> None:
    index = read(
        tmp_path,
        shard(
            record(name="cut", format="f32-to-bf16", nbytes=12),
            record(name="half", dtype="float16", format="f32-to-bf16", nbytes=12, byteOffset=12),
        ),
    )
    assert index.tensors["cut"].encoding == F32_AS_BF16
    assert index.tensors["half"].encoding == RAW


LIES = {
    "size of raw for cut": shard(record(format="f32-to-bf16")),
    "size of cut for raw": shard(record(nbytes=12)),
    "beyond the shard": shard(record(byteOffset=28)),
    "negative offset": shard(record(byteOffset=-4)),
    "huge offset": shard(record(byteOffset=2**64)),
    "fractional offset": shard(record(byteOffset=0.0)),
    "boolean size": shard(record(shape=[], dtype="uint8", nbytes=True)),
    "shape product that wraps": shard(record(shape=[2**32, 2**32], nbytes=0)),
    "negative shape": shard(record(shape=[-2, -3])),
    "no shape": shard({k: v for k, v in record().items() if k != "shape"}),
    "overlap": shard(record(), record(name="v", byteOffset=20)),
    "duplicate tensor": shard(record(), record(byteOffset=24)),
    "record no object": shard(1),  # type: ignore[arg-type]
    "shard no object": [],
    "negative shard": shard(nbytes=-1, dataPath=".."),
    "absolute path": shard(dataPath="/etc/passwd"),
    "parent path": shard(dataPath="../x.bin"),
    "path after a query": shard(dataPath="?/../x.bin"),
    "md5 no text": shard(md5sum=5),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_lies_are_refused(tmp_path: Path, lie: Any) -> None:
    with pytest.raises(UnsafeFile):
        read(tmp_path, lie)


def test_other_lies(tmp_path: Path) -> None:
    with pytest.raises(UnsafeFile, match=r"the shard .* twice"):
        read(tmp_path, shard(record()), shard(record(name="v")))
    second = shard(record(), dataPath="params_shard_1.bin")
    with pytest.raises(UnsafeFile, match="the tensor 'w' twice"):
        read(tmp_path, shard(record()), second)
    with pytest.raises(UnsafeFile, match="'records' as list"):
        read(tmp_path, records={})
    with pytest.raises(UnsafeFile, match="metadata"):
        read(tmp_path, metadata=[])


@pytest.mark.parametrize(
    "entry",
    [
        shard(format="tar"),
        shard(record(format="zip")),
        shard(record(dtype="float8_e4m3fn", nbytes=6)),
        shard(record(dtype="f32")),
    ],
    ids=["shard format", "record format", "fp8", "short dtype name"],
)
def test_unknown_formats_are_named(tmp_path: Path, entry: Any) -> None:
    with pytest.raises(UnsupportedModel, match="params_shard_0"):
        read(tmp_path, entry)


VALUES = st.none() | st.integers(-1, 50) | st.sampled_from(["raw", "float32", "a", [2], {}, 2**70])


@settings(derandomize=True, max_examples=150, deadline=None)
@given(
    in_record=st.dictionaries(st.sampled_from(sorted(record())), VALUES, max_size=2),
    in_shard=st.dictionaries(st.sampled_from(sorted(shard())), VALUES, max_size=2),
)
def test_any_change_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, in_record: dict[str, Any], in_shard: dict[str, Any]
) -> None:
    entry = {**shard(record(**in_record)), **in_shard}
    try:
        index = read(tmp_path_factory.getbasetemp(), entry)
    except CheckpointError:
        return
    assert all(0 <= ref.offset <= index.shards[0].nbytes for ref in index.tensors.values())
