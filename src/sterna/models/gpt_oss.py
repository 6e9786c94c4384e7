"""gpt-oss: experts in every layer, and in every head a score for looking at nothing.

Each second layer has a sliding window, the first one included. Experts are published in MXFP4,
which is kept as it is; their activation is cut to a range.
"""

from __future__ import annotations

from typing import ClassVar

from sterna.base.dtype import DType
from sterna.models.config import DecoderConfig, Fields, LayerKind
from sterna.models.family import Family, Names, Stack, attention_options
from sterna.nn.attention import Attention
from sterna.nn.moe import ExpertOptions


class GptOss(Family):
    """Biases everywhere; a token's shares sum to 1 over its experts."""

    MODEL_TYPES = ("gpt_oss",)
    ARCHITECTURES = ("GptOssForCausalLM",)
    KEYS = (
        "rms_norm_eps attention_bias sliding_window layer_types num_local_experts "
        "num_experts_per_tok experts_per_token initial_context_length swiglu_limit swiglu_alpha"
    )
    NAMES: ClassVar[Names] = {"gate": "router"}
    STACKED: ClassVar = {
        "experts.gate_up_proj": Stack(("gate_proj", "up_proj"), alternate=True),
        "experts.down_proj": Stack(("down_proj",)),
    }

    @classmethod
    def read(cls, f: Fields) -> DecoderConfig:
        chosen, window = f.positive("num_experts_per_tok", 4), f.window("sliding_window", 128)
        f.refuse_unless("experts_per_token", [chosen])
        f.refuse_unless("hidden_act", ["silu"])
        config = f.decoder(
            head_dim=f.positive("head_dim", 64),
            eps=("rms_norm_eps", 1e-5),
            kv_heads=8,
            theta=150000.0,
            attention_bias=f.flag("attention_bias", True),
            kinds=[
                LayerKind(window if sliding else -1, experts=True)
                for sliding in f.sliding(lambda i: i % 2 == 0)
            ],
            experts=ExpertOptions(
                experts=f.positive("num_local_experts", 128),
                chosen=chosen,
                intermediate_size=f.positive("intermediate_size"),
                over_chosen=True,
                bias=True,
                clamp=(f.number("swiglu_limit", 7.0), f.number("swiglu_alpha", 1.702)),
            ),
        )
        f.refuse_unless("initial_context_length", [config.rope.original_length])
        return config

    @classmethod
    def attention(cls, c: DecoderConfig, kind: LayerKind, dtype: DType) -> Attention:
        return Attention(attention_options(c, kind, dtype, head_sinks=True))
