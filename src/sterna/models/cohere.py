"""Command-R, Aya and Command-R7B: one norm before attention and feed-forward layer, side by side.

Neighbouring dims are rotated together, and logits are scaled. The second generation gives three
layers of four a sliding window; the fourth sees everything and knows no positions.
"""

from __future__ import annotations

from typing import Any, ClassVar

from sterna.base.dtype import DType
from sterna.models.config import DecoderConfig, Fields, LayerKind
from sterna.models.family import Family, attention_options
from sterna.nn.attention import Attention
from sterna.nn.norm import HeadLayerNorm, LayerNorm, Norm


class Cohere(Family):
    """Command-R+ normalizes each head of queries and keys, with a weight for each."""

    MODEL_TYPES = ("cohere",)
    ARCHITECTURES = ("CohereForCausalLM",)
    KEYS = "layer_norm_eps logit_scale attention_bias use_qk_norm use_parallel_block use_gated_activation use_parallel_embedding rotary_pct position_embedding_type"  # noqa: E501

    THETA: ClassVar[float] = 5e5

    @classmethod
    def read(cls, f: Fields) -> DecoderConfig:
        for key in ("use_parallel_block", "use_gated_activation"):
            f.refuse_unless(key, [True])
        f.refuse_unless("use_parallel_embedding", [False])
        f.refuse_unless("rotary_pct", [1.0])
        f.refuse_unless("position_embedding_type", ["rope_gptj"])
        return f.decoder(
            layer_norm=True,
            eps=("layer_norm_eps", 1e-5),
            logit_scale=f.number("logit_scale", 0.0625),
            tied=True,
            theta=cls.THETA,
            attention_bias=f.flag("attention_bias"),
            parallel=True,
            interleaved=True,
            head_norms=f.flag("use_qk_norm"),
            **cls.own(f),
        )

    @classmethod
    def own(cls, f: Fields) -> dict[str, Any]:
        """What the second generation reads beside."""
        return {}

    @classmethod
    def norm(cls, c: DecoderConfig, dtype: DType) -> Norm:
        return LayerNorm(c.hidden_size, c.norm_eps, dtype, bias=False)

    @classmethod
    def attention(cls, c: DecoderConfig, kind: LayerKind, dtype: DType) -> Attention:
        heads = (c.num_attention_heads, c.num_key_value_heads) if c.head_norms else ()
        norms = (HeadLayerNorm(count, c.head_dim, c.norm_eps, dtype) for count in heads)
        return Attention(attention_options(c, kind, dtype), *norms)


class Cohere2(Cohere):
    """Layers without a window have no rotary embedding either."""

    MODEL_TYPES = ("cohere2",)
    THETA = 1e4
    ARCHITECTURES = ("Cohere2ForCausalLM",)
    KEYS = f"{Cohere.KEYS} sliding_window sliding_window_pattern layer_types order_of_interleaved_layers layer_switch"  # noqa: E501

    @classmethod
    def own(cls, f: Fields) -> dict[str, Any]:
        f.refuse_unless("order_of_interleaved_layers", ["local_attn_first"])
        window = f.window("sliding_window", 4096)
        period = f.positive("sliding_window_pattern", f.positive("layer_switch", 4))
        sliding = f.sliding(lambda i: (i + 1) % period != 0)
        return {"kinds": [LayerKind(window) if s else LayerKind(rope=None) for s in sliding]}
