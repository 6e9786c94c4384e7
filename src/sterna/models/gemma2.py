"""Gemma 2 and 3 (text): norms before and after each half layer; most layers see a window only.

Gemma 2 bends scores and logits by tanh. Gemma 3 normalizes the heads of queries and keys instead,
and rotates layers with a window by other frequencies than those that see everything.
"""

from __future__ import annotations

from typing import Any, ClassVar

from sterna.base.dtype import DType
from sterna.models.config import DecoderConfig, Fields, LayerKind
from sterna.models.family import Names, attention_options
from sterna.models.gemma import Gemma, gemma_act
from sterna.models.rope_options import of_layers, rope_options
from sterna.models.rope_scaling import RopeOptions
from sterna.nn.attention import Attention
from sterna.nn.decoder import DecoderLayer
from sterna.nn.layers import SandwichNormLayer
from sterna.nn.norm import HeadNorm


class Gemma2(Gemma):
    """Every second layer has the window, the first one included."""

    MODEL_TYPES: ClassVar[tuple[str, ...]] = ("gemma2",)
    ARCHITECTURES = ("Gemma2ForCausalLM",)
    KEYS = f"{Gemma.KEYS} layer_types sliding_window query_pre_attn_scalar attn_logit_softcapping final_logit_softcapping"  # noqa: E501

    @classmethod
    def read(cls, f: Fields) -> DecoderConfig:
        return f.decoder(
            head_dim=f.positive("head_dim", 256),
            tied=True,
            act=gemma_act(f),
            attention_bias=f.flag("attention_bias"),
            embedding_scale=f.positive("hidden_size") ** 0.5,
            query_scale=f.number("query_pre_attn_scalar", 256.0) ** -0.5,
            score_softcap=cls.cap(f, "attn_logit_softcapping", 50.0),
            logit_softcap=cls.cap(f, "final_logit_softcapping", 30.0),
            **cls.own(f),
        )

    @classmethod
    def cap(cls, f: Fields, key: str, default: float) -> float:
        """A bound that null switches off."""
        given = f.config.get(key, default)
        return 0.0 if given is None else f.number(key, default)

    @classmethod
    def own(cls, f: Fields) -> dict[str, Any]:
        window = f.window("sliding_window", 4096)
        sliding = f.sliding(lambda i: i % 2 == 0)
        return {"kinds": [LayerKind(window=window if s else -1) for s in sliding]}

    @classmethod
    def layer(cls, c: DecoderConfig, kind: LayerKind, dtype: DType) -> DecoderLayer:
        return SandwichNormLayer(
            cls.norm(c, dtype),
            cls.attention(c, kind, dtype),
            cls.norm(c, dtype),
            cls.norm(c, dtype),
            cls.mlp(c, kind, dtype),
            cls.norm(c, dtype),
        )


class Gemma3(Gemma2):
    """Every sixth layer sees everything."""

    MODEL_TYPES = ("gemma3_text", "gemma3")
    ARCHITECTURES = ("Gemma3ForCausalLM",)
    KEYS = (
        f"{Gemma2.KEYS} sliding_window_pattern _sliding_window_pattern rope_local_base_freq "
        "global_local_attention_pattern"
    )
    CONFIG: ClassVar[Names] = {"sliding_window": "sliding_window_attention_size"}

    @classmethod
    def cap(cls, f: Fields, key: str, default: float) -> float:
        return super().cap(f, key, default) if f.config.get(key) is not None else 0.0

    @classmethod
    def own(cls, f: Fields) -> dict[str, Any]:
        window = f.window("sliding_window", 4096)
        period = f.positive("sliding_window_pattern", f.positive("_sliding_window_pattern", 6))
        sliding = f.sliding(lambda i: (i + 1) % period != 0)
        pattern = ["SLIDING_LOCAL"] * (period - 1) + ["GLOBAL"]
        f.refuse_unless("global_local_attention_pattern", [pattern])
        local = RopeOptions(theta=f.number("rope_local_base_freq", 10000.0))
        if "sliding_attention" in (f.config.get("rope_parameters") or {}):  # type: ignore[operator]
            local = rope_options(of_layers(f.config, "sliding_attention"))
        return {
            "kinds": [LayerKind(window, rope=1) if s else LayerKind() for s in sliding],
            "rope": rope_options(of_layers(f.config, "full_attention"), theta=1e6),
            "local_rope": local,
        }

    @classmethod
    def attention(cls, c: DecoderConfig, kind: LayerKind, dtype: DType) -> Attention:
        norms = (HeadNorm(c.head_dim, c.norm_eps, dtype, offset=1.0) for _ in "qk")
        return Attention(attention_options(c, kind, dtype), *norms)
