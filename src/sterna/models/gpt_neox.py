"""GPT-NeoX, Pythia, Dolly and RedPajama: attention and feed-forward layer side by side.

A quarter of each head is rotated; q, k and v of a head stand together in one matrix.
"""

from __future__ import annotations

from typing import ClassVar

from sterna.models.config import MEGATRON_NAMES, DecoderConfig, Fields
from sterna.models.family import Family, Names
from sterna.models.rope_options import rope_options


class GPTNeoX(Family):
    """use_parallel_residual false puts the two one after the other, as in RedPajama."""

    MODEL_TYPES = ("gpt_neox",)
    ARCHITECTURES = ("GPTNeoXForCausalLM",)
    KEYS = "layer_norm_eps use_parallel_residual attention_bias rotary_pct rotary_emb_base"
    NAMES: ClassVar[Names] = {
        **MEGATRON_NAMES,
        "model": "gpt_neox",
        "embed_tokens": "embed_in",
        "self_attn": "attention",
        "norm": "final_layer_norm",
        "lm_head": "embed_out",
    }
    IGNORED = ("*.attention.bias", "*.attention.masked_bias", "*.rotary_emb.inv_freq")

    @classmethod
    def read(cls, f: Fields) -> DecoderConfig:
        bias = f.flag("attention_bias", True)
        base = {"rope_theta": f.config["rotary_emb_base"]} if "rotary_emb_base" in f.config else {}
        part = f.number("rotary_pct", 0.25)
        return f.decoder(
            layer_norm=True,
            gated=False,
            projections="grouped",
            eps=("layer_norm_eps", 1e-5),
            rope=rope_options({**base, **f.config}, part),
            usual_act="gelu",
            qkv_bias=bias,
            output_bias=bias,
            mlp_bias=True,
            parallel=f.flag("use_parallel_residual", True),
            two_norms=True,
        )
