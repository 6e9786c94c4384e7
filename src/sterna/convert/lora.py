"""A PEFT LoRA adapter merged into the weights it was trained beside.

In: a folder with `adapter_config.json` and `adapter_model.safetensors`, and a checkpoint's
weights. Out: the same weights, those with an adapter as W + scale * B A, computed in float32 when
they are read. Variations that change the sum (DoRA, biases, embeddings) are refused by name.
Hu et al. 2021, "LoRA" (arXiv:2106.09685).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from sterna.base.dtype import F32
from sterna.base.errors import CheckpointError, ShapeMismatch, UnexpectedTensor, UnsupportedModel
from sterna.checkpoint.config import field, read_errors, read_json
from sterna.checkpoint.safetensors import open_safetensors
from sterna.checkpoint.tensor import TensorRef
from sterna.convert.stored import Parts, StoredTensor, Tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
# Options that change what is added, by the values that leave it alone.
_PLAIN: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "use_dora": (False, None),
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "layer_replication": (None,),
    "megatron_config": (None,),
    "lora_bias": (False, None),
    "trainable_token_indices": (None,),
    "use_qalora": (False, None),
}


@dataclass(frozen=True, slots=True)
class _Pair:
    """The factors of one weight: A [r, K], B [N, r], and what their product is scaled by."""

    a: TensorRef
    b: TensorRef
    scale: float
    transposed: bool


def merged(tensors: Tensors, folder: Path) -> dict[str, StoredTensor]:
    """The tensors with the adapter of `folder` in them.

    Raises CheckpointError for a folder that is no adapter, UnsupportedModel for a variation,
    UnexpectedTensor for one of another model and ShapeMismatch for factors that do not fit.
    """
    pairs = _pairs(folder)
    unknown = [name for name in pairs if name not in tensors]
    if unknown:
        raise UnexpectedTensor(
            f"the adapter in {folder} changes {unknown[0][:200]}, which the model does not have; "
            "it belongs to another model"
        )
    changed = {name: _merged(tensors[name], pair) for name, pair in pairs.items()}
    return {**tensors, **changed}


def _pairs(folder: Path) -> dict[str, _Pair]:
    with read_errors(folder):
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise CheckpointError(
                    f"{folder} has no {name}; give the folder of a PEFT LoRA adapter, its weights "
                    "as safetensors"
                )
    config = read_json(folder / CONFIG)
    for key, plain in _PLAIN.items():
        if config.get(key, plain[0]) not in plain:
            raise UnsupportedModel(
                f"{folder / CONFIG} has {key} = {config[key]!r:.60}; adapters are merged where it "
                f"is {plain[0]!r}"
            )
    refs = open_safetensors(folder / WEIGHTS)
    found: dict[str, _Pair] = {}
    for name, ref in refs.items():
        stem = name.removeprefix(_PREFIX).removesuffix(_A)
        if name.endswith(_B):
            continue
        b = refs.get(f"{name.removesuffix(_A)}{_B}")
        if not name.endswith(_A) or b is None:
            raise UnsupportedModel(
                f"{ref.path} holds {name[:200]}, which is no half of a pair lora_A, lora_B"
            )
        found[f"{stem}.weight"] = _Pair(
            ref, b, _scale(config, stem, ref, folder), bool(config.get("fan_in_fan_out"))
        )
    if not found:
        raise CheckpointError(f"{folder / WEIGHTS} holds no lora_A and lora_B")
    return found


def _scale(config: Mapping[str, Any], stem: str, a: TensorRef, folder: Path) -> float:
    """alpha / r, or alpha / sqrt(r) where ranks are stabilized; patterns name single modules."""
    if len(a.shape) != 2 or not a.shape[0]:
        raise ShapeMismatch(f"{a.name} in {a.path} has the shape {list(a.shape)}, not [rank, in]")
    alpha = config.get("lora_alpha")
    for pattern, own in (config.get("alpha_pattern") or {}).items():
        if stem.endswith(pattern):
            alpha = own
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise CheckpointError(f"{folder / CONFIG} needs lora_alpha as a number")
    field(config, "r", int, str(folder / CONFIG))
    rank = a.shape[0]  # the factors themselves know it best: rank_pattern may differ from r
    return float(alpha / sqrt(rank) if config.get("use_rslora") else alpha / rank)


def _merged(tensor: StoredTensor, pair: _Pair) -> StoredTensor:
    rank = pair.a.shape[0]
    out, inner = tensor.shape[::-1] if pair.transposed else tensor.shape
    if pair.a.shape != (rank, inner) or pair.b.shape != (out, rank):
        raise ShapeMismatch(
            f"the adapter's {list(pair.b.shape)} x {list(pair.a.shape)} does not fit "
            f"{tensor.name} {list(tensor.shape)}"
        )
    dtype = F32 if tensor.scheme is not None else tensor.dtype

    def read(first: int, last: int) -> Parts:
        a, b = (ref.read().astype(np.float32) for ref in (pair.a, pair.b))
        if pair.transposed:
            delta = a.T[first:last] @ b.T
        else:
            delta = b[first:last] @ a
        values = tensor.values(first, last).astype(np.float32) + np.float32(pair.scale) * delta
        return {"weight": values.astype(dtype.numpy)}

    return replace(tensor, dtype=dtype, scheme=None, read=read)
