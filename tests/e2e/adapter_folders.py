"""PEFT LoRA adapters with random factors, for models of `tiny`, and what they make of weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from compiled import tiny
from numpy.typing import DTypeLike

from sterna.checkpoint.lora import Adapter, open_adapter
from sterna.checkpoint.safetensors import write_safetensors


def write_adapter(
    folder: Path,
    config: Mapping[str, object],
    layers: Sequence[int],
    modules: Sequence[str],
    *,
    rank: int = 4,
    seed: int = 1,
    **options: Any,
) -> Adapter:
    """An adapter's folder with factors for `modules` ("mlp.up_proj") of some layers."""
    shapes, rng = tiny.shapes(config), np.random.default_rng(seed)
    tensors = {}
    for path in (f"model.layers.{layer}.{module}" for layer in layers for module in modules):
        rows, depth = shapes[f"{path}.weight"]
        name = f"base_model.model.{path}"
        tensors[f"{name}.lora_A.weight"] = rng.normal(0, 0.05, (rank, depth)).astype(np.float32)
        tensors[f"{name}.lora_B.weight"] = rng.normal(0, 0.05, (rows, rank)).astype(np.float32)
    folder.mkdir(parents=True)
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    plain = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank}
    (folder / "adapter_config.json").write_text(json.dumps({**plain, **options}))
    return open_adapter(folder)


def merged(weights: tiny.Weights, adapter: Adapter, kept_as: DTypeLike) -> tiny.Weights:
    """W + scale * B A, the factors rounded as a library keeps them."""

    def kept(values: np.ndarray) -> np.ndarray:
        return values.astype(kept_as).astype(np.float64)

    changed = {}
    for path, pair in adapter.pairs.items():
        b = kept(pair.b.read() * np.float32(pair.scale))
        changed[f"{path}.weight"] = weights[f"{path}.weight"] + b @ kept(pair.a.read())
    return {**weights, **changed}
