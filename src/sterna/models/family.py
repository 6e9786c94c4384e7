"""What a family of checkpoints is: a class with tables, a reader of its config and its layers.

A family file defines one subclass of Family and nothing that another file needs to know of. The
rest of the compiler asks `models.family(config)` for it and uses what is public here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from sterna.base.dtype import DType
from sterna.base.errors import UnsupportedModel
from sterna.models.config import COMMON, Config, DecoderConfig, Fields, LayerKind
from sterna.models.rope_scaling import inv_freq, rotary_dim
from sterna.nn.attention import Attention, AttentionOptions, SelfAttention
from sterna.nn.decoder import (
    NO_NAMES,
    Cache,
    CausalLM,
    Decoder,
    DecoderLayer,
    EmbeddingModel,
    Rope,
    States,
)
from sterna.nn.latent import LatentAttention
from sterna.nn.layers import ParallelLayer, PreNormLayer
from sterna.nn.linear import Embedding, Linear
from sterna.nn.mlp import MLP, FeedForward, GatedMLP
from sterna.nn.module import Layers
from sterna.nn.moe import MixtureOfExperts
from sterna.nn.norm import LayerNorm, Norm, RMSNorm
from sterna.nn.vision import Sight

PAGE_SIZE = 16

Names = Mapping[str, str]
Fused = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Stack:
    """What one tensor of a checkpoint holds of every expert: `parts` beside each other.

    Their rows follow part by part, or `alternate`. `by_rows` says that an expert's matrix is
    [out, in] as elsewhere, and not the other way round.
    """

    parts: tuple[str, ...]
    alternate: bool = False
    by_rows: bool = False


class Family:
    """Subclasses say what differs from a decoder with Llama's names.

    `NAMES` maps a component of a weight's path here to the checkpoint's; `CONFIG` a key of
    config.json here to the checkpoint's. `KEYS` are the keys `read` understands beside the common
    ones. `FUSED` lists weights that are stored stacked along the rows, `EXPERTS` what checkpoints
    call one expert's part of a weight, `STACKED` tensors that hold the parts of all experts,
    `IGNORED` patterns of tensors that checkpoints store though nothing reads them ("{layers}" is
    the number of layers), `TRANSPOSED` the last components of layers whose weights they store as
    [in, out], `PREFIXES` how some files begin a name, and how it begins here.
    """

    MODEL_TYPES: ClassVar[tuple[str, ...]] = ()
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ()
    KEYS: ClassVar[str] = ""
    CONFIG: ClassVar[Names] = NO_NAMES
    NAMES: ClassVar[Names] = NO_NAMES
    FUSED: ClassVar[Fused] = MappingProxyType(
        {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
    )
    EXPERTS: ClassVar[Names] = MappingProxyType(
        {f"{part}_experts": f"experts.{{}}.{part}_proj" for part in ("gate", "up", "down")}
    )
    STACKED: ClassVar[Mapping[str, Stack]] = MappingProxyType({})
    IGNORED: ClassVar[tuple[str, ...]] = ("*.rotary_emb.inv_freq",)
    TRANSPOSED: ClassVar[tuple[str, ...]] = ()
    PREFIXES: ClassVar[Names] = NO_NAMES

    @classmethod
    def read_config(cls, config: Config) -> DecoderConfig:
        """config.json to a DecoderConfig; UnsupportedModel for what the layers do not do."""
        own = {key: config[name] for key, name in cls.CONFIG.items() if name in config}
        fields = Fields({**config, **own})
        fields.refuse_architectures_but(cls.ARCHITECTURES)
        fields.refuse_others((*COMMON, *cls.KEYS.split(), *cls.CONFIG.values()))
        return cls.read(fields)

    @classmethod
    def read(cls, f: Fields) -> DecoderConfig:
        """The DecoderConfig of keys that are all known."""
        raise NotImplementedError

    @classmethod
    def layer(cls, c: DecoderConfig, kind: LayerKind, dtype: DType) -> DecoderLayer:
        """A layer of a kind, its weights stored as `dtype`: Llama's form, or GPT-J's."""
        norm, attention = cls.norm(c, dtype), cls.attention(c, kind, dtype)
        mlp = cls.mlp(c, kind, dtype)
        if c.parallel:
            return ParallelLayer(norm, attention, mlp, cls.norm(c, dtype) if c.two_norms else None)
        return PreNormLayer(norm, attention, cls.norm(c, dtype), mlp, scale=c.residual_scale)

    @classmethod
    def attention(cls, c: DecoderConfig, kind: LayerKind, dtype: DType) -> SelfAttention:
        """Attention as the config states it."""
        if c.latent is not None:
            return LatentAttention(
                c.hidden_size,
                c.num_attention_heads,
                c.latent,
                dtype,
                scale=c.query_scale,
                interleaved=c.interleaved,
                bias=c.qkv_bias,
            )
        return Attention(attention_options(c, kind, dtype))

    @classmethod
    def mlp(cls, c: DecoderConfig, kind: LayerKind, dtype: DType) -> FeedForward:
        """The feed-forward layer that the config states, gated or not."""
        if kind.experts and c.experts is not None:
            return MixtureOfExperts(c.hidden_size, c.experts, dtype, act=c.act)
        form = GatedMLP if c.gated else MLP
        return form(c.hidden_size, c.intermediate_size, dtype, act=c.act, bias=c.mlp_bias)

    @classmethod
    def norm(cls, c: DecoderConfig, dtype: DType) -> Norm:
        """The norm of hidden states."""
        kind = LayerNorm if c.layer_norm else RMSNorm
        return kind(c.hidden_size, c.norm_eps, dtype)

    @classmethod
    def decoder(cls, c: DecoderConfig, layers: Layers[DecoderLayer], dtype: DType) -> Decoder:
        """Embedding, layers and norm."""
        embedding = Embedding(c.vocab_size, c.hidden_size, dtype)
        norm = cls.norm(c, dtype)
        return Decoder(embedding, layers, norm, embedding_scale=c.embedding_scale)

    @classmethod
    def build(cls, config: Config, dtype: DType, context_length: int | None = None) -> CausalLM:
        """The model of a config.json, its weights stored as `dtype`."""
        c = cls.read_config(config)
        kinds = list(dict.fromkeys(c.kinds))
        layers = Layers(
            [cls.layer(c, kind, dtype) for kind in kinds], [kinds.index(kind) for kind in c.kinds]
        )
        tables = (inv_freq(r, rotary_dim(r, c.head_dim), context_length) for r in c.ropes)
        ropes = tuple(Rope(*table, c.rope_sections) for table in tables)
        cache = cls.cache(c, dtype)
        decoder = cls.decoder(c, layers, dtype)
        if c.pooling is not None:
            return EmbeddingModel(decoder, cache, ropes, causal=c.causal, names=cls.names(c))
        head = Linear(c.hidden_size, c.vocab_size, dtype, bias=c.head_bias, kind="head")
        return CausalLM(
            decoder,
            None if c.tie_word_embeddings else head,
            cache,
            ropes,
            logit_scale=c.logit_scale,
            logit_softcap=c.logit_softcap,
            names=cls.names(c),
            sight=cls.sight(c, dtype),
        )

    @classmethod
    def sight(cls, c: DecoderConfig, dtype: DType) -> Sight | None:
        """What looks at images; most families have nothing."""
        return None

    @classmethod
    def names(cls, c: DecoderConfig) -> Names:
        """NAMES as they are for a config."""
        return cls.NAMES

    @classmethod
    def cache(cls, c: DecoderConfig, dtype: DType) -> Cache:
        """What is kept of a token: keys and values of each layer's heads, or its latents."""
        if c.latent is not None:
            return Cache(c.num_hidden_layers, 1, c.latent.slot, PAGE_SIZE, dtype, planes=1)
        return Cache(c.num_hidden_layers, c.num_key_value_heads, c.head_dim, PAGE_SIZE, dtype)

    @classmethod
    def hybrid_cache(cls, c: DecoderConfig, elements: int, dtype: DType) -> Cache:
        """Keys and values of the layers that attend, and `elements` of state in each other."""
        recurrent = sum(kind.recurrent for kind in c.kinds)
        if not 0 < recurrent < len(c.kinds):
            raise UnsupportedModel(
                f"{recurrent} of {len(c.kinds)} layers in config.json are recurrent; this family "
                "is supported with some layers of each kind"
            )
        attending, states = len(c.kinds) - recurrent, States(recurrent, elements)
        heads, dim = c.num_key_value_heads, c.head_dim
        return Cache(attending, heads, dim, PAGE_SIZE, dtype, states=states)

    @classmethod
    def expert_names(cls, path: str, count: int) -> tuple[str, ...]:
        """What checkpoints call the parts of a weight that holds those of all experts."""
        module, _, leaf = path.rpartition(".")
        prefix, _, own = module.rpartition(".")
        return tuple(f"{prefix}.{cls.EXPERTS[own].format(e)}.{leaf}" for e in range(count))

    @classmethod
    def tied(cls) -> tuple[str, str]:
        """(head, embedding): one tensor where the config ties them."""
        paths = ("lm_head.weight", "model.embed_tokens.weight")
        head, embedding = (".".join(cls.NAMES.get(p, p) for p in path.split(".")) for path in paths)
        return head, embedding


def attention_options(
    c: DecoderConfig, kind: LayerKind, dtype: DType, **own: object
) -> AttentionOptions:
    """The options of a layer's attention that its config states; `own` are a family's."""
    stated: dict[str, object] = {
        "hidden_size": c.hidden_size,
        "num_heads": c.num_attention_heads,
        "num_kv_heads": c.num_key_value_heads,
        "head_dim": c.head_dim,
        "dtype": dtype,
        "qkv_bias": c.qkv_bias,
        "output_bias": c.output_bias,
        "window": kind.window,
        "chunk": kind.chunk,
        "sinks": c.attention_sinks,
        "scale": c.query_scale or None,
        "softcap": c.score_softcap,
        "rope": kind.rope if c.rotary else None,
        "interleaved": c.interleaved,
        "projections": c.projections,
    }
    return AttentionOptions(**{**stated, **own})  # type: ignore[arg-type]
