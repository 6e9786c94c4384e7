"""Adapters merged at conversion: W + scale * B A, or a sentence why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from source_folder import Make, tiny

from sterna.base.errors import CheckpointError, ShapeMismatch, UnexpectedTensor, UnsupportedModel
from sterna.checkpoint.mlc import read_mlc_folder
from sterna.checkpoint.safetensors import write_safetensors
from sterna.convert import ConvertOptions, convert_weight, gen_config

CONFIG = tiny.VARIANTS["llama2-gqa"]
PLAIN: dict[str, Any] = {
    "peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"],
    "bias": "none", "use_dora": False, "fan_in_fan_out": False,
}  # fmt: skip
TARGETS = ("model.layers.1.self_attn.q_proj", "model.layers.0.mlp.down_proj")


def write_adapter(folder: Path, rank: int = 4, **changes: Any) -> dict[str, np.ndarray]:
    """An adapter's folder; returns B A by the weight's name."""
    folder.mkdir()
    shapes, rng = tiny.shapes(CONFIG), np.random.default_rng(1)
    tensors, deltas = {}, {}
    for target in TARGETS:
        rows, depth = shapes[f"{target}.weight"]
        a = rng.normal(0, 0.1, (rank, depth)).astype(np.float32)
        b = rng.normal(0, 0.1, (rows, rank)).astype(np.float32)
        tensors[f"base_model.model.{target}.lora_A.weight"] = a
        tensors[f"base_model.model.{target}.lora_B.weight"] = b
        deltas[f"{target}.weight"] = b.astype(np.float64) @ a
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    (folder / "adapter_config.json").write_text(json.dumps({**PLAIN, **changes}))
    return deltas


@pytest.mark.parametrize(
    ("changes", "scale"),
    [({}, 2.0), ({"lora_alpha": 3}, 0.75), ({"use_rslora": True}, 4.0),
     ({"alpha_pattern": {"self_attn.q_proj": 8}}, 2.0)],
)  # fmt: skip
def test_merged(make: Make, tmp_path: Path, changes: dict[str, Any], scale: float) -> None:
    deltas = write_adapter(tmp_path / "adapter", **changes)
    source, out = make(), tmp_path / "out"
    options = ConvertOptions(lora=tmp_path / "adapter")
    receipt = convert_weight(source, out, quantization="q0f32", options=options)
    assert any("adapter" in note for note in receipt.notes)
    gen_config(source, out, quantization="q0f32")
    tensors = read_mlc_folder(out).tensors
    weights = tiny.weights(CONFIG)
    down = "model.layers.0.mlp.down_proj.weight"
    np.testing.assert_allclose(
        tensors[down].read(), weights[down] + scale * deltas[down], atol=1e-5
    )
    query = "model.layers.1.self_attn.q_proj.weight"
    found = tensors["model.layers.1.self_attn.qkv_proj.weight"].read()[: len(weights[query])]
    np.testing.assert_allclose(found, weights[query] + scale * deltas[query], atol=1e-5)
    other = "model.layers.0.self_attn.o_proj.weight"
    np.testing.assert_array_equal(tensors[other].read(), weights[other])


VARIATIONS: dict[str, tuple[dict[str, Any], type[CheckpointError], str]] = {
    "dora": ({"use_dora": True}, UnsupportedModel, "use_dora"),
    "bias": ({"bias": "all"}, UnsupportedModel, "bias"),
    "modules to save": ({"modules_to_save": ["lm_head"]}, UnsupportedModel, "modules_to_save"),
    "another method": ({"peft_type": "IA3"}, UnsupportedModel, "peft_type"),
    "no alpha": ({"lora_alpha": None}, CheckpointError, "lora_alpha"),
    "alpha is text": ({"lora_alpha": "8"}, CheckpointError, "lora_alpha"),
    "no rank": ({"r": None}, CheckpointError, "'r'"),
    "transposed": ({"fan_in_fan_out": True}, ShapeMismatch, "does not fit"),
}


@pytest.mark.parametrize("title", VARIATIONS)
def test_variations_are_named(make: Make, tmp_path: Path, title: str) -> None:
    changes, kind, words = VARIATIONS[title]
    write_adapter(tmp_path / "adapter", **changes)
    refused(make(), tmp_path, kind, words)


def refused(source: Path, folder: Path, kind: type[CheckpointError], words: str) -> None:
    options = ConvertOptions(lora=folder / "adapter")
    with pytest.raises(kind, match=words) as caught:
        convert_weight(source, folder / "out", quantization="q0f32", options=options)
    assert "\n" not in str(caught.value)
    assert not (folder / "out").exists()


def test_folders_that_are_no_adapter(make: Make, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    refused(make(), tmp_path, CheckpointError, "adapter_config.json")


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("base_model.model.model.layers.9.mlp.down_proj.lora_A.weight", UnexpectedTensor, "layers"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", UnsupportedModel, "no half"),
        ("base_model.model.lm_head.lora_A.weight", ShapeMismatch, "does not fit"),
    ],
)
def test_tensors_of_another_model(
    make: Make, tmp_path: Path, name: str, kind: type[CheckpointError], words: str
) -> None:
    write_adapter(tmp_path / "adapter")
    tensors = {name: np.ones((4, 7), np.float32)}
    if name.endswith("lora_A.weight"):
        tensors[name.replace("lora_A", "lora_B")] = np.ones((5, 4), np.float32)
    write_safetensors(tmp_path / "adapter" / "adapter_model.safetensors", tensors)
    refused(make(), tmp_path, kind, words)
