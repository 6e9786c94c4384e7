"""RWKV-7 (Goose): World, Pile and G1 models; a state in every layer, and no attention."""

from __future__ import annotations

from typing import ClassVar

from sterna.base.dtype import F32, DType
from sterna.base.errors import CheckpointError, UnsupportedModel
from sterna.models.config import Config, DecoderConfig, Fields, LayerKind
from sterna.models.family import Family, Fused, Names
from sterna.nn.decoder import Cache, Decoder, DecoderLayer
from sterna.nn.linear import Embedding
from sterna.nn.module import Layers
from sterna.nn.norm import LayerNorm
from sterna.nn.rwkv import RwkvDecoder, RwkvLayer, RwkvOptions

LONGEST = 1 << 20  # positions: a state has no end of its own, whatever length was trained


class Rwkv7(Family):
    """Names are those of flash-linear-attention's checkpoints."""

    MODEL_TYPES = ("rwkv7", "rwkv7_fla")
    ARCHITECTURES = ("RWKV7ForCausalLM",)
    KEYS = (
        "attn_mode hidden_ratio decay_low_rank_dim gate_low_rank_dim a_low_rank_dim v_low_rank_dim "
        "norm_first norm_bias norm_eps attn value_dim fuse_norm fuse_cross_entropy "
        "fuse_linear_cross_entropy use_l2warp"
    )
    CONFIG: ClassVar[Names] = {"num_attention_heads": "num_heads"}
    NAMES: ClassVar[Names] = {"embed_tokens": "embeddings", "pre_norm": "layers.0.pre_norm"}
    FUSED: ClassVar[Fused] = {}  # each product has a mixture of its own

    @classmethod
    def read_config(cls, config: Config) -> DecoderConfig:
        c = super().read_config(config)
        heads, dim, hidden = c.num_attention_heads, c.head_dim, c.hidden_size
        if heads * dim != hidden:
            raise CheckpointError(
                f"config.json gives {heads} heads of {dim} for a hidden_size of {hidden}, which "
                "they must fill"
            )
        if config.get("value_dim") not in (None, hidden, [hidden] * c.num_hidden_layers):
            raise UnsupportedModel(
                "value_dim in config.json is not that of the keys; supported: as many values as "
                f"the hidden_size of {hidden} in each layer"
            )
        return c

    @classmethod
    def read(cls, f: Fields) -> DecoderConfig:
        f.refuse_unless("attn", [None])
        f.refuse_unless("norm_first", [True])
        f.refuse_unless("norm_bias", [True])
        f.refuse_unless("hidden_act", ["sqrelu"])
        hidden, dim = f.positive("hidden_size"), f.positive("head_dim", 64, most=1024)
        inner = -(-int(hidden * f.number("hidden_ratio", 4.0)) // 32) * 32
        f = Fields(
            {
                **f.config,
                "num_attention_heads": f.positive("num_attention_heads", max(1, hidden // dim)),
                "head_dim": dim,
                "intermediate_size": f.config.get("intermediate_size") or inner,
                "max_position_embeddings": LONGEST,
            }
        )
        eps, others = f.number("norm_eps", 1e-5), f.positive("num_hidden_layers", most=4096) - 1
        return f.decoder(
            norm_eps=eps,
            usual_act="sqrelu",
            rotary=False,
            layer_norm=True,
            kinds=(LayerKind(first=True), *(LayerKind(),) * others),
            rwkv=RwkvOptions(
                hidden_size=hidden,
                heads=f.positive("num_attention_heads"),
                head_dim=dim,
                inner=f.positive("intermediate_size"),
                decay_rank=f.positive("decay_low_rank_dim", 64),
                gate_rank=f.positive("gate_low_rank_dim", 128),
                rate_rank=f.positive("a_low_rank_dim", 64),
                value_rank=f.positive("v_low_rank_dim", 16),
                norm_eps=eps,
            ),
        )

    @classmethod
    def layer(cls, c: DecoderConfig, kind: LayerKind, dtype: DType) -> DecoderLayer:
        assert c.rwkv is not None, "read gives it"
        return RwkvLayer(lambda: own_norm(c, dtype), c.rwkv, dtype, first=kind.first)

    @classmethod
    def decoder(cls, c: DecoderConfig, layers: Layers[DecoderLayer], dtype: DType) -> Decoder:
        embedding = Embedding(c.vocab_size, c.hidden_size, dtype)
        return RwkvDecoder(embedding, own_norm(c, dtype), layers, own_norm(c, dtype))

    @classmethod
    def cache(cls, c: DecoderConfig, dtype: DType) -> Cache:
        assert c.rwkv is not None, "read gives it"
        return Cache(c.num_hidden_layers, 1, c.rwkv.elements, 1, F32, planes=1, recurrent=True)


def own_norm(c: DecoderConfig, dtype: DType) -> LayerNorm:
    return LayerNorm(c.hidden_size, c.norm_eps, dtype)
