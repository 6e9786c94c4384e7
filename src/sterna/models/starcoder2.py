"""StarCoder 2: grouped-query attention with biases, LayerNorms and plain GELU."""

from __future__ import annotations

from typing import ClassVar

from sterna.models.config import DecoderConfig, Fields, LayerKind
from sterna.models.family import Family, Names


class StarCoder2(Family):
    """One flag for all biases; the smaller models have a sliding window."""

    MODEL_TYPES = ("starcoder2",)
    ARCHITECTURES = ("Starcoder2ForCausalLM",)
    KEYS = "norm_epsilon use_bias sliding_window mlp_type norm_type"
    NAMES: ClassVar[Names] = {"up_proj": "c_fc", "down_proj": "c_proj"}

    @classmethod
    def read(cls, f: Fields) -> DecoderConfig:
        f.refuse_unless("mlp_type", ["default"])
        f.refuse_unless("norm_type", ["layer_norm"])
        bias = f.flag("use_bias", True)
        window = f.positive("sliding_window") if f.config.get("sliding_window") else -1
        return f.decoder(
            layer_norm=True,
            gated=False,
            eps=("norm_epsilon", 1e-5),
            kv_heads=2,
            tied=True,
            usual_act="gelu_pytorch_tanh",
            qkv_bias=bias,
            output_bias=bias,
            mlp_bias=bias,
            kinds=LayerKind(window=window),
        )
