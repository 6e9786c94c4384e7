"""PEFT LoRA adapters: a strict reader, and their factors as a library with room for them wants.

In: folders with `adapter_config.json` and `adapter_model.safetensors`. Out: the pairs of factors by
the path of the layer that they change, unread; or a tensor a param of a compiled library.
Variations that change the sum (DoRA, biases, embeddings) are refused by name. Adding and merging is
done elsewhere. Hu et al. 2021, "LoRA" (arXiv:2106.09685).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.base.artifact import FACTORS, AdapterRoom, Param
from sterna.base.dtype import dtype
from sterna.base.errors import (
    ArtifactError,
    CheckpointError,
    ShapeMismatch,
    UnexpectedTensor,
    UnsafeFile,
    UnsupportedModel,
)
from sterna.checkpoint.config import field, read_errors, read_json
from sterna.checkpoint.hub import ADAPTER_FILES
from sterna.checkpoint.safetensors import open_safetensors
from sterna.checkpoint.tensor import TensorRef

CONFIG, WEIGHTS = ADAPTER_FILES
MAX_RANK = 1024
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
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "use_bdlora": (False, None),
    # Others change the weights that the adapter was trained beside, too.
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}
# What else PEFT writes: read here, or of no matter to factors that are trained.
_KNOWN = frozenset(
    "r lora_alpha alpha_pattern rank_pattern use_rslora fan_in_fan_out target_modules "
    "exclude_modules layers_to_transform layers_pattern lora_dropout inference_mode task_type "
    "base_model_name_or_path revision auto_mapping peft_version runtime_config megatron_core "
    "qalora_group_size ensure_weight_tying loftq_config eva_config corda_config".split()
)


@dataclass(frozen=True, slots=True)
class Pair:
    """The factors of one weight: A [r, in], B [out, r], and what their product is scaled by.

    `transposed`: the weight that they were trained beside is stored [in, out].
    """

    a: TensorRef
    b: TensorRef
    scale: float
    transposed: bool

    @property
    def rank(self) -> int:
        return self.a.shape[0]


@dataclass(frozen=True, slots=True)
class Adapter:
    """The pairs of a folder, by the path of the layer: "model.layers.0.self_attn.q_proj"."""

    folder: Path
    pairs: Mapping[str, Pair]


def open_adapter(folder: Path) -> Adapter:
    """Open an adapter; its weights are not read.

    Raises CheckpointError for a folder that is no adapter, UnsupportedModel for a variation, and
    ShapeMismatch for factors that are no pair.
    """
    with read_errors(folder):
        for name in ADAPTER_FILES:
            if not (folder / name).is_file():
                raise CheckpointError(
                    f"{folder} has no {name}; give the folder of a PEFT LoRA adapter, its weights "
                    "as safetensors"
                )
    config = read_json(folder / CONFIG)
    for key, plain in _PLAIN.items():
        if config.get(key, plain[0]) not in plain:
            raise UnsupportedModel(
                f"{folder / CONFIG} has {key} = {config[key]!r:.60}; only {plain[0]!r} is possible"
            )
    for key, value in config.items():
        if value and key not in _KNOWN and key not in _PLAIN:
            raise UnsupportedModel(
                f"{folder / CONFIG} has {key[:60]} = {value!r:.60}, which is not known here; it "
                "may change what the adapter adds"
            )
    refs = open_safetensors(folder / WEIGHTS)
    found: dict[str, Pair] = {}
    for name, ref in refs.items():
        stem = name.removeprefix(_PREFIX).removesuffix(_A)
        if name.endswith(_B):
            continue
        b = refs.get(f"{name.removesuffix(_A)}{_B}")
        if not name.endswith(_A) or b is None:
            raise UnsupportedModel(
                f"{ref.path} holds {name[:200]}, which is no half of a pair lora_A, lora_B"
            )
        found[stem] = _pair(config, stem, ref, b, folder)
    if not found:
        raise CheckpointError(f"{folder / WEIGHTS} holds no lora_A and lora_B")
    return Adapter(folder, found)


def _pair(config: Mapping[str, Any], stem: str, a: TensorRef, b: TensorRef, folder: Path) -> Pair:
    if len(a.shape) != 2 or not 0 < a.shape[0] <= MAX_RANK:
        raise ShapeMismatch(
            f"{a.name[:200]} in {a.path} has the shape {list(a.shape)}, not [rank, in] with a rank "
            f"of at most {MAX_RANK}"
        )
    if len(b.shape) != 2 or b.shape[1] != a.shape[0]:
        raise ShapeMismatch(
            f"{b.name[:200]} in {b.path} has the shape {list(b.shape)}, not [out, {a.shape[0]}]"
        )
    for ref in (a, b):
        if not ref.dtype.is_float:
            raise ShapeMismatch(f"{ref.name[:200]} in {ref.path} holds {ref.dtype}, not floats")
    scale = _scale(config, stem, a.shape[0], folder)
    return Pair(a, b, scale, bool(config.get("fan_in_fan_out")))


def _scale(config: Mapping[str, Any], stem: str, rank: int, folder: Path) -> float:
    """alpha / r, or alpha / sqrt(r) where ranks are stabilized; patterns name single modules.

    The factors themselves know the rank best: rank_pattern may differ from r.
    """
    alpha = config.get("lora_alpha")
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise CheckpointError(f"{folder / CONFIG} needs alpha_pattern as an object")
    for pattern, own in patterns.items():
        if not re.fullmatch(r"[\w.-]+", pattern):
            raise UnsupportedModel(
                f"{folder / CONFIG} has the alpha_pattern {pattern!r:.60}; only ends of modules' "
                "paths are possible"
            )
        if f".{stem}".endswith(f".{pattern}"):
            alpha = own
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or abs(alpha) > 1e9:
        raise CheckpointError(f"{folder / CONFIG} needs lora_alpha as a number")
    field(config, "r", int, str(folder / CONFIG))
    return float(alpha / sqrt(rank) if config.get("use_rslora") else alpha / rank)


def room_for(adapters: Sequence[Adapter]) -> AdapterRoom | None:
    """What a library needs to hold these side by side; None without any."""
    if not adapters:
        return None
    pairs = [pair for adapter in adapters for pair in adapter.pairs.values()]
    modules = {_module(path) for adapter in adapters for path in adapter.pairs}
    return AdapterRoom(
        count=len(adapters), rank=max(p.rank for p in pairs), modules=tuple(sorted(modules))
    )


def _module(path: str) -> str:
    """The path with "{i}" for the number of the layer."""
    return re.sub(r"\.\d+\.", ".{i}.", path, count=1)


@dataclass(frozen=True, slots=True)
class AdapterTensor:
    """One factor of every adapter, stacked as the library's param wants it; read at load."""

    param: Param
    second: bool
    pairs: tuple[Pair | None, ...]
    rank: int

    def read(self) -> NDArray[Any]:
        """[count * rank, width]; UnsafeFile for numbers that are none, or too large to be kept."""
        values = np.zeros(self.param.shape, np.float32)
        for i, pair in enumerate(self.pairs):
            if pair is None:
                continue
            ref = pair.b if self.second else pair.a
            factor = ref.read().astype(np.float32)
            if self.second:
                factor = factor.T * np.float32(pair.scale)
            values[i * self.rank : i * self.rank + pair.rank] = factor
            with np.errstate(over="ignore"):
                kept = factor.astype(dtype(self.param.dtype).numpy)
            if not np.isfinite(kept).all():
                raise UnsafeFile(
                    f"{ref.name[:200]} in {ref.path} holds numbers that are not finite as "
                    f"{self.param.dtype}"
                )
        return values.astype(dtype(self.param.dtype).numpy)


def adapter_tensors(
    adapters: Sequence[Adapter], room: AdapterRoom | None, params: Sequence[Param]
) -> dict[str, AdapterTensor]:
    """What fills a library's params for adapters, by name; the first adapter is number 0.

    Raises ArtifactError where there is no room, UnexpectedTensor for an adapter of another model
    and ShapeMismatch for factors that do not fit.
    """
    if room is None:
        if adapters:
            raise ArtifactError(
                "the library was compiled without room for adapters; compile it again with --lora"
            )
        return {}
    _check_room(adapters, room)
    wanted = {param.name: param for param in params if param.adapter}
    found: dict[str, AdapterTensor] = {}
    for name, param in wanted.items():
        path, _, factor = name.rpartition(".")
        pairs = tuple(adapter.pairs.get(path) for adapter in adapters)
        found[name] = AdapterTensor(param, factor == FACTORS[1], pairs, room.rank)
    for adapter in adapters:
        for path, pair in adapter.pairs.items():
            _check_fits(adapter, path, pair, wanted)
    return found


def _check_room(adapters: Sequence[Adapter], room: AdapterRoom) -> None:
    largest = max((p.rank for a in adapters for p in a.pairs.values()), default=0)
    if len(adapters) > room.count or largest > room.rank:
        raise ArtifactError(
            f"the library has room for {room.count} adapters of ranks up to {room.rank}, asked for "
            f"are {len(adapters)} of ranks up to {largest}; compile it again with --lora for each"
        )


def _check_fits(adapter: Adapter, path: str, pair: Pair, wanted: Mapping[str, Param]) -> None:
    a, b = (wanted.get(f"{path}.{factor}") for factor in FACTORS)
    if a is None or b is None:
        raise UnexpectedTensor(
            f"the adapter in {adapter.folder} changes {path[:200]}, for which the library has no "
            "room; it belongs to another model, or the library was compiled for other adapters"
        )
    if pair.a.shape[1] != a.shape[1] or pair.b.shape[0] != b.shape[1]:
        raise ShapeMismatch(
            f"the adapter in {adapter.folder} has {list(pair.b.shape)} x {list(pair.a.shape)} for "
            f"{path[:200]}, which is [{b.shape[1]}, {a.shape[1]}]; it belongs to another model"
        )
