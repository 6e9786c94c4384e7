"""A Hugging Face folder opens lazily, and every way it can be broken has its sentence."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sterna.base.errors import CheckpointError, MissingTensor, UnsafeFile
from sterna.checkpoint.folder import INDEX, SINGLE, open_checkpoint
from sterna.checkpoint.safetensors import write_safetensors

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def ones(value: float = 1.0) -> np.ndarray[Any, Any]:
    return np.full(3, value, np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path


@pytest.fixture
def sharded(folder: Path) -> Path:
    write_safetensors(folder / SHARDS[0], {"a": ones(1)})
    write_safetensors(folder / SHARDS[1], {"b": ones(2)})
    write_index(folder, {"a": SHARDS[0], "b": SHARDS[1]})
    return folder


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_single_file(folder: Path) -> None:
    write_safetensors(folder / SINGLE, {"a": ones()})
    (folder / "tokenizer.json").write_text("{}")
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 3]}')
    checkpoint = open_checkpoint(folder)
    assert checkpoint.config == {"model_type": "llama"}
    assert checkpoint.generation_config == {"eos_token_id": [2, 3]}
    assert checkpoint.tokenizer_files == ("tokenizer.json",)
    assert checkpoint.tensors["a"].read().tolist() == [1, 1, 1]
    with pytest.raises(TypeError):
        checkpoint.tensors["b"] = checkpoint.tensors["a"]  # type: ignore[index]


def test_shards(sharded: Path) -> None:
    tensors = open_checkpoint(sharded).tensors
    assert {name: ref.read()[0] for name, ref in tensors.items()} == {"a": 1, "b": 2}


def test_a_cache_of_links(sharded: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    snapshot = tmp_path_factory.mktemp("snapshot")
    for path in sharded.iterdir():
        os.symlink(path, snapshot / path.name)
    assert set(open_checkpoint(snapshot).tensors) == {"a", "b"}


def test_missing_shard_is_named(sharded: Path) -> None:
    (sharded / SHARDS[1]).unlink()
    with pytest.raises(MissingTensor, match=SHARDS[1]):
        open_checkpoint(sharded)


def test_tensor_that_the_shard_lacks(sharded: Path) -> None:
    write_index(sharded, {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[1]})
    with pytest.raises(MissingTensor, match=f"'c' is in {SHARDS[1]}"):
        open_checkpoint(sharded)


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/etc/passwd", "sub/x", "..", ".", "", "a\\b", "C:x", "a\0b", 3, None, []],
)
def test_names_that_leave_the_folder(sharded: Path, name: object) -> None:
    write_index(sharded, {"a": name})
    with pytest.raises(UnsafeFile, match=r"model\.safetensors\.index\.json"):
        open_checkpoint(sharded)


def test_an_index_without_a_map(sharded: Path) -> None:
    write_index(sharded, ["a"])
    with pytest.raises(UnsafeFile, match="weight_map"):
        open_checkpoint(sharded)


def test_a_tensor_in_two_shards(sharded: Path) -> None:
    write_safetensors(sharded / SHARDS[1], {"b": ones(2), "a": ones(7)})
    assert open_checkpoint(sharded).tensors["a"].read()[0] == 1, "the index decides"
    write_index(sharded, {"b": SHARDS[1], "c": SHARDS[0]})
    write_safetensors(sharded / SHARDS[0], {"a": ones(1), "c": ones(3)})
    with pytest.raises(UnsafeFile, match="'a' is in"):
        open_checkpoint(sharded)


def test_a_tensor_beyond_the_index_is_not_dropped(sharded: Path) -> None:
    write_safetensors(sharded / SHARDS[1], {"b": ones(2), "extra": ones(3)})
    assert set(open_checkpoint(sharded).tensors) == {"a", "b", "extra"}


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth", "weights.pt", "last.ckpt"])
def test_pickle_is_refused_with_advice(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"\x80\x04.")
    with pytest.raises(UnsafeFile, match=f"{name}.*convert it to safetensors"):
        open_checkpoint(folder)


def test_pickle_beside_safetensors_is_never_looked_at(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    write_safetensors(folder / SINGLE, {"a": ones()})
    assert set(open_checkpoint(folder).tensors) == {"a"}


def test_no_weights(folder: Path) -> None:
    with pytest.raises(MissingTensor, match=r"found no \*\.safetensors"):
        open_checkpoint(folder)
    (folder / "training_args.bin").write_bytes(b"x")
    write_safetensors(folder / "adapter_model.safetensors", {"a": ones()})
    with pytest.raises(MissingTensor, match=r"found adapter_model\.safetensors"):
        open_checkpoint(folder)


def test_no_folder_and_no_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder"):
        open_checkpoint(tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="cannot read"):
        open_checkpoint(tmp_path / ("x" * 5000))


def test_real_indexes_are_read_as_far_as_their_shards(shared: Path) -> None:
    folders = [path.parent for path in (shared / "configs").glob(f"*/{INDEX}")]
    assert folders
    for folder in folders:
        with pytest.raises(MissingTensor, match="the shard model-0"):
            open_checkpoint(folder)
