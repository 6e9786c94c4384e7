"""StableLM 3B, Zephyr and StableLM 2 1.6B: LayerNorms, and a quarter of each head rotated."""

from __future__ import annotations

from sterna.models.config import DecoderConfig, Fields
from sterna.models.family import Family


class StableLM(Family):
    """Biases on q, k, v are an option; norms of heads, as the 12B model has them, are refused."""

    MODEL_TYPES = ("stablelm",)
    ARCHITECTURES = ("StableLmForCausalLM",)
    KEYS = "layer_norm_eps use_qkv_bias qk_layernorm use_parallel_residual"

    @classmethod
    def read(cls, f: Fields) -> DecoderConfig:
        f.refuse_unless("qk_layernorm", [False, None])
        f.refuse_unless("use_parallel_residual", [False, None])
        return f.decoder(
            layer_norm=True,
            eps=("layer_norm_eps", 1e-5),
            partial=0.25,
            qkv_bias=f.flag("use_qkv_bias"),
        )
