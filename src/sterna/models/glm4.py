"""GLM-4 and GLM-Z1: half of each head rotated in neighbouring pairs, gate and up in one matrix.

The models of 2025 add norms after attention and after the feed-forward layer.
"""

from __future__ import annotations

from typing import ClassVar

from sterna.base.dtype import DType
from sterna.models.config import DecoderConfig, Fields, LayerKind
from sterna.models.family import Family, Names
from sterna.nn.decoder import DecoderLayer
from sterna.nn.layers import SandwichNormLayer
from sterna.nn.mlp import FeedForward, GatedMLP


class Glm(Family):
    """attention_bias is of q, k and v alone."""

    MODEL_TYPES = ("glm",)
    ARCHITECTURES = ("GlmForCausalLM",)
    KEYS = "rms_norm_eps attention_bias"

    @classmethod
    def read(cls, f: Fields) -> DecoderConfig:
        return f.decoder(
            eps=("rms_norm_eps", 1.5625e-7),
            head_dim=f.positive("head_dim", 128),
            partial=0.5,
            interleaved=True,
            qkv_bias=f.flag("attention_bias", True),
        )

    @classmethod
    def mlp(cls, c: DecoderConfig, kind: LayerKind, dtype: DType) -> FeedForward:
        return GatedMLP(c.hidden_size, c.intermediate_size, dtype, act=c.act, joined=True)


class Glm4(Glm):
    """Checkpoints call the norm before the feed-forward layer post_attention_layernorm."""

    MODEL_TYPES = ("glm4",)
    ARCHITECTURES = ("Glm4ForCausalLM",)
    NAMES: ClassVar[Names] = {
        "post_attention_layernorm": "post_self_attn_layernorm",
        "pre_feedforward_layernorm": "post_attention_layernorm",
        "post_feedforward_layernorm": "post_mlp_layernorm",
    }

    @classmethod
    def layer(cls, c: DecoderConfig, kind: LayerKind, dtype: DType) -> DecoderLayer:
        return SandwichNormLayer(
            input_layernorm=cls.norm(c, dtype),
            self_attn=cls.attention(c, kind, dtype),
            post_attention_layernorm=cls.norm(c, dtype),
            pre_feedforward_layernorm=cls.norm(c, dtype),
            mlp=cls.mlp(c, kind, dtype),
            post_feedforward_layernorm=cls.norm(c, dtype),
        )
