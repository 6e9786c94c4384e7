"""Mamba-2 and Mamba-Codestral: a recurrent state in every layer, and no attention."""

from __future__ import annotations

from typing import ClassVar

from sterna.base.dtype import F32, DType
from sterna.base.errors import CheckpointError
from sterna.models.config import Config, DecoderConfig, Fields, LayerKind
from sterna.models.family import Family, Names
from sterna.nn.decoder import Cache
from sterna.nn.mamba import MambaLayer, MambaMixer, MambaOptions

LONGEST = 1 << 20  # positions: a state has no end of its own, and configs state none


class Mamba2(Family):
    """Configs say nothing of positions: a context may be as long as memory for tokens allows."""

    MODEL_TYPES = ("mamba2",)
    ARCHITECTURES = ("Mamba2ForCausalLM",)
    KEYS = (
        "layer_norm_epsilon state_size expand conv_kernel n_groups use_bias use_conv_bias rms_norm "
        "residual_in_fp32 time_step_rank time_step_min time_step_max time_step_floor "
        "time_step_limit rescale_prenorm_residual chunk_size norm_before_gate"
    )
    CONFIG: ClassVar[Names] = {"num_attention_heads": "num_heads"}
    NAMES: ClassVar[Names] = {
        "model": "backbone",
        "embed_tokens": "embeddings",
        "input_layernorm": "norm",
        "gated_norm": "norm",
        "norm": "norm_f",
    }

    @classmethod
    def read_config(cls, config: Config) -> DecoderConfig:
        c = super().read_config(config)
        o = c.mamba
        assert o is not None, "read gives it"
        check_heads(o, c.intermediate_size)
        return c

    @classmethod
    def read(cls, f: Fields) -> DecoderConfig:
        f.refuse_unless("time_step_limit", [None, [0.0, "Infinity"]])
        f.refuse_unless("rms_norm", [True])
        f.refuse_unless("hidden_act", ["silu", "swish"])
        heads, dim = f.positive("num_attention_heads"), f.positive("head_dim", 64)
        width = f.positive("expand", 2) * f.positive("hidden_size")
        eps = f.number("layer_norm_epsilon", 1e-5)
        return f.decoder(
            norm_eps=eps,
            head_dim=dim,
            inner=width,
            positions=LONGEST,
            rotary=False,
            mamba=MambaOptions(
                hidden_size=f.positive("hidden_size"),
                heads=heads,
                head_dim=dim,
                state=f.positive("state_size", 128),
                groups=f.positive("n_groups", 8),
                kernel=f.positive("conv_kernel", 4, most=64),
                norm_eps=eps,
                bias=f.flag("use_bias"),
                conv_bias=f.flag("use_conv_bias", True),
            ),
        )

    @classmethod
    def layer(cls, c: DecoderConfig, kind: LayerKind, dtype: DType) -> MambaLayer:
        assert c.mamba is not None, "read gives it"
        return MambaLayer(cls.norm(c, dtype), MambaMixer(c.mamba, dtype))

    @classmethod
    def cache(cls, c: DecoderConfig, dtype: DType) -> Cache:
        assert c.mamba is not None, "read gives it"
        return Cache(c.num_hidden_layers, 1, c.mamba.elements, 1, F32, planes=1, recurrent=True)


def check_heads(o: MambaOptions, width: int) -> None:
    """CheckpointError where heads and groups are none of a mixer as wide as this."""
    if o.width != width or o.heads % o.groups:
        raise CheckpointError(
            f"config.json gives {o.heads} heads of {o.head_dim} in {o.groups} groups for a "
            f"width of {width}; heads must fill the width, and groups divide the heads"
        )
