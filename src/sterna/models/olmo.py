"""OLMo 1: Llama's layers with LayerNorms that learn nothing; q, k and v may be clipped."""

from __future__ import annotations

from sterna.base.dtype import DType
from sterna.models.config import DecoderConfig, Fields, LayerKind
from sterna.models.family import Family, attention_options
from sterna.nn.attention import Attention
from sterna.nn.norm import LayerNorm, Norm


class Olmo(Family):
    """The norms have neither weight nor bias, so checkpoints hold none."""

    MODEL_TYPES = ("olmo",)
    ARCHITECTURES = ("OlmoForCausalLM",)
    KEYS = "attention_bias clip_qkv"

    @classmethod
    def read(cls, f: Fields) -> DecoderConfig:
        clip = 0.0 if f.config.get("clip_qkv") is None else f.number("clip_qkv", 0.0)
        return f.decoder(norm_eps=1e-5, attention_bias=f.flag("attention_bias"), qkv_clip=clip)

    @classmethod
    def norm(cls, c: DecoderConfig, dtype: DType) -> Norm:
        return LayerNorm(c.hidden_size, c.norm_eps, dtype, weight=False, bias=False)

    @classmethod
    def attention(cls, c: DecoderConfig, kind: LayerKind, dtype: DType) -> Attention:
        return Attention(attention_options(c, kind, dtype, clip=c.qkv_clip))
