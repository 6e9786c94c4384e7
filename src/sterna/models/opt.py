"""OPT: learned positions counted from 2, a plain ReLU between two matrices, norms before."""

from __future__ import annotations

from typing import ClassVar

from sterna.base.dtype import DType
from sterna.models.config import DecoderConfig, Fields, LayerKind
from sterna.models.family import Family, Names
from sterna.nn.decoder import Decoder, DecoderLayer
from sterna.nn.linear import Embedding
from sterna.nn.mlp import MLP, FeedForward
from sterna.nn.module import Layers

_FIRST = 2  # the row of the first position


class Opt(Family):
    """The 350M model alone has norms behind its layers and embeds in fewer dims."""

    MODEL_TYPES = ("opt",)
    ARCHITECTURES = ("OPTForCausalLM",)
    KEYS = (
        "do_layer_norm_before word_embed_proj_dim enable_bias layer_norm_elementwise_affine "
        "init_std layerdrop dropout activation_dropout"
    )
    CONFIG: ClassVar[Names] = {"intermediate_size": "ffn_dim", "hidden_act": "activation_function"}
    NAMES: ClassVar[Names] = {
        "model": "model.decoder",
        "position_embeddings": "embed_positions",
        "input_layernorm": "self_attn_layer_norm",
        "o_proj": "out_proj",
        "post_attention_layernorm": "final_layer_norm",
        "up_proj": "fc1",
        "down_proj": "fc2",
        "norm": "final_layer_norm",
    }

    @classmethod
    def read(cls, f: Fields) -> DecoderConfig:
        f.refuse_unless("do_layer_norm_before", [True])
        f.refuse_unless("word_embed_proj_dim", [f.positive("hidden_size")])
        f.refuse_unless("enable_bias", [True])
        f.refuse_unless("layer_norm_elementwise_affine", [True])
        f.refuse_unless("rope_scaling", [None])
        return f.decoder(
            layer_norm=True,
            gated=False,
            rotary=False,
            norm_eps=1e-5,
            tied=True,
            usual_act="relu",
            attention_bias=True,
            mlp_bias=True,
        )

    @classmethod
    def mlp(cls, c: DecoderConfig, kind: LayerKind, dtype: DType) -> FeedForward:
        return _LayersOwn(c.hidden_size, c.intermediate_size, dtype, act=c.act)

    @classmethod
    def decoder(cls, c: DecoderConfig, layers: Layers[DecoderLayer], dtype: DType) -> Decoder:
        tokens = Embedding(c.vocab_size, c.hidden_size, dtype)
        positions = Embedding(c.max_position_embeddings + _FIRST, c.hidden_size, dtype)
        return Decoder(
            tokens, layers, cls.norm(c, dtype), position_embeddings=positions, first_position=_FIRST
        )


class _LayersOwn(MLP):
    """Its two matrices stand in the layer itself."""

    transparent = True
