"""GLM-4.5 and 4.6: grouped-query attention with half of each head rotated, and V3's experts."""

from __future__ import annotations

from typing import ClassVar

from sterna.base.dtype import DType
from sterna.models.config import DecoderConfig, Fields, LayerKind
from sterna.models.deepseek import EXPERT_KEYS, corrected_experts, dense_then_experts
from sterna.models.family import Family, Names, attention_options
from sterna.nn.attention import Attention
from sterna.nn.norm import HeadNorm


class Glm4Moe(Family):
    """Norms of heads are an option; attention_bias is of q, k and v alone."""

    MODEL_TYPES = ("glm4_moe",)
    ARCHITECTURES = ("Glm4MoeForCausalLM",)
    KEYS = f"{EXPERT_KEYS} rms_norm_eps attention_bias use_qk_norm"
    NAMES: ClassVar[Names] = {"shared_expert": "shared_experts"}
    IGNORED = (*Family.IGNORED, "model.layers.{layers}.*")

    @classmethod
    def read(cls, f: Fields) -> DecoderConfig:
        return f.decoder(
            eps=("rms_norm_eps", 1e-5),
            kv_heads=8,
            partial=0.5,
            qkv_bias=f.flag("attention_bias"),
            head_norms=f.flag("use_qk_norm"),
            kinds=dense_then_experts(f, 1),
            experts=corrected_experts(f, 128),
        )

    @classmethod
    def attention(cls, c: DecoderConfig, kind: LayerKind, dtype: DType) -> Attention:
        norms = (HeadNorm(c.head_dim, c.norm_eps, dtype) for _ in "qk" if c.head_norms)
        return Attention(attention_options(c, kind, dtype), *norms)
