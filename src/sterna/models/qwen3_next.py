"""Qwen3-Next: three of four layers are gated delta nets, the fourth has attention with a gate.

All have many small experts and one that all tokens share; the weights of norms are around 0.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from sterna.base.dtype import DType
from sterna.base.errors import CheckpointError
from sterna.models.config import DecoderConfig, Fields, LayerKind
from sterna.models.family import Family, Names, attention_options
from sterna.models.qwen_moe import expert_options, sparse_layers
from sterna.nn.attention import Attention
from sterna.nn.decoder import Cache, DecoderLayer
from sterna.nn.delta import DeltaOptions, GatedDeltaNet
from sterna.nn.layers import RecurrentLayer
from sterna.nn.norm import HeadNorm, Norm, RMSNorm

DELTA_KEYS = (
    "rms_norm_eps attention_bias layer_types full_attention_interval linear_conv_kernel_dim "
    "linear_key_head_dim linear_value_head_dim linear_num_key_heads linear_num_value_heads"
)


class Qwen3Next(Family):
    """What guesses the token after the next (mtp) is not used."""

    MODEL_TYPES: ClassVar[tuple[str, ...]] = ("qwen3_next",)
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("Qwen3NextForCausalLM",)
    KEYS: ClassVar[str] = (
        f"{DELTA_KEYS} decoder_sparse_step mlp_only_layers num_experts num_experts_per_tok "
        "moe_intermediate_size shared_expert_intermediate_size norm_topk_prob"
    )
    NAMES: ClassVar[Names] = {"mixer": "linear_attn"}
    IGNORED: ClassVar[tuple[str, ...]] = (*Family.IGNORED, "mtp.*")
    joined: ClassVar[bool] = True  # see DeltaOptions

    @classmethod
    def read(cls, f: Fields) -> DecoderConfig:
        shared = f.positive("shared_expert_intermediate_size", 512)
        experts = expert_options(f, 512, 10, over_chosen=True)
        return cls.hybrid(
            f,
            kinds=sparse_layers(f, cls.kinds(f)),
            kv_heads=2,
            inner=5632,
            experts=replace(experts, shared_size=shared, gated=True),
        )

    @classmethod
    def hybrid(cls, f: Fields, **own: object) -> DecoderConfig:
        """What the generations of these models have in common."""
        f.refuse_unless("hidden_act", ["silu", "swish"])
        return f.decoder(
            attention_bias=f.flag("attention_bias"),
            head_dim=f.positive("head_dim", 256),
            partial=0.25,
            delta=cls.delta(f),
            **own,
        )

    @classmethod
    def kinds(cls, f: Fields) -> list[LayerKind]:
        """Every `full_attention_interval`-th layer attends, where layer_types does not say."""
        period = f.positive("full_attention_interval", 4)
        recurrent = f.recurrent(lambda i: (i + 1) % period != 0)
        return [LayerKind(recurrent=own) for own in recurrent]

    @classmethod
    def delta(cls, f: Fields) -> DeltaOptions:
        """The sizes of recurrent layers."""
        keys = f.positive("linear_num_key_heads", 16)
        values = f.positive("linear_num_value_heads", 32)
        if values % keys:
            raise CheckpointError(
                f"config.json gives {values} linear value heads and {keys} linear key heads; the "
                "former must be a multiple of the latter"
            )
        return DeltaOptions(
            hidden_size=f.positive("hidden_size"),
            key_heads=keys,
            value_heads=values,
            key_dim=f.positive("linear_key_head_dim", 128),
            value_dim=f.positive("linear_value_head_dim", 128),
            kernel=f.positive("linear_conv_kernel_dim", 4, most=64),
            norm_eps=f.number("rms_norm_eps", 1e-6),
            joined=cls.joined,
            tiled=f.flag("linear_heads_tiled"),
        )

    @classmethod
    def layer(cls, c: DecoderConfig, kind: LayerKind, dtype: DType) -> DecoderLayer:
        if not kind.recurrent or c.delta is None:
            return super().layer(c, kind, dtype)
        before, after = (cls.norm(c, dtype) for _ in "ba")
        return RecurrentLayer(before, GatedDeltaNet(c.delta, dtype), after, cls.mlp(c, kind, dtype))

    @classmethod
    def norm(cls, c: DecoderConfig, dtype: DType) -> Norm:
        return RMSNorm(c.hidden_size, c.norm_eps, dtype, offset=1.0)

    @classmethod
    def attention(cls, c: DecoderConfig, kind: LayerKind, dtype: DType) -> Attention:
        norms = (HeadNorm(c.head_dim, c.norm_eps, dtype, offset=1.0) for _ in "qk")
        return Attention(attention_options(c, kind, dtype, output_gate=True), *norms)

    @classmethod
    def cache(cls, c: DecoderConfig, dtype: DType) -> Cache:
        assert c.delta is not None, "read gives it"
        return cls.hybrid_cache(c, c.delta.elements, dtype)
