"""Qwen1.5-MoE, Qwen2-57B-A14B and Qwen3-MoE: many small experts in some or all layers.

The first two have an expert that all tokens share beside those that they choose.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from sterna.base.errors import CheckpointError
from sterna.models.config import DecoderConfig, Fields, LayerKind
from sterna.models.qwen2 import Qwen2, qwen_windows
from sterna.models.qwen3 import Qwen3
from sterna.nn.moe import ExpertOptions

_KEYS = (
    "num_experts num_experts_per_tok moe_intermediate_size norm_topk_prob decoder_sparse_step "
    "mlp_only_layers shared_expert_intermediate_size"
)


class Qwen2Moe(Qwen2):
    """Biases on q, k and v as in Qwen2."""

    MODEL_TYPES = ("qwen2_moe",)
    ARCHITECTURES = ("Qwen2MoeForCausalLM",)
    KEYS = f"{Qwen2.KEYS} qkv_bias {_KEYS}"

    @classmethod
    def read(cls, f: Fields) -> DecoderConfig:
        shared = f.positive("shared_expert_intermediate_size", 5632)
        options = replace(expert_options(f, 60, 4), shared_size=shared, gated=True)
        kinds = sparse_layers(f, qwen_windows(f))
        return f.decoder(qkv_bias=f.flag("qkv_bias", True), kinds=kinds, experts=options)


class Qwen3Moe(Qwen3):
    """Norms of heads as in Qwen3; a shared expert of size 0 is none."""

    MODEL_TYPES = ("qwen3_moe",)
    ARCHITECTURES = ("Qwen3MoeForCausalLM",)
    KEYS = f"{Qwen3.KEYS} {_KEYS} num_local_experts"

    @classmethod
    def read(cls, f: Fields) -> DecoderConfig:
        f.refuse_unless("shared_expert_intermediate_size", [0, None])
        experts = expert_options(f, f.positive("num_local_experts", 128), 8)
        f.refuse_unless("num_local_experts", [experts.experts])  # its newer name, or both
        return f.decoder(
            attention_bias=f.flag("attention_bias"),
            kinds=sparse_layers(f, qwen_windows(f)),
            experts=experts,
        )


def expert_options(
    f: Fields, experts: int, chosen: int, *, over_chosen: bool = False
) -> ExpertOptions:
    """The experts of a sparse layer; the numbers are what silence means."""
    return ExpertOptions(
        experts=f.positive("num_experts", experts),
        chosen=f.positive("num_experts_per_tok", chosen),
        intermediate_size=f.positive("moe_intermediate_size"),
        over_chosen=f.flag("norm_topk_prob", over_chosen),
    )


def sparse_layers(f: Fields, kinds: Iterable[LayerKind]) -> list[LayerKind]:
    """Every `decoder_sparse_step`-th layer has experts, unless `mlp_only_layers` names it."""
    period = f.positive("decoder_sparse_step", 1)
    dense = f.config.get("mlp_only_layers") or []
    if not isinstance(dense, list):
        raise CheckpointError("mlp_only_layers in config.json must be a list of layers' numbers")
    return [
        replace(kind, experts=i not in dense and (i + 1) % period == 0)
        for i, kind in enumerate(kinds)
    ]
