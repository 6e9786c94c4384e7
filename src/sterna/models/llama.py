"""Llama 1, 2, 3, 3.1, 3.2 and what shares their forward pass: TinyLlama, SmolLM, Mistral.

Pre-norm layers of grouped-query attention with rotary embedding and a SwiGLU feed-forward.
"""

from __future__ import annotations

from typing import ClassVar

from sterna.models.config import DecoderConfig, Fields, LayerKind
from sterna.models.family import Family


class Llama(Family):
    """Llama itself; the config may ask for biases of attention and of the feed-forward layer."""

    MODEL_TYPES = ("llama",)
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("LlamaForCausalLM", "MistralForCausalLM")
    KEYS = "rms_norm_eps attention_bias mlp_bias sliding_window attention_sink_size"

    @classmethod
    def read(cls, f: Fields) -> DecoderConfig:
        f.refuse_unless("hidden_act", ["silu", "swish"])
        return f.decoder(
            attention_bias=f.flag("attention_bias"),
            mlp_bias=f.flag("mlp_bias"),
            attention_sinks=f.positive("attention_sink_size", 0),
            **cls.own(f),
        )

    @classmethod
    def own(cls, f: Fields) -> dict[str, object]:
        """What Llama's descendants read otherwise; Llama itself has no window."""
        return {}


class Mistral(Llama):
    """Llama with a sliding window."""

    MODEL_TYPES = ("mistral",)

    @classmethod
    def own(cls, f: Fields) -> dict[str, object]:
        return {"kinds": LayerKind(window=f.window("sliding_window", 4096)), "kv_heads": 8}
