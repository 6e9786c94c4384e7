"""InternLM 2 and 2.5: Llama's layers under other names, q, k and v in one matrix by group."""

from __future__ import annotations

from typing import ClassVar

from sterna.models.config import DecoderConfig, Fields
from sterna.models.family import Family, Fused, Names


class InternLM2(Family):
    """Each group of query heads is followed by its key head and its value head."""

    MODEL_TYPES = ("internlm2",)
    ARCHITECTURES = ("InternLM2ForCausalLM",)
    KEYS = "rms_norm_eps bias"
    NAMES: ClassVar[Names] = {
        "embed_tokens": "tok_embeddings",
        "input_layernorm": "attention_norm",
        "self_attn": "attention",
        "qkv_proj": "wqkv",
        "o_proj": "wo",
        "post_attention_layernorm": "ffn_norm",
        "mlp": "feed_forward",
        "gate_proj": "w1",
        "up_proj": "w3",
        "down_proj": "w2",
        "lm_head": "output",
    }
    FUSED: ClassVar[Fused] = {"gate_up_proj": ("w1", "w3")}

    @classmethod
    def read(cls, f: Fields) -> DecoderConfig:
        return f.decoder(attention_bias=f.flag("bias"), projections="grouped")
