"""Phi-1, Phi-1.5 and Phi-2: one norm before attention and feed-forward layer, side by side."""

from __future__ import annotations

from typing import ClassVar

from sterna.base.errors import CheckpointError
from sterna.models.config import DecoderConfig, Fields
from sterna.models.family import Family, Names
from sterna.models.rope_scaling import rotary_dim


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
        rotated = rotary_dim(c.rope, c.head_dim)
        if f.config.get("rotary_dim", rotated) != rotated:
            raise CheckpointError(
                f"rotary_dim {f.config['rotary_dim']!r} in config.json contradicts "
                f"partial_rotary_factor, by which {rotated} dimensions of a head are rotated"
            )
        return c
