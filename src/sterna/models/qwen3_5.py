"""Qwen3.5 and 3.6 (text), dense and with experts: Qwen3-Next's layers, with matrices of their own.

Texts have one position, where images would have three.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from sterna.models.config import DecoderConfig, Fields
from sterna.models.family import Fused, Names, Stack
from sterna.models.qwen3_next import DELTA_KEYS, Qwen3Next
from sterna.models.qwen_moe import expert_options
from sterna.models.rope_options import on_one_axis

EXPERT_KEYS = (
    "num_experts num_experts_per_tok moe_intermediate_size shared_expert_intermediate_size "
    "norm_topk_prob"
)


class Qwen35(Qwen3Next):
    """Dense: a gated feed-forward layer in each layer.

    `linear_heads_tiled` is of configs made from GGUF files, which order value heads otherwise.
    """

    MODEL_TYPES: ClassVar[tuple[str, ...]] = ("qwen3_5_text",)
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("Qwen3_5ForCausalLM",)
    KEYS = (
        f"{DELTA_KEYS} attn_output_gate output_gate_type mlp_only_layers mamba_ssm_dtype "
        "mtp_num_hidden_layers mtp_use_dedicated_embeddings linear_heads_tiled"
    )
    FUSED: ClassVar[Fused] = {
        **Qwen3Next.FUSED,
        "in_proj_qkvz": ("in_proj_qkv", "in_proj_z"),
        "in_proj_ba": ("in_proj_b", "in_proj_a"),
    }
    PREFIXES: ClassVar[Names] = {"model.language_model.": "model."}  # cut out of what sees images
    joined = False

    @classmethod
    def read(cls, f: Fields) -> DecoderConfig:
        f.refuse_unless("attn_output_gate", [True, None])
        f.refuse_unless("output_gate_type", ["silu", "swish", None])
        f.refuse_unless("mlp_only_layers", [[], None])
        return cls.own(replace(f, config=on_one_axis(f.config)))

    @classmethod
    def own(cls, f: Fields) -> DecoderConfig:
        """How the two differ."""
        return cls.hybrid(f, kinds=cls.kinds(f), kv_heads=4, inner=12288)


class Qwen35Moe(Qwen35):
    """Experts in every layer, whose shares of a token sum to 1."""

    MODEL_TYPES = ("qwen3_5_moe_text",)
    ARCHITECTURES = ("Qwen3_5MoeForCausalLM",)
    KEYS = f"{Qwen35.KEYS} {EXPERT_KEYS}"
    STACKED: ClassVar = {
        "experts.gate_up_proj": Stack(("gate_proj", "up_proj"), by_rows=True),
        "experts.down_proj": Stack(("down_proj",), by_rows=True),
    }

    @classmethod
    def own(cls, f: Fields) -> DecoderConfig:
        f.refuse_unless("norm_topk_prob", [True, None])
        experts = expert_options(f, 256, 8, over_chosen=True)
        shared = f.positive("shared_expert_intermediate_size", 512)
        return cls.hybrid(
            f,
            kinds=[replace(kind, experts=True) for kind in cls.kinds(f)],
            kv_heads=2,
            inner=experts.intermediate_size,
            experts=replace(experts, shared_size=shared, gated=True),
        )
