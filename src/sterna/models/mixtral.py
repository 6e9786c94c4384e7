"""Mixtral: Mistral with eight experts in place of each feed-forward layer, two for a token."""

from __future__ import annotations

from typing import ClassVar

from sterna.models.config import DecoderConfig, Fields, LayerKind
from sterna.models.family import Family, Names
from sterna.nn.moe import ExpertOptions


class Mixtral(Family):
    """A token's two shares sum to 1."""

    MODEL_TYPES = ("mixtral",)
    ARCHITECTURES = ("MixtralForCausalLM",)
    KEYS = "rms_norm_eps sliding_window num_local_experts num_experts_per_tok router_jitter_noise"
    NAMES: ClassVar[Names] = {"mlp": "block_sparse_moe"}
    EXPERTS: ClassVar[Names] = {
        "gate_experts": "experts.{}.w1",
        "up_experts": "experts.{}.w3",
        "down_experts": "experts.{}.w2",
    }

    @classmethod
    def read(cls, f: Fields) -> DecoderConfig:
        window = f.positive("sliding_window") if f.config.get("sliding_window") else -1
        return f.decoder(
            eps=("rms_norm_eps", 1e-5),
            kv_heads=8,
            theta=1e6,
            kinds=LayerKind(window, experts=True),
            experts=ExpertOptions(
                experts=f.positive("num_local_experts", 8),
                chosen=f.positive("num_experts_per_tok", 2),
                intermediate_size=f.positive("intermediate_size"),
                over_chosen=True,
            ),
        )
