"""Phi-3, Phi-3.5, Phi-4 and Phi-4-mini: Llama's layers from stacked weights.

Long contexts use LongRoPE; Phi-4-mini rotates three quarters of a head.
"""

from __future__ import annotations

from sterna.base.dtype import DType
from sterna.models.config import DecoderConfig, Fields, LayerKind
from sterna.models.family import Family
from sterna.nn.mlp import FeedForward, GatedMLP


class Phi3(Family):
    """Checkpoints hold q, k, v as one matrix, and gate and up as another."""

    MODEL_TYPES = ("phi3",)
    ARCHITECTURES = ("Phi3ForCausalLM",)
    KEYS = "rms_norm_eps attention_bias sliding_window"

    @classmethod
    def read(cls, f: Fields) -> DecoderConfig:
        f.refuse_unless("attention_bias", [False, None])
        window = f.window("sliding_window", -1) if "sliding_window" in f.config else -1
        return f.decoder(
            eps=("rms_norm_eps", 1e-5),
            projections="joined",
            partial=1.0,
            kinds=LayerKind(window=window),
        )

    @classmethod
    def mlp(cls, c: DecoderConfig, kind: LayerKind, dtype: DType) -> FeedForward:
        return GatedMLP(c.hidden_size, c.intermediate_size, dtype, act=c.act, joined=True)
