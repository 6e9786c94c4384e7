"""Gemma 1: Llama's layers with GELU, norms that scale by 1 + weight, and scaled embeddings.

Heads are as wide as the config says, whatever the hidden size; the embedding is the head too.
"""

from __future__ import annotations

from typing import ClassVar

from sterna.base.dtype import DType
from sterna.models.config import DecoderConfig, Fields
from sterna.models.family import Family
from sterna.nn.norm import Norm, RMSNorm


class Gemma(Family):
    """hidden_act "gelu" of the first files means the tanh approximation of training."""

    MODEL_TYPES: ClassVar[tuple[str, ...]] = ("gemma",)
    ARCHITECTURES = ("GemmaForCausalLM",)
    KEYS = "rms_norm_eps attention_bias hidden_activation"

    @classmethod
    def read(cls, f: Fields) -> DecoderConfig:
        return f.decoder(
            head_dim=f.positive("head_dim", 256),
            tied=True,
            act=gemma_act(f),
            attention_bias=f.flag("attention_bias"),
            embedding_scale=f.positive("hidden_size") ** 0.5,
        )

    @classmethod
    def norm(cls, c: DecoderConfig, dtype: DType) -> Norm:
        return RMSNorm(c.hidden_size, c.norm_eps, dtype, offset=1.0)


def gemma_act(f: Fields) -> str:
    """The activation; "gelu" is what later files call gelu_pytorch_tanh."""
    key = "hidden_activation" if f.config.get("hidden_activation") else "hidden_act"
    found = f.activation(key, "gelu_pytorch_tanh")
    return "gelu_tanh" if found == "gelu" else found
