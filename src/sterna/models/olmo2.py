"""OLMo 2 and 3: norms after each half layer, and of all queries and all keys of a token.

OLMo 3 gives three layers of four a sliding window; only the others stretch their positions.
"""

from __future__ import annotations

from typing import Any

from sterna.base.dtype import DType
from sterna.models.config import DecoderConfig, Fields, LayerKind
from sterna.models.family import Family, attention_options
from sterna.models.rope_options import of_layers, rope_options
from sterna.models.rope_scaling import RopeOptions
from sterna.nn.attention import Attention
from sterna.nn.decoder import DecoderLayer
from sterna.nn.layers import PostNormLayer
from sterna.nn.norm import RMSNorm


class Olmo2(Family):
    """The stream itself is never normalized before a layer."""

    MODEL_TYPES = ("olmo2",)
    ARCHITECTURES = ("Olmo2ForCausalLM",)
    KEYS = "rms_norm_eps attention_bias"

    @classmethod
    def read(cls, f: Fields) -> DecoderConfig:
        bias = f.flag("attention_bias")
        return f.decoder(eps=("rms_norm_eps", 1e-5), attention_bias=bias, **cls.own(f))

    @classmethod
    def own(cls, f: Fields) -> dict[str, Any]:
        """What OLMo 3 reads beside."""
        return {}

    @classmethod
    def layer(cls, c: DecoderConfig, kind: LayerKind, dtype: DType) -> DecoderLayer:
        options = attention_options(c, kind, dtype)
        norms = (RMSNorm(w, c.norm_eps, dtype) for w in (options.width, options.kv_width))
        attention = Attention(options, *norms)
        return PostNormLayer(
            attention, cls.norm(c, dtype), cls.mlp(c, kind, dtype), cls.norm(c, dtype)
        )


class Olmo3(Olmo2):
    """Every fourth layer sees everything."""

    MODEL_TYPES = ("olmo3",)
    ARCHITECTURES = ("Olmo3ForCausalLM",)
    KEYS = f"{Olmo2.KEYS} sliding_window layer_types"

    @classmethod
    def own(cls, f: Fields) -> dict[str, Any]:
        window = f.window("sliding_window", 4096)
        whole = rope_options(of_layers(f.config, "full_attention"), theta=5e5)
        local = RopeOptions(theta=whole.theta)
        if "sliding_attention" in (f.config.get("rope_parameters") or {}):  # type: ignore[operator]
            local = rope_options(of_layers(f.config, "sliding_attention"))
        sliding = f.sliding(lambda i: (i + 1) % 4 != 0)
        return {
            "kinds": [LayerKind(window, rope=1) if s else LayerKind() for s in sliding],
            "rope": whole,
            "local_rope": local,
        }
