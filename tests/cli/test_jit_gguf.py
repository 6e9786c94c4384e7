"""A GGUF file, named as it is, becomes a model folder in the cache: its blocks kept, once."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "convert"))

pytest.importorskip("gguf", reason="needs the gguf package, which writes the files")

from gguf_source import WHOLE, write_gguf

from sterna import jit
from sterna.base.errors import UsageError
from sterna.checkpoint.model_folder import open_model

SMALL = {**WHOLE, "num_hidden_layers": 1}


def test_a_file_is_converted_once(tmp_path: Path, own_cache: Path) -> None:
    path = tmp_path / "Tiny-Q4_K.gguf"
    write_gguf(path, SMALL, lambda name: "Q4_K")
    folder = jit.model_folder(path)
    assert folder.name == "Tiny-Q4_K-stored"
    state = (folder / "sterna.json").stat().st_mtime_ns
    assert jit.model_folder(path) == folder
    assert (folder / "sterna.json").stat().st_mtime_ns == state
    model = open_model(folder)
    assert model.recipe is not None
    assert model.tensors["model.layers.0.mlp.down_proj.q_outer"].shape == (256, 2)
    write_gguf(path, SMALL, lambda name: "Q6_K")
    os.utime(path, ns=(1, 1))
    assert jit.model_folder(path) != folder  # another file under the same name


def test_a_scheme_that_is_asked_for(tmp_path: Path, own_cache: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, SMALL, lambda name: "F16")
    assert open_model(jit.model_folder(path, "q4f16_1")).quantization == "q4f16_1"
    with pytest.raises(UsageError, match="q9f16_1"):
        jit.model_folder(path, "q9f16_1")


def test_a_converted_folder_is_stored_already(tmp_path: Path, own_cache: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, SMALL, lambda name: "Q8_0")
    folder = jit.model_folder(path)
    assert jit.model_folder(folder, "stored") == folder
    with pytest.raises(UsageError, match="is quantized as gguf-mixed"):
        jit.model_folder(folder, "q4f16_1")
