"""Converted models: written shard by shard under MLC's rules, read back bit for bit."""

import errno
import hashlib
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna.base.errors import CheckpointError, MissingTensor, UnsafeFile, UsageError
from sterna.checkpoint import mlc
from sterna.checkpoint.mlc import MlcWriter, check_md5, encode_bf16, read_mlc_folder
from sterna.checkpoint.mlc_index import B16_INDEX, INDEX, OLD_INDEX

WORDS = np.arange(12, dtype=np.uint32).reshape(3, 4)
SCALES = np.array([0.1, -2.5, 3.0e38], np.float32)


def write(folder: Path, tensors: dict[str, Any], **options: Any) -> None:
    with MlcWriter(folder, **options) as out:
        for name, array in tensors.items():
            out.add(name, array)
        out.add_file("mlc-chat-config.json", b'{"model_type": "llama"}')
        out.commit({"BitsPerParam": 4.5})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write(tmp_path / "M", {"q_weight": WORDS, "q_scale": SCALES})
    return tmp_path / "M"


def index_of(folder: Path, name: str = INDEX) -> dict[str, Any]:
    value = json.loads((folder / name).read_text())
    assert isinstance(value, dict)
    return value


def test_index_as_mlc_writes_it(model: Path) -> None:
    index = index_of(model)
    assert index["metadata"] == {"ParamSize": 2, "ParamBytes": 60.0, "BitsPerParam": 4.5}
    [shard] = index["records"]
    data = (model / "params_shard_0.bin").read_bytes()
    assert shard["md5sum"] == hashlib.md5(data).hexdigest()
    assert (shard["format"], shard["nbytes"]) == ("raw-shard", len(data))
    assert shard["records"] == [
        {
            "name": "q_weight",
            "shape": [3, 4],
            "dtype": "uint32",
            "format": "f32-to-bf16",
            "nbytes": 48,
            "byteOffset": 0,
        },
        {
            "name": "q_scale",
            "shape": [3],
            "dtype": "float32",
            "format": "f32-to-bf16",
            "nbytes": 6,
            "byteOffset": 48,
        },
    ]
    assert (model / INDEX).read_text().startswith('{\n    "metadata": {\n        "ParamSize"')
    cut = index_of(model, B16_INDEX)["records"][0]["records"]
    assert [(r["dtype"], r["format"]) for r in cut] == [
        ("uint32", "f32-to-bf16"),
        ("bfloat16", "raw"),
    ]


def test_read_back(model: Path) -> None:
    found = read_mlc_folder(model)
    check_md5(found)
    assert found.config == {"model_type": "llama"}
    assert found.metadata["BitsPerParam"] == 4.5
    assert np.array_equal(found.tensors["q_weight"].read(), WORDS)
    scales = found.tensors["q_scale"].read()
    assert scales.dtype == np.float32
    assert np.array_equal(scales, SCALES.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_old_index_name_is_read(model: Path) -> None:
    (model / INDEX).rename(model / OLD_INDEX)
    assert set(read_mlc_folder(model).tensors) == {"q_weight", "q_scale"}


def test_raw_float32_stays_exact(tmp_path: Path) -> None:
    write(tmp_path / "M", {"w": SCALES}, f32_as_bf16=False)
    assert index_of(tmp_path / "M")["records"][0]["records"][0]["format"] == "raw"
    assert not (tmp_path / "M" / B16_INDEX).exists()
    assert np.array_equal(read_mlc_folder(tmp_path / "M").tensors["w"].read(), SCALES)


def test_the_caller_decides_tensor_by_tensor(tmp_path: Path) -> None:
    with MlcWriter(tmp_path / "M") as out:
        out.add("cut", SCALES)
        out.add("whole", SCALES, f32_as_bf16=False)
        out.add_file("mlc-chat-config.json", b"{}")
        out.commit()
    tensors = read_mlc_folder(tmp_path / "M").tensors
    assert tensors["cut"].nbytes * 2 == tensors["whole"].nbytes
    assert np.array_equal(tensors["whole"].read(), SCALES)


def test_bf16_is_half_even_inside_and_truncated_outside() -> None:
    bits = np.array(
        [0x3F808000, 0x3F818000, 0x3F808001, 0x7F7F0000, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000,
         0xFF800000, 0x7FC00000, 0x00000001, 0x80000000],
        np.uint32,
    )  # fmt: skip
    expected = [0x3F80, 0x3F82, 0x3F81, 0x7F7F, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80, 0x7FC0, 0, 0x8000]
    assert encode_bf16(bits.view(np.float32)).tolist() == expected


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1, max_size=8))
def test_bf16_agrees_with_ml_dtypes(values: list[float]) -> None:
    array = np.array(values, np.float32)
    assert encode_bf16(array).tolist() == array.astype(ml_dtypes.bfloat16).view(np.uint16).tolist()


def test_sharding_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlc, "SHARD_BYTES", 100)
    sizes = {"a": 40, "b": 60, "c": 49, "d": 10, "e": 30, "f": 100, "g": 5}
    arrays = {name: np.full(size, i, np.uint8) for i, (name, size) in enumerate(sizes.items())}
    write(tmp_path / "M", arrays)
    shards = index_of(tmp_path / "M")["records"]
    # b would fill the open shard and is half a shard or more: it goes out at once, before a's.
    # c, d fit beside a (40 + 49 + 10 < 100), e does not and starts a new shard after a flush.
    assert [[record["name"] for record in shard["records"]] for shard in shards] == [
        ["b"],
        ["a", "c", "d"],
        ["f"],
        ["e", "g"],
    ]
    assert [shard["dataPath"] for shard in shards] == [f"params_shard_{i}.bin" for i in range(4)]
    found = read_mlc_folder(tmp_path / "M")
    check_md5(found)
    for name, array in arrays.items():
        assert np.array_equal(found.tensors[name].read(), array)


def test_real_cap_is_32_mib(tmp_path: Path) -> None:
    almost = np.zeros((32 << 20) - 1, np.uint8)
    write(tmp_path / "M", {"one": np.ones(1, np.uint8), "almost": almost})
    names = [[r["name"] for r in shard["records"]] for shard in index_of(tmp_path / "M")["records"]]
    assert names == [["almost"], ["one"]]


def test_memory_is_a_shard_and_the_tensor_at_hand(tmp_path: Path) -> None:
    tensor = np.zeros(6 << 20, np.float32)  # 24 MiB, 12 MiB on disk: three make a shard
    tracemalloc.start()
    with MlcWriter(tmp_path / "M") as out:
        for i in range(7):
            out.add(f"t{i}", tensor)
        peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 128 << 20, "84 MiB were written; the shard, and scratch for one piece"


@pytest.mark.parametrize("shape", [(), (0,), (0, 5), (1, 1)])
def test_odd_shapes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    write(tmp_path / "M", {"x": np.ones(shape, np.float32)})
    assert read_mlc_folder(tmp_path / "M").tensors["x"].read().shape == shape


def test_damage_is_found(model: Path) -> None:
    path = model / "params_shard_0.bin"
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    with pytest.raises(UnsafeFile, match=r"params_shard_0\.bin is damaged"):
        check_md5(read_mlc_folder(model))
    path.write_bytes(data[:-1])
    with pytest.raises(UnsafeFile, match="has 53 bytes, but the index says 54"):
        read_mlc_folder(model)
    path.unlink()
    with pytest.raises(MissingTensor, match=r"params_shard_0\.bin"):
        read_mlc_folder(model)


def test_folder_without_config_or_index(model: Path) -> None:
    (model / "mlc-chat-config.json").unlink()
    with pytest.raises(CheckpointError, match="gen_config"):
        read_mlc_folder(model)
    (model / INDEX).unlink()
    with pytest.raises(CheckpointError, match="convert_weight"):
        read_mlc_folder(model)
    with pytest.raises(CheckpointError, match="is not a folder"):
        read_mlc_folder(model / "none")


def test_files_go_along(tmp_path: Path) -> None:
    source = tmp_path / "tokenizer.json"
    source.write_text('{"version": "1.0"}')
    with MlcWriter(tmp_path / "M") as out:
        out.add_file("tokenizer.json", source)
        out.add_file("sterna.json", b"{}")
        for name in ("../x", "/x", "a/b", ""):
            with pytest.raises(UnsafeFile):
                out.add_file(name, b"")
        with pytest.raises(UsageError, match="written by the writer"):
            out.add_file("params_shard_7.bin", b"")
        out.commit()
    assert (tmp_path / "M" / "tokenizer.json").read_text() == '{"version": "1.0"}'
    assert sorted(p.name for p in tmp_path.iterdir()) == ["M", "tokenizer.json"]


def test_duplicate_and_unknown_tensors(tmp_path: Path) -> None:
    with MlcWriter(tmp_path / "M") as out:
        out.add("x", WORDS)
        with pytest.raises(CheckpointError, match="given twice"):
            out.add("x", WORDS)
        with pytest.raises(CheckpointError, match="complex64"):
            out.add("y", np.zeros(1, np.complex64))
    assert list(tmp_path.iterdir()) == [], "no commit, nothing left"


def test_only_inside_the_block(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`with` block"):
        MlcWriter(tmp_path / "M").add("x", WORDS)
    with MlcWriter(tmp_path / "M") as out:
        out.commit()
        with pytest.raises(UsageError, match="`with` block"):
            out.add("x", WORDS)


def test_replacing_keeps_what_is_not_the_model(model: Path) -> None:
    (model / "notes.md").write_text("mine")
    (model / "libs").mkdir()
    (model / "libs" / "cpu.so").write_bytes(b"elf")
    (model / "tokenizer.model").write_bytes(b"the old model's")
    (model / "params_shard_9.bin").write_bytes(b"stale")
    write(model, {"new": WORDS})
    assert set(read_mlc_folder(model).tensors) == {"new"}
    assert (model / "notes.md").read_text() == "mine"
    assert (model / "libs" / "cpu.so").read_bytes() == b"elf"
    assert not (model / "tokenizer.model").exists()
    assert not (model / "params_shard_9.bin").exists()
    assert [p.name for p in model.parent.iterdir()] == ["M"]


def test_a_folder_of_other_things_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match=r"thesis\.tex"), MlcWriter(tmp_path):
        pass
    with pytest.raises(UsageError, match="is a file"), MlcWriter(tmp_path / "thesis.tex"):
        pass
    with pytest.raises(UsageError, match="with a name"), MlcWriter(Path("/")):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_empty_folder_and_a_deep_one_are_fine(tmp_path: Path) -> None:
    (tmp_path / "M").mkdir()
    write(tmp_path / "M", {"x": WORDS})
    write(tmp_path / "a" / "b", {"x": WORDS})
    assert set(read_mlc_folder(tmp_path / "a" / "b").tensors) == {"x"}


class FullDisk:
    """Stands in for fsync: the disk is full at the n-th call."""

    def __init__(self, calls_left: int) -> None:
        self.calls_left = calls_left

    def __call__(self, handle: int) -> None:
        self.calls_left -= 1
        if self.calls_left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("calls_left", range(5))
def test_full_disk(model: Path, monkeypatch: pytest.MonkeyPatch, calls_left: int) -> None:
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    monkeypatch.setattr(os, "fsync", FullDisk(calls_left))
    with pytest.raises(CheckpointError, match=r"disk is full.*unchanged"):
        write(model, {"new": SCALES})
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    assert [p.name for p in model.parent.iterdir()] == ["M"]


def test_a_write_that_fails_under_way(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlc, "SHARD_BYTES", 8)
    monkeypatch.setattr(os, "fsync", FullDisk(0))
    with pytest.raises(CheckpointError, match="disk is full"), MlcWriter(model) as out:
        out.add("new", WORDS)
    assert [p.name for p in model.parent.iterdir()] == ["M"]
