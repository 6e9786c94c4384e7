"""DeepSeek V2, V3 and R1, Kimi K2: latent attention, and many small experts after dense layers.

All tokens share some experts; the others are chosen in groups: by softmax in V2, in V3 by sigmoids
to which a learned bias is added for the choice alone.
"""

from __future__ import annotations

from typing import Any, ClassVar

from sterna.models.config import MAX_LAYERS, DecoderConfig, Fields, LayerKind
from sterna.models.family import Family, Fused, Names
from sterna.models.rope_options import rope_options
from sterna.nn.latent import LatentOptions
from sterna.nn.moe import ExpertOptions

EXPERT_KEYS = (
    "n_routed_experts n_shared_experts num_experts_per_tok moe_intermediate_size n_group "
    "topk_group norm_topk_prob routed_scaling_factor first_k_dense_replace "
    "num_nextn_predict_layers"
)


class DeepseekV2(Family):
    """Softmax scores; groups are told by their best expert."""

    MODEL_TYPES: ClassVar[tuple[str, ...]] = ("deepseek_v2",)
    ARCHITECTURES = ("DeepseekV2ForCausalLM",)
    KEYS = (
        f"{EXPERT_KEYS} rms_norm_eps attention_bias kv_lora_rank q_lora_rank qk_nope_head_dim "
        "qk_rope_head_dim v_head_dim topk_method scoring_func moe_layer_freq rope_interleave "
        "qk_head_dim aux_loss_alpha seq_aux ep_size"
    )
    NAMES: ClassVar[Names] = {"shared_expert": "shared_experts"}
    FUSED: ClassVar[Fused] = {"gate_up_proj": ("gate_proj", "up_proj")}
    first_dense: ClassVar[int] = 0  # dense layers where the config does not say
    # What guesses the token after the next stands behind the last layer, as one more.
    IGNORED = (*Family.IGNORED, "model.layers.{layers}.*")

    @classmethod
    def read(cls, f: Fields) -> DecoderConfig:
        latent = LatentOptions(
            rank=f.positive("kv_lora_rank", 512),
            query_rank=max(0, f.window("q_lora_rank", 1536)),  # null: none
            plain=f.positive("qk_nope_head_dim", 128),
            rotated=f.positive("qk_rope_head_dim", 64),
            value=f.positive("v_head_dim", 128),
        )
        f.refuse_unless("qk_head_dim", [None, latent.key])  # said again by newer versions
        rope = rope_options(f.config)
        return f.decoder(
            head_dim=latent.rotated,
            num_key_value_heads=1,
            latent=latent,
            rope=rope,
            query_scale=latent.key**-0.5 * rope.score_factor,
            attention_bias=f.flag("attention_bias"),
            kinds=dense_then_experts(f, cls.first_dense),
            **cls.own(f),
        )

    @classmethod
    def own(cls, f: Fields) -> dict[str, Any]:
        """How the versions differ."""
        f.refuse_unless("scoring_func", ["softmax"])
        f.refuse_unless("norm_topk_prob", [False, None])
        f.refuse_unless("topk_method", ["greedy", "group_limited_greedy"])
        grouped = f.config.get("topk_method") == "group_limited_greedy"
        return {"experts": routed_experts(f, 64, grouped=grouped), "interleaved": True}


class DeepseekV3(DeepseekV2):
    """Sigmoid scores; groups are told by their two best experts."""

    MODEL_TYPES = ("deepseek_v3", "kimi_k2")
    ARCHITECTURES = ("DeepseekV3ForCausalLM",)
    first_dense = 3

    @classmethod
    def own(cls, f: Fields) -> dict[str, Any]:
        f.refuse_unless("scoring_func", ["sigmoid"])
        f.refuse_unless("topk_method", ["noaux_tc"])
        pairs = f.flag("rope_interleave", True)
        return {"experts": corrected_experts(f, 256), "interleaved": pairs}


def routed_experts(f: Fields, experts: int, *, grouped: bool, **own: Any) -> ExpertOptions:
    """Experts that tokens choose, with those that all share as one of their sizes together."""
    size, groups = f.positive("moe_intermediate_size"), f.positive("n_group", 1)
    shared = f.config.get("n_shared_experts", 1)
    return ExpertOptions(
        **{
            "experts": f.positive("n_routed_experts", experts),
            "chosen": f.positive("num_experts_per_tok", 8),
            "intermediate_size": size,
            "over_chosen": False,
            "scaling": f.number("routed_scaling_factor", 1.0),
            "groups": groups if grouped else 1,
            "best": f.positive("topk_group", groups, most=groups) if grouped else 1,
            "shared_size": size * f.positive("n_shared_experts", 1) if shared else 0,
            **own,
        }
    )


def corrected_experts(f: Fields, experts: int) -> ExpertOptions:
    """Those of V3 and its descendants."""
    return routed_experts(
        f, experts, grouped=True, score="sigmoid", corrected=True, leaders=2,
        over_chosen=f.flag("norm_topk_prob", True),
    )  # fmt: skip


def dense_then_experts(f: Fields, first: int) -> list[LayerKind]:
    """Some dense layers, then one with experts in every `moe_layer_freq`."""
    given = f.config.get("first_k_dense_replace", first)
    dense = f.positive("first_k_dense_replace", first or 1) if given else 0
    layers = f.positive("num_hidden_layers", most=MAX_LAYERS)
    period = f.positive("moe_layer_freq", 1)
    return [LayerKind(experts=i >= dense and i % period == 0) for i in range(layers)]
