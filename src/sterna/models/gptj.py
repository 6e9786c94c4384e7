"""GPT-J: one norm before attention and feed-forward layer, which stand side by side.

Neighbouring dims are rotated together, in the first `rotary_dim` of a head.
"""

from __future__ import annotations

from typing import Any, ClassVar

from sterna.models.config import GPT_KEYS, GPT_NAMES, DecoderConfig, Fields
from sterna.models.family import Family, Names
from sterna.models.rope_scaling import RopeOptions


class GPTJ(Family):
    """Biases in the feed-forward layer and the head, none in attention."""

    MODEL_TYPES = ("gptj",)
    ARCHITECTURES = ("GPTJForCausalLM",)
    KEYS = "layer_norm_epsilon rotary_dim rotary"
    CONFIG = GPT_KEYS
    NAMES: ClassVar[Names] = {
        **GPT_NAMES,
        "o_proj": "out_proj",
        "up_proj": "fc_in",
        "down_proj": "fc_out",
    }
    IGNORED: ClassVar[tuple[str, ...]] = (
        "*.attn.bias",
        "*.attn.masked_bias",
        "*.attn.embed_positions",
    )

    @classmethod
    def read(cls, f: Fields) -> DecoderConfig:
        f.refuse_unless("rotary", [True])
        f.refuse_unless("scale_attn_weights", [True])
        f.refuse_unless("rope_scaling", [None])
        hidden = f.positive("hidden_size")
        head_dim = max(1, hidden // f.positive("num_attention_heads"))
        rotated = f.positive("rotary_dim", 64, most=head_dim)
        return f.decoder(
            inner=4 * hidden,
            layer_norm=True,
            parallel=True,
            interleaved=True,
            gated=False,
            eps=("layer_norm_epsilon", 1e-5),
            rope=RopeOptions(partial=rotated / head_dim),
            usual_act="gelu_new",
            mlp_bias=True,
            head_bias=True,
            **cls.own(f),
        )

    @classmethod
    def own(cls, f: Fields) -> dict[str, Any]:
        """How CodeGen differs."""
        return {}
