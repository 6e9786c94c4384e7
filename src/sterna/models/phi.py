"""Phi-1, Phi-1.5 and Phi-2: one norm before attention and feed-forward layer, side by side."""

from __future__ import annotations

from typing import ClassVar

from sterna.models.config import DecoderConfig, Fields
from sterna.models.family import Family, Names


class Phi(Family):
    """Biases everywhere; part of each head is rotated."""

    MODEL_TYPES = ("phi",)
    ARCHITECTURES = ("PhiForCausalLM",)
    KEYS = "layer_norm_eps qk_layernorm attention_bias rotary_dim"
    NAMES: ClassVar[Names] = {
        "o_proj": "dense",
        "up_proj": "fc1",
        "down_proj": "fc2",
        "norm": "final_layernorm",
    }

    @classmethod
    def read(cls, f: Fields) -> DecoderConfig:
        f.refuse_unless("qk_layernorm", [False, None])
        c = f.decoder(
            layer_norm=True,
            parallel=True,
            gated=False,
            eps=("layer_norm_eps", 1e-5),
            usual_act="gelu_new",
            partial=0.5,
            qkv_bias=True,
            output_bias=True,
            mlp_bias=True,
            head_bias=True,
        )
        f.refuse_unless("rotary_dim", [int(c.head_dim * c.rope.partial)])
        return c
