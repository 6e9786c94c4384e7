"""The architectures of GGUF files: one row each, what their names and numbers are here.

In: the value of `general.architecture`. Out: a row that maps the file's tensors to the names of
checkpoints, and says what llama.cpp's converter changed on the way: it reorders the rows of query
and key projections that rotate in halves, and adds 1 to Gemma's norms. Knows no file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

ENDS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_FUSED = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
_PLAIN_MLP = {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}
_SANDWICH = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
}
_MIXTRAL = {
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
_GLM = {
    "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
    "post_attention_norm": "post_attention_layernorm",
}
_LLAMA4 = {
    **{n: p.replace("mlp.", "feed_forward.") for n, p in {**_LAYER, **_EXPERTS, **_SHARED}.items()},
    "ffn_gate_inp": "feed_forward.router",
}
_AFTER = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
ROPE_TABLES = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


@dataclass(frozen=True, slots=True)
class Architecture:
    """One value of general.architecture.

    `layer` maps the names of a layer's tensors, a name with its leaf that of a whole tensor; "{}"
    in a path stands for an expert, whose parts the file stacks. `permuted` says that rows of q and
    k lie in the order of interleaved rotation; `norms_add_one` that norms hold weight + 1; `config`
    is what the architecture implies besides the keys of the file. `numbers`, `counts` and `flags`
    are keys of its own, `present` are flags that a tensor's presence tells. `epsilon` is what
    config.json calls the norms' own. `sparse` is the row of files that have experts. `implied`
    makes of the config what no key of the file says and its sizes do.
    """

    model_type: str
    class_name: str
    layer: Mapping[str, str] = field(default_factory=lambda: MappingProxyType(_LAYER))
    permuted: bool = False
    norms_add_one: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    numbers: Mapping[str, str] = field(default_factory=dict)
    present: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, str] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)
    epsilon: str = "rms_norm_eps"
    sparse: Architecture | None = None
    implied: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None


def _query_scale(largest: int) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Gemma's: only the largest model, of so many layers, divides its hidden size for it."""

    def implied(config: Mapping[str, Any]) -> dict[str, Any]:
        shared = config["hidden_size"] // config["num_attention_heads"]
        is_largest = config["num_hidden_layers"] == largest
        return {"query_pre_attn_scalar": shared if is_largest else config["head_dim"]}

    return implied


def _head_norms(config: Mapping[str, Any]) -> dict[str, Any]:
    """Llama 4's, which have no weights: the model of 128 experts has none."""
    return {"use_qk_norm": config.get("num_local_experts") != 128}


_GEMMA = {"hidden_activation": "gelu_pytorch_tanh"}
_GEMMA3 = {**_GEMMA, "rope_local_base_freq": 10000.0, "sliding_window_pattern": 6}
_GRANITE = {
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}
_CHOSEN = {"num_experts_per_tok": "expert_used_count"}
_QWEN_EXPERTS = {
    **_CHOSEN,
    "num_experts": "expert_count",
    "moe_intermediate_size": "expert_feed_forward_length",
}
ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(
        "llama",
        "LlamaForCausalLM",
        permuted=True,
        present={"attention_bias": "blk.0.attn_q.bias"},
        sparse=Architecture(
            "mixtral",
            "MixtralForCausalLM",
            {**_LAYER, **_MIXTRAL},
            permuted=True,
            counts={**_CHOSEN, "num_local_experts": "expert_count"},
        ),
    ),
    "qwen2moe": Architecture(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        {**_LAYER, **_EXPERTS, **_SHARED},
        config={"norm_topk_prob": False},
        counts={
            **_QWEN_EXPERTS,
            "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
        },
    ),
    "qwen3moe": Architecture(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        {**_LAYER, **_EXPERTS},
        config={"norm_topk_prob": True},
        counts=_QWEN_EXPERTS,
    ),
    "gpt-oss": Architecture(
        "gpt_oss",
        "GptOssForCausalLM",
        {**_LAYER, **_EXPERTS, **_GPT_OSS},
        config={"attention_bias": True, "rope_scaling": {"truncate": False}},  # of its yarn
        counts={**_CHOSEN, "num_local_experts": "expert_count"},
    ),
    "llama4": Architecture(
        "llama4_text",
        "Llama4ForCausalLM",
        _LLAMA4,
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
        {**_LAYER, **_EXPERTS, **_ROUTED_SHARED, **_GLM},
        counts={
            **_CHOSEN,
            "n_routed_experts": "expert_count",
            "n_shared_experts": "expert_shared_count",
            "moe_intermediate_size": "expert_feed_forward_length",
            "first_k_dense_replace": "leading_dense_block_count",
            "n_group": "expert_group_count",
            "topk_group": "expert_group_used_count",
        },
        numbers={"routed_scaling_factor": "expert_weights_scale"},
        flags={"norm_topk_prob": "expert_weights_norm"},
        present={
            "attention_bias": "blk.0.attn_q.bias",
            "use_qk_norm": "blk.0.attn_q_norm.weight",
        },
    ),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM"),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM"),
    "phi3": Architecture("phi3", "Phi3ForCausalLM", {**_LAYER, **_FUSED}),
    "gemma": Architecture("gemma", "GemmaForCausalLM", norms_add_one=True, config=_GEMMA),
    "gemma2": Architecture(
        "gemma2",
        "Gemma2ForCausalLM",
        {**_LAYER, **_SANDWICH},
        norms_add_one=True,
        config=_GEMMA,
        implied=_query_scale(46),
    ),
    "gemma3": Architecture(
        "gemma3_text",
        "Gemma3ForCausalLM",
        {**_LAYER, **_SANDWICH},
        norms_add_one=True,
        config=_GEMMA3,
        implied=_query_scale(62),
    ),
    "granite": Architecture("granite", "GraniteForCausalLM", permuted=True, numbers=_GRANITE),
    "smollm3": Architecture("smollm3", "SmolLM3ForCausalLM", permuted=True),
    "olmo": Architecture(
        "olmo",
        "OlmoForCausalLM",
        permuted=True,
        numbers={"clip_qkv": "attention.clamp_kqv"},
        epsilon="",
    ),
    "command-r": Architecture(
        "cohere",
        "CohereForCausalLM",
        numbers={"logit_scale": "logit_scale"},
        present={"use_qk_norm": "blk.0.attn_q_norm.weight"},
        epsilon="layer_norm_eps",
    ),
    "stablelm": Architecture(
        "stablelm",
        "StableLmForCausalLM",
        present={"use_qkv_bias": "blk.0.attn_q.bias"},
        epsilon="layer_norm_eps",
    ),
    "starcoder2": Architecture(
        "starcoder2",
        "Starcoder2ForCausalLM",
        {**_LAYER, **_PLAIN_MLP},
        config={"use_bias": True, "hidden_act": "gelu_pytorch_tanh"},
        epsilon="norm_epsilon",
    ),
    "olmo2": Architecture("olmo2", "Olmo2ForCausalLM", {**_LAYER, **_AFTER}),
}
