"""Granite 4.0 H: most layers are Mamba-2's mixers, few have attention, without positions.

All have a feed-forward layer, in the larger models beside experts; embeddings, scores, residuals
and logits are scaled as in Granite 3.
"""

from __future__ import annotations

from typing import ClassVar

from sterna.base.dtype import DType
from sterna.models.config import DecoderConfig, Fields, LayerKind
from sterna.models.family import Family, Names, Stack
from sterna.models.mamba2 import check_heads
from sterna.nn.decoder import Cache, DecoderLayer
from sterna.nn.layers import RecurrentLayer
from sterna.nn.mamba import MambaMixer, MambaOptions
from sterna.nn.mlp import FeedForward, GatedMLP
from sterna.nn.moe import ExpertOptions, ExpertsBeside, MixtureOfExperts


class GraniteHybrid(Family):
    """The feed-forward layer of all tokens has a size of its own beside experts'."""

    MODEL_TYPES = ("granitemoehybrid",)
    ARCHITECTURES = ("GraniteMoeHybridForCausalLM",)
    KEYS = (
        "rms_norm_eps attention_bias embedding_multiplier logits_scaling residual_multiplier "
        "attention_multiplier num_local_experts num_experts_per_tok shared_intermediate_size "
        "position_embedding_type layer_types mamba_n_heads mamba_n_groups "
        "mamba_d_state mamba_d_head mamba_d_conv mamba_expand mamba_chunk_size mamba_conv_bias "
        "mamba_proj_bias time_step_limit normalization_function init_method"
    )
    NAMES: ClassVar[Names] = {
        "mixer": "mamba",
        "gated_norm": "norm",
        "mlp": "shared_mlp",
        "gate_up_proj": "input_linear",
        "down_proj": "output_linear",
        "sparse_mlp": "block_sparse_moe",
        "gate": "router.layer",
    }
    EXPERTS: ClassVar[Names] = {
        "gate_experts": "input_linear.{}.gate_proj",
        "up_experts": "input_linear.{}.up_proj",
        "down_experts": "output_linear.{}.down_proj",
    }
    STACKED: ClassVar = {
        "block_sparse_moe.input_linear.weight": Stack(("gate_proj", "up_proj"), by_rows=True),
        "block_sparse_moe.output_linear.weight": Stack(("down_proj",), by_rows=True),
    }

    @classmethod
    def read(cls, f: Fields) -> DecoderConfig:
        f.refuse_unless("normalization_function", ["rmsnorm"])
        f.refuse_unless("time_step_limit", [None, [0.0, "Infinity"]])
        f.refuse_unless("position_embedding_type", [None, "nope", "rope"])
        recurrent = f.recurrent(
            lambda layer: True, mamba="linear_attention", attention="full_attention"
        )
        return f.decoder(
            attention_bias=f.flag("attention_bias"),
            embedding_scale=f.number("embedding_multiplier", 1.0),
            logit_scale=1 / f.number("logits_scaling", 1.0),
            residual_scale=f.number("residual_multiplier", 1.0),
            query_scale=f.number("attention_multiplier", 1.0),
            intermediate_size=f.positive("shared_intermediate_size", 1024),
            rotary=f.config.get("position_embedding_type") == "rope",
            kinds=[LayerKind(recurrent=own) for own in recurrent],
            mamba=cls.mixer(f),
            experts=None if f.config.get("num_local_experts") == 0 else ExpertOptions(
                experts=f.positive("num_local_experts", 8),
                chosen=f.positive("num_experts_per_tok", 2),
                intermediate_size=f.positive("intermediate_size"),
                over_chosen=True,
            ),
        )  # fmt: skip

    @classmethod
    def mixer(cls, f: Fields) -> MambaOptions:
        """The sizes of recurrent layers."""
        heads, hidden = f.positive("mamba_n_heads", 128), f.positive("hidden_size")
        width = f.positive("mamba_expand", 2) * hidden
        auto = f.config.get("mamba_d_head") in (None, "auto")
        options = MambaOptions(
            hidden,
            heads,
            max(1, width // heads) if auto else f.positive("mamba_d_head"),
            f.positive("mamba_d_state", 256),
            f.positive("mamba_n_groups", 1),
            f.positive("mamba_d_conv", 4, most=64),
            f.number("rms_norm_eps", 1e-6),
            f.flag("mamba_proj_bias"),
            f.flag("mamba_conv_bias", True),
        )
        check_heads(options, width)
        return options

    @classmethod
    def layer(cls, c: DecoderConfig, kind: LayerKind, dtype: DType) -> DecoderLayer:
        if not kind.recurrent or c.mamba is None:
            return super().layer(c, kind, dtype)
        norms, mixer = [cls.norm(c, dtype) for _ in "im"], MambaMixer(c.mamba, dtype)
        mlp = cls.mlp(c, kind, dtype)
        return RecurrentLayer(norms[0], mixer, norms[1], mlp, scale=c.residual_scale)

    @classmethod
    def mlp(cls, c: DecoderConfig, kind: LayerKind, dtype: DType) -> FeedForward:
        mlp = GatedMLP(c.hidden_size, c.intermediate_size, dtype, act=c.act, joined=True)
        if c.experts is None:
            return mlp
        return ExpertsBeside(MixtureOfExperts(c.hidden_size, c.experts, dtype, act=c.act), mlp)

    @classmethod
    def cache(cls, c: DecoderConfig, dtype: DType) -> Cache:
        assert c.mamba is not None, "read gives it"
        return cls.hybrid_cache(c, c.mamba.elements, dtype)
