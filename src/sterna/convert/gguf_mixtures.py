"""Rows of `gguf_architectures` for models with experts, latent attention or recurrent states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sterna.base.errors import UnsupportedModel
from sterna.convert.gguf_architecture import ADDED_ONE, LAYER, Architecture, Paths
from sterna.convert.gguf_keys import Keys
from sterna.convert.gguf_layouts import (
    ba_sizes,
    joined,
    latent_rows,
    logarithm,
    of_key_heads,
    qkvz_sizes,
    rotated_halves,
    shaped,
)
from sterna.convert.gguf_sizes import (
    delta_sizes,
    hybrid_sizes,
    latent_sizes,
    mamba_sizes,
    rwkv_sizes,
)

_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
}
MIXTRAL = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
    "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
    "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
}
_SHARED = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
_ROUTED_SHARED = {name: path.replace("expert.", "experts.") for name, path in _SHARED.items()}
_GPT_OSS = {
    "attn_sinks.weight": "self_attn.sinks",
    "ffn_gate_inp": "mlp.router",
    "post_attention_norm": "post_attention_layernorm",
}
_CORRECTED = {"exp_probs_b.bias": "mlp.gate.e_score_correction_bias"}
_LLAMA4 = {
    **{n: p.replace("mlp.", "feed_forward.") for n, p in {**LAYER, **_EXPERTS, **_SHARED}.items()},
    "ffn_gate_inp": "feed_forward.router",
}
_LATENT = {
    **LAYER,
    **_EXPERTS,
    **_ROUTED_SHARED,
    **_CORRECTED,
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    "attn_k_b": "self_attn.kv_b_proj",
    "attn_v_b": "self_attn.kv_b_proj",
}
_MIXER = {
    "ssm_in": "mixer.in_proj",
    "ssm_conv1d": "mixer.conv1d",
    "ssm_dt.bias": "mixer.dt_bias",
    "ssm_a": "mixer.A_log",
    "ssm_d": "mixer.D",
    "ssm_norm": "mixer.norm",
    "ssm_out": "mixer.out_proj",
}
_HYBRID = {
    **LAYER,
    **{name: path.replace("mixer.", "mamba.") for name, path in _MIXER.items()},
    "ffn_gate": "shared_mlp.input_linear",
    "ffn_up": "shared_mlp.input_linear",
    "ffn_down": "shared_mlp.output_linear",
}
_RWKV = {
    "attn_norm": "attn_norm",
    "attn_norm_2": "ffn_norm",
    "time_mix_lerp_fused.weight": "attn.x_{}",
    "time_mix_w0.weight": "attn.w_lora.lora.2.bias",
    "time_mix_w1": "attn.w_lora.lora.0",
    "time_mix_w2": "attn.w_lora.lora.2",
    "time_mix_a0.weight": "attn.a_lora.lora.2.bias",
    "time_mix_a1": "attn.a_lora.lora.0",
    "time_mix_a2": "attn.a_lora.lora.2",
    "time_mix_v0.weight": "attn.v_lora.lora.2.bias",
    "time_mix_v1": "attn.v_lora.lora.0",
    "time_mix_v2": "attn.v_lora.lora.2",
    "time_mix_g1": "attn.g_lora.lora.0",
    "time_mix_g2": "attn.g_lora.lora.2",
    "time_mix_k_k.weight": "attn.k_k",
    "time_mix_k_a.weight": "attn.k_a",
    "time_mix_r_k.weight": "attn.r_k",
    "time_mix_key": "attn.k_proj",
    "time_mix_value": "attn.v_proj",
    "time_mix_receptance": "attn.r_proj",
    "time_mix_output": "attn.o_proj",
    "time_mix_ln": "attn.g_norm",
    "channel_mix_lerp_k.weight": "ffn.x_k",
    "channel_mix_key": "ffn.key",
    "channel_mix_value": "ffn.value",
}
_DELTA: dict[str, Paths] = {
    **LAYER,
    "post_attention_norm": "post_attention_layernorm",
    "attn_qkv": "linear_attn.in_proj_qkv",
    "attn_gate": "linear_attn.in_proj_z",
    "ssm_beta": "linear_attn.in_proj_b",
    "ssm_alpha": "linear_attn.in_proj_a",
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_dt.bias": "linear_attn.dt_bias",
    "ssm_a": "linear_attn.A_log",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
}
_DELTA_EXPERTS: dict[str, Paths] = {**_DELTA, **_EXPERTS, **_SHARED}
_ONE_ROW = {
    f"{block}.shared_expert_gate.weight": shaped(1, "hidden_size")
    for block in ("mlp", "feed_forward")
}
_DELTA_UNDO = {
    **ADDED_ONE,
    **_ONE_ROW,
    "linear_attn.conv1d.weight": shaped(-1, 1, "linear_conv_kernel_dim"),
    "linear_attn.A_log": logarithm,
}
_CHOSEN = {"num_experts_per_tok": "expert_used_count"}
_QWEN_EXPERTS = {
    **_CHOSEN,
    "num_experts": "expert_count",
    "moe_intermediate_size": "expert_feed_forward_length",
}
_QWEN_SHARED = {
    **_QWEN_EXPERTS,
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
}
_ROUTED = {
    **_CHOSEN,
    "n_routed_experts": "expert_count",
    "n_shared_experts": "expert_shared_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "first_k_dense_replace": "leading_dense_block_count",
    "n_group": "expert_group_count",
    "topk_group": "expert_group_used_count",
}
_SIGMOID = 2  # of expert_gating_func


def _head_norms(config: Mapping[str, Any], keys: Keys) -> dict[str, Any]:
    """Llama 4's, which have no weights: the model of 128 experts has none."""
    return {"use_qk_norm": config.get("num_local_experts") != 128}


def _is_corrected(keys: Keys) -> bool:
    """DeepSeek V3's experts are chosen by sigmoids, with a learned correction."""
    return keys.get("expert_gating_func") == _SIGMOID or keys.holds("exp_probs_b.bias")


def _v2(config: Mapping[str, Any], keys: Keys) -> dict[str, Any]:
    grouped = config.get("n_group", 1) > 1
    method = "group_limited_greedy" if grouped else "greedy"
    return {"topk_method": method, "scoring_func": "softmax", **_yarn(keys)}


def _v3(config: Mapping[str, Any], keys: Keys) -> dict[str, Any]:
    return {"topk_method": "noaux_tc", "scoring_func": "sigmoid", **_yarn(keys)}


def _yarn(keys: Keys) -> dict[str, Any]:
    """mscale_all_dim, which files hold as a tenth, and mscale, which is the same in all models."""
    if keys.get("rope.scaling.type") != "yarn" or not keys.has("rope.scaling.yarn_log_multiplier"):
        return {}
    scale = round(10 * keys.number("rope.scaling.yarn_log_multiplier", 0.0), 6)
    if scale < 0:
        raise UnsupportedModel(
            f"{keys.file.path}: {keys.prefix}.rope.scaling.yarn_log_multiplier is below 0"
        )
    return {"rope_scaling": {"mscale": scale, "mscale_all_dim": scale}}


def _mixer(module: str, heads: str, kernel: str) -> dict[str, Any]:
    """What the converter does to Mamba-2's small tensors."""
    return {
        f"{module}.conv1d.weight": shaped(-1, 1, kernel),
        f"{module}.dt_bias": shaped(heads),
        f"{module}.A_log": logarithm,
        f"{module}.D": shaped(heads),
        f"{module}.norm.weight": shaped(-1),
    }


def _deepseek(kind: str, version: str, **own: Any) -> Architecture:
    return Architecture(
        kind,
        f"Deepseek{version}ForCausalLM",
        _LATENT,
        undo={"self_attn.kv_b_proj.weight": latent_rows},
        sizes=latent_sizes,
        counts=_ROUTED,
        numbers={"routed_scaling_factor": "expert_weights_scale"},
        flags={"norm_topk_prob": "expert_weights_norm"},
        config={"norm_topk_prob": False, "n_group": 1, "topk_group": 1},
        **own,
    )


MIXTURES: dict[str, Architecture] = {
    "qwen2moe": Architecture(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        {**LAYER, **_EXPERTS, **_SHARED},
        undo=_ONE_ROW,
        config={"norm_topk_prob": False},
        counts=_QWEN_SHARED,
    ),
    "qwen3moe": Architecture(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        {**LAYER, **_EXPERTS},
        config={"norm_topk_prob": True},
        counts=_QWEN_EXPERTS,
    ),
    # Its converter takes z out of what it is joined with, and then this is a Qwen3.5, but for the
    # order of value heads. The first files (ssm_in) have it joined.
    "qwen3next": Architecture(
        "qwen3_5_moe_text",
        "Qwen3_5MoeForCausalLM",
        {
            **_DELTA_EXPERTS,
            "ssm_in": ("linear_attn.in_proj_qkv", "linear_attn.in_proj_z"),
            "ssm_ba": ("linear_attn.in_proj_b", "linear_attn.in_proj_a"),
        },
        undo={
            **_DELTA_UNDO,
            "linear_attn.in_proj_qkv": of_key_heads(qkvz_sizes, 0, 1, 2),
            "linear_attn.in_proj_z": of_key_heads(qkvz_sizes, 3),
            "linear_attn.in_proj_b": of_key_heads(ba_sizes, 0),
            "linear_attn.in_proj_a": of_key_heads(ba_sizes, 1),
        },
        sizes=delta_sizes,
        counts=_QWEN_SHARED,
    ),
    # What is of value heads lies in their order here, so that out_proj's columns keep their blocks.
    "qwen35": Architecture(
        "qwen3_5_text",
        "Qwen3_5ForCausalLM",
        _DELTA,
        undo=_DELTA_UNDO,
        sizes=delta_sizes,
        config={"linear_heads_tiled": True},
    ),
    "qwen35moe": Architecture(
        "qwen3_5_moe_text",
        "Qwen3_5MoeForCausalLM",
        _DELTA_EXPERTS,
        undo=_DELTA_UNDO,
        sizes=delta_sizes,
        config={"linear_heads_tiled": True},
        counts=_QWEN_SHARED,
    ),
    "gpt-oss": Architecture(
        "gpt_oss",
        "GptOssForCausalLM",
        {**LAYER, **_EXPERTS, **_GPT_OSS},
        config={"attention_bias": True, "rope_scaling": {"truncate": False}},  # of its yarn
        counts={**_CHOSEN, "num_local_experts": "expert_count"},
    ),
    "llama4": Architecture(
        "llama4_text",
        "Llama4ForCausalLM",
        _LLAMA4,
        undo=_ONE_ROW,
        counts={
            **_CHOSEN,
            "num_local_experts": "expert_count",
            "intermediate_size": "expert_feed_forward_length",
            "intermediate_size_mlp": "feed_forward_length",
            "interleave_moe_layer_step": "interleave_moe_layer_step",
        },
        implied=_head_norms,
    ),
    "glm4moe": Architecture(
        "glm4_moe",
        "Glm4MoeForCausalLM",
        {
            **LAYER,
            **_EXPERTS,
            **_ROUTED_SHARED,
            **_CORRECTED,
            "post_attention_norm": "post_attention_layernorm",
        },
        counts=_ROUTED,
        numbers={"routed_scaling_factor": "expert_weights_scale"},
        flags={"norm_topk_prob": "expert_weights_norm"},
        present={"attention_bias": "attn_q.bias", "use_qk_norm": "attn_q_norm.weight"},
    ),
    "deepseek2": _deepseek(
        "deepseek_v2",
        "V2",
        implied=_v2,
        other=_deepseek("deepseek_v3", "V3", implied=_v3),
        is_other=_is_corrected,
    ),
    "mamba2": Architecture(
        "mamba2",
        "Mamba2ForCausalLM",
        {"attn_norm": "norm", **_MIXER},
        {
            "token_embd": "backbone.embeddings",
            "output_norm": "backbone.norm_f",
            "output": "lm_head",
        },
        "backbone.layers",
        undo=_mixer("mixer", "num_heads", "conv_kernel"),
        sizes=mamba_sizes,
        epsilon="layer_norm_epsilon",
    ),
    "granitehybrid": Architecture(
        "granitemoehybrid",
        "GraniteMoeHybridForCausalLM",
        _HYBRID,
        undo={
            **_mixer("mamba", "mamba_n_heads", "mamba_d_conv"),
            "self_attn.q_proj": rotated_halves("num_attention_heads"),
            "self_attn.k_proj": rotated_halves("num_key_value_heads"),
            "shared_mlp.input_linear": joined,
        },
        sizes=hybrid_sizes,
        present={"attention_bias": "attn_q.bias"},
        numbers={
            "attention_multiplier": "attention.scale",
            "embedding_multiplier": "embedding_scale",
            "residual_multiplier": "residual_scale",
            "logits_scaling": "logit_scale",
        },
    ),
    "rwkv7": Architecture(
        "rwkv7",
        "RWKV7ForCausalLM",
        _RWKV,
        {
            "token_embd": "model.embeddings",
            "token_embd_norm": "model.layers.0.pre_norm",
            "output_norm": "model.norm",
            "output": "lm_head",
        },
        stacks={"attn.x_{}": "rwkvag"},
        undo={
            "attn.x_{}": shaped(1, 1, "hidden_size"),
            "attn.r_k": shaped(-1, "head_dim"),
            "attn.k_k": shaped("hidden_size"),
            "attn.k_a": shaped("hidden_size"),
            "ffn.x_k": shaped("hidden_size"),
        },
        sizes=rwkv_sizes,
        epsilon="norm_eps",
        unread=tuple(f"blk.0.time_mix_v{i}.weight" for i in range(3)),
    ),
}
