"""Qwen3: Qwen2 without biases, and with a norm of each head of the queries and keys."""

from __future__ import annotations

from sterna.base.dtype import DType
from sterna.models.config import DecoderConfig, Fields, LayerKind
from sterna.models.family import attention_options
from sterna.models.qwen2 import Qwen2, qwen_windows
from sterna.nn.attention import Attention
from sterna.nn.norm import HeadNorm


class Qwen3(Qwen2):
    """Heads are of 128 dims where the config does not say."""

    MODEL_TYPES = ("qwen3",)
    ARCHITECTURES = ("Qwen3ForCausalLM",)
    KEYS = f"{Qwen2.KEYS} attention_bias"

    @classmethod
    def read(cls, f: Fields) -> DecoderConfig:
        head_dim = f.positive("head_dim", 128)
        return f.decoder(
            attention_bias=f.flag("attention_bias"), head_dim=head_dim, kinds=qwen_windows(f)
        )

    @classmethod
    def attention(cls, c: DecoderConfig, kind: LayerKind, dtype: DType) -> Attention:
        norms = (HeadNorm(c.head_dim, c.norm_eps, dtype) for _ in "qk")
        return Attention(attention_options(c, kind, dtype), *norms)
