"""GPT-2 and GPT-BigCode (StarCoder 1, SantaCoder): learned positions, LayerNorms, plain GELU.

GPT-2's checkpoints hold its weights as [in, out]; GPT-BigCode's have one key-value head.
"""

from __future__ import annotations

from typing import ClassVar

from sterna.base.dtype import DType
from sterna.models.config import GPT_KEYS, GPT_NAMES, DecoderConfig, Fields
from sterna.models.family import Family, Names
from sterna.nn.decoder import Decoder, DecoderLayer
from sterna.nn.linear import Embedding
from sterna.nn.module import Layers


class GPT2(Family):
    """Learned positions end where the context ends."""

    MODEL_TYPES = ("gpt2",)
    ARCHITECTURES = ("GPT2LMHeadModel",)
    KEYS = "layer_norm_epsilon scale_attn_by_inverse_layer_idx reorder_and_upcast_attn output_past"
    CONFIG = GPT_KEYS
    NAMES: ClassVar[Names] = {
        **GPT_NAMES,
        "position_embeddings": "wpe",
        "qkv_proj": "c_attn",
        "o_proj": "c_proj",
        "post_attention_layernorm": "ln_2",
        "up_proj": "c_fc",
        "down_proj": "c_proj",
    }
    IGNORED = ("*.attn.bias", "*.attn.masked_bias")
    TRANSPOSED: ClassVar[tuple[str, ...]] = ("c_attn", "c_proj", "c_fc")

    @classmethod
    def read(cls, f: Fields) -> DecoderConfig:
        f.refuse_unless("scale_attn_weights", [True])
        f.refuse_unless("rope_scaling", [None])
        f.refuse_unless("scale_attn_by_inverse_layer_idx", [False])
        return f.decoder(
            inner=4 * f.positive("hidden_size"),
            layer_norm=True,
            gated=False,
            projections="joined",
            eps=("layer_norm_epsilon", 1e-5),
            positions=1024,
            rotary=False,
            tied=True,
            usual_act="gelu_new",
            qkv_bias=True,
            output_bias=True,
            mlp_bias=True,
            kv_heads=cls.kv_heads(f),
        )

    @classmethod
    def kv_heads(cls, f: Fields) -> int:
        """As many key-value heads as query heads."""
        return f.positive("num_attention_heads")

    @classmethod
    def decoder(cls, c: DecoderConfig, layers: Layers[DecoderLayer], dtype: DType) -> Decoder:
        tokens, positions = (
            Embedding(rows, c.hidden_size, dtype)
            for rows in (c.vocab_size, c.max_position_embeddings)
        )
        return Decoder(tokens, layers, cls.norm(c, dtype), position_embeddings=positions)


class GPTBigCode(GPT2):
    """Queries of all heads, then one key and one value; weights as [out, in]."""

    MODEL_TYPES = ("gpt_bigcode",)
    ARCHITECTURES = ("GPTBigCodeForCausalLM",)
    KEYS = (
        f"{GPT2.KEYS} multi_query attention_softmax_in_fp32 scale_attention_softmax_in_fp32 "
        "inference_runner validate_runner_input pre_allocate_kv_cache pad_key_length "
        "max_batch_size runner_max_sequence_length"
    )
    TRANSPOSED = ()

    @classmethod
    def kv_heads(cls, f: Fields) -> int:
        f.refuse_unless("multi_query", [True])
        return 1
