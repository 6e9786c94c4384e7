"""Qwen1.5, Qwen2 and Qwen2.5: Llama's layers with biases on q, k and v."""

from __future__ import annotations

from typing import ClassVar

from sterna.models.config import DecoderConfig, Fields, LayerKind
from sterna.models.family import Family, Fused


class Qwen2(Family):
    """Upper layers may have a sliding window; no published model switches it on."""

    MODEL_TYPES: ClassVar[tuple[str, ...]] = ("qwen2",)
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("Qwen2ForCausalLM",)
    KEYS = "rms_norm_eps use_sliding_window sliding_window max_window_layers layer_types"
    FUSED: ClassVar[Fused] = {
        "c_attn": ("q_proj", "k_proj", "v_proj"),
        "gate_up_proj": ("gate_proj", "up_proj"),
    }

    @classmethod
    def read(cls, f: Fields) -> DecoderConfig:
        return f.decoder(qkv_bias=True, kinds=qwen_windows(f))


def qwen_windows(f: Fields) -> list[LayerKind]:
    """A window from layer `max_window_layers` on, if the config says to use it."""
    used = f.flag("use_sliding_window") and f.config.get("sliding_window") is not None
    window = f.positive("sliding_window") if used else -1
    first = f.positive("max_window_layers", 28) if used else 0
    return [
        LayerKind(window=window if sliding else -1)
        for sliding in f.sliding(lambda i: i >= first, used=used)
    ]
