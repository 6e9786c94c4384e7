"""Granite 3 (dense): Llama's layers; embeddings, scores, residuals and logits are scaled."""

from __future__ import annotations

from sterna.models.config import DecoderConfig, Fields
from sterna.models.family import Family


class Granite(Family):
    """attention_multiplier takes the place of 1 / sqrt(head_dim); logits are divided."""

    MODEL_TYPES = ("granite",)
    ARCHITECTURES = ("GraniteForCausalLM",)
    KEYS = (
        "rms_norm_eps attention_bias mlp_bias embedding_multiplier logits_scaling "
        "residual_multiplier attention_multiplier"
    )

    @classmethod
    def read(cls, f: Fields) -> DecoderConfig:
        return f.decoder(
            attention_bias=f.flag("attention_bias"),
            mlp_bias=f.flag("mlp_bias"),
            embedding_scale=f.number("embedding_multiplier", 1.0),
            logit_scale=1.0 / f.number("logits_scaling", 1.0),
            residual_scale=f.number("residual_multiplier", 1.0),
            query_scale=f.number("attention_multiplier", 1.0),
        )
