"""Falcon 7B, 40B and 180B: attention and feed-forward layer side by side, few key heads or one.

The larger ones have a norm for each of the two. q, k and v of a group of heads stand together.
"""

from __future__ import annotations

from typing import ClassVar

from sterna.models.config import GPT_NAMES, MEGATRON_NAMES, DecoderConfig, Fields
from sterna.models.family import Family, Names


class Falcon(Family):
    """The first files call the type RefinedWeb, and do not name the architecture."""

    MODEL_TYPES = ("falcon", "RefinedWeb", "RefinedWebModel")
    ARCHITECTURES = ("FalconForCausalLM", "RWForCausalLM")
    KEYS = (
        "layer_norm_epsilon alibi bias multi_query new_decoder_architecture parallel_attn "
        "num_kv_heads n_head_kv apply_residual_connection_post_layernorm num_ln_in_parallel_attn"
    )
    CONFIG: ClassVar[Names] = {
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
        "intermediate_size": "ffn_hidden_size",
        "hidden_act": "activation",
    }
    NAMES: ClassVar[Names] = {
        **GPT_NAMES,
        **MEGATRON_NAMES,
        "embed_tokens": "word_embeddings",
        "input_layernorm": "input_layernorm",
        "self_attn": "self_attention",
    }
    LARGE: ClassVar[Names] = {"input_layernorm": "ln_attn", "post_attention_layernorm": "ln_mlp"}

    @classmethod
    def read(cls, f: Fields) -> DecoderConfig:
        heads = f.positive("num_attention_heads")
        large = f.flag("new_decoder_architecture", "n_head_kv" in f.config)
        f.refuse_unless("alibi", [False])
        f.refuse_unless("parallel_attn", [True])
        f.refuse_unless("apply_residual_connection_post_layernorm", [False])
        f.refuse_unless("num_ln_in_parallel_attn", [2 if large else 1, None])
        groups = f.positive("num_kv_heads" if "num_kv_heads" in f.config else "n_head_kv", heads)
        shared = 1 if f.flag("multi_query", True) else heads
        bias = f.flag("bias")
        return f.decoder(
            inner=4 * f.positive("hidden_size"),
            layer_norm=True,
            gated=False,
            parallel=True,
            two_norms=large,
            projections="grouped",
            eps=("layer_norm_epsilon", 1e-5),
            num_key_value_heads=groups if large else shared,
            usual_act="gelu",
            tied=True,
            qkv_bias=bias,
            output_bias=bias,
            mlp_bias=bias,
        )

    @classmethod
    def names(cls, c: DecoderConfig) -> Names:
        return {**cls.NAMES, **cls.LARGE} if c.two_norms else cls.NAMES
