"""BERT and what shares its encoder: MiniLM, BGE, E5, GTE; embeddings of texts.

A checkpoint of sentence-transformers says how vectors of tokens become one; without a word it is
their mean, as there. Heads that checkpoints have besides are not read.
"""

from __future__ import annotations

from typing import ClassVar

from sterna.base.dtype import DType
from sterna.models.config import DecoderConfig, Fields, LayerKind
from sterna.models.family import Family, Fused, Names
from sterna.nn.decoder import Decoder, DecoderLayer
from sterna.nn.encoder import Encoder
from sterna.nn.layers import NormedSumLayer
from sterna.nn.linear import Embedding
from sterna.nn.module import Layers


class Bert(Family):
    """Learned positions; every token sees the whole text; norms after each sum."""

    MODEL_TYPES = ("bert",)
    ARCHITECTURES = ("BertModel", "BertForMaskedLM")
    KEYS = "layer_norm_eps type_vocab_size position_embedding_type"
    NAMES: ClassVar[Names] = {
        "model": "bert",
        "embed_tokens": "embeddings.word_embeddings",
        "position_embeddings": "embeddings.position_embeddings",
        "type_embeddings": "embeddings.token_type_embeddings",
        "norm": "embeddings.LayerNorm",
        "layers": "encoder.layer",
        "self_attn": "attention",
        "q_proj": "self.query",
        "k_proj": "self.key",
        "v_proj": "self.value",
        "o_proj": "output.dense",
        "post_attention_layernorm": "attention.output.LayerNorm",
        "up_proj": "intermediate.dense",
        "down_proj": "output.dense",
        "post_feedforward_layernorm": "output.LayerNorm",
    }
    FUSED: ClassVar[Fused] = {"qkv": ("query", "key", "value")}
    IGNORED = ("*pooler.dense.*", "*embeddings.position_ids", "cls.*")

    @classmethod
    def read(cls, f: Fields) -> DecoderConfig:
        f.refuse_unless("position_embedding_type", ["absolute"])
        f.refuse_unless("is_decoder", [False])
        f.refuse_unless("rope_scaling", [None])
        return f.decoder(
            eps=("layer_norm_eps", 1e-12),
            layer_norm=True,
            gated=False,
            causal=False,
            rotary=False,
            tied=True,
            positions=512,
            usual_act="gelu",
            usual_pooling="mean",
            qkv_bias=True,
            output_bias=True,
            mlp_bias=True,
            token_types=f.positive("type_vocab_size", 2),
        )

    @classmethod
    def layer(cls, c: DecoderConfig, kind: LayerKind, dtype: DType) -> DecoderLayer:
        mlp = cls.mlp(c, kind, dtype)
        mlp.transparent = True
        norms = (cls.norm(c, dtype) for _ in range(2))
        return NormedSumLayer(cls.attention(c, kind, dtype), next(norms), mlp, next(norms))

    @classmethod
    def decoder(cls, c: DecoderConfig, layers: Layers[DecoderLayer], dtype: DType) -> Decoder:
        tokens, positions, types = (
            Embedding(rows, c.hidden_size, dtype)
            for rows in (c.vocab_size, c.max_position_embeddings, c.token_types)
        )
        return Encoder(tokens, positions, types, cls.norm(c, dtype), layers)
