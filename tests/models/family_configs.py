"""Configs that several variants of `tiny_families` begin with, one a family or a kind of norm.

In: nothing. Out: config.json as dicts of tiny sizes, as transformers writes them.
"""

from __future__ import annotations

from collections.abc import Mapping

BASE: dict[str, object] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NO_EPS = {k: v for k, v in BASE.items() if k != "rms_norm_eps"}
LAYER_NORM = {**NO_EPS, "layer_norm_eps": 1e-5}
GPT = {
    "n_embd": 48,
    "n_head": 4,
    "n_layer": 2,
    "n_positions": 64,
    "n_inner": None,
    "vocab_size": 64,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}


def of(
    kind: str, architecture: str, base: Mapping[str, object], **own: object
) -> dict[str, object]:
    return {**base, "model_type": kind, "architectures": [architecture], **own}


QWEN2 = of(
    "qwen2",
    "Qwen2ForCausalLM",
    BASE,
    rope_theta=1000000.0,
    use_sliding_window=False,
    sliding_window=32,
    max_window_layers=1,
)
GEMMA2 = of(
    "gemma2",
    "Gemma2ForCausalLM",
    BASE,
    num_hidden_layers=3,
    head_dim=16,
    hidden_activation="gelu_pytorch_tanh",
    query_pre_attn_scalar=24,
    attn_logit_softcapping=5.0,
    final_logit_softcapping=3.0,
    sliding_window=8,
    tie_word_embeddings=True,
)
GEMMA3 = of(
    "gemma3_text",
    "Gemma3ForCausalLM",
    {k: v for k, v in BASE.items() if k != "hidden_act"},
    num_hidden_layers=8,
    head_dim=16,
    hidden_activation="gelu_pytorch_tanh",
    query_pre_attn_scalar=24,
    rope_theta=1000000.0,
    rope_local_base_freq=10000.0,
    rope_scaling={"factor": 8.0, "rope_type": "linear"},
    sliding_window=8,
    sliding_window_pattern=3,
    tie_word_embeddings=True,
)
COHERE = of(
    "cohere",
    "CohereForCausalLM",
    LAYER_NORM,
    logit_scale=0.25,
    use_qk_norm=False,
    tie_word_embeddings=True,
)
LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0 + 0.1 * i for i in range(6)],
    "long_factor": [1.5 + i for i in range(6)],
}

QWEN3_MOE = of(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    BASE,
    head_dim=16,
    num_hidden_layers=3,
    num_experts=6,
    num_experts_per_tok=2,
    moe_intermediate_size=32,
    norm_topk_prob=True,
    decoder_sparse_step=1,
    mlp_only_layers=[0],
)

DEEPSEEK = of(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    BASE,
    num_hidden_layers=3,
    num_key_value_heads=4,
    q_lora_rank=24,
    kv_lora_rank=32,
    qk_nope_head_dim=12,
    qk_rope_head_dim=8,
    v_head_dim=20,
    n_routed_experts=8,
    n_shared_experts=1,
    num_experts_per_tok=3,
    moe_intermediate_size=32,
    n_group=4,
    topk_group=2,
    norm_topk_prob=True,
    routed_scaling_factor=2.5,
    first_k_dense_replace=1,
    rope_theta=10000,
    rope_scaling={
        "type": "yarn",
        "factor": 8.0,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 0.7,
        "original_max_position_embeddings": 16,
    },
)

FALCON = of(
    "falcon",
    "FalconForCausalLM",
    {k: v for k, v in NO_EPS.items() if k not in ("num_key_value_heads", "intermediate_size",
                                                  "hidden_act", "tie_word_embeddings")},
    layer_norm_epsilon=1e-5,
    alibi=False,
    bias=False,
    multi_query=True,
    parallel_attn=True,
    new_decoder_architecture=False,
)  # fmt: skip
LLAMA4 = of(
    "llama4_text",
    "Llama4ForCausalLM",
    BASE,
    num_hidden_layers=5,
    head_dim=16,
    intermediate_size=32,
    intermediate_size_mlp=72,
    num_local_experts=4,
    num_experts_per_tok=1,
    interleave_moe_layer_step=2,
    no_rope_layers=[],
    no_rope_layer_interval=4,
    attention_chunk_size=12,
    use_qk_norm=True,
    attn_temperature_tuning=True,
    floor_scale=8,
    attn_scale=0.3,
    rope_theta=500000.0,
    rope_scaling={
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 2.0,
        "original_max_position_embeddings": 32,
    },
)

MAMBA2 = {
    "model_type": "mamba2",
    "architectures": ["Mamba2ForCausalLM"],
    "hidden_size": 48,
    "expand": 2,
    "num_heads": 6,
    "head_dim": 16,
    "state_size": 8,
    "n_groups": 2,
    "conv_kernel": 4,
    "num_hidden_layers": 2,
    "vocab_size": 64,
    "layer_norm_epsilon": 1e-5,
    "hidden_act": "silu",
    "use_bias": False,
    "use_conv_bias": True,
    "chunk_size": 16,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
}

# Heads of 64: the authors' own program knows no others.
RWKV7 = {
    "model_type": "rwkv7",
    "architectures": ["RWKV7ForCausalLM"],
    "attn": None,
    "attn_mode": "chunk",
    "hidden_size": 128,
    "hidden_ratio": 1.25,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_heads": 2,
    "head_dim": 64,
    "value_dim": [128, 128],
    "decay_low_rank_dim": 24,
    "gate_low_rank_dim": 32,
    "a_low_rank_dim": 16,
    "v_low_rank_dim": 8,
    "hidden_act": "sqrelu",
    "max_position_embeddings": 64,
    "norm_first": True,
    "norm_bias": True,
    "norm_eps": 1e-5,
    "fuse_norm": False,
    "fuse_cross_entropy": True,
    "use_l2warp": True,
    "vocab_size": 64,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
}

GRANITE_HYBRID = of(
    "granitemoehybrid",
    "GraniteMoeHybridForCausalLM",
    BASE,
    num_hidden_layers=5,
    layer_types=["mamba", "mamba", "attention", "mamba", "attention"],
    shared_intermediate_size=72,
    num_local_experts=0,
    num_experts_per_tok=0,
    position_embedding_type="nope",
    mamba_n_heads=6,
    mamba_d_head=16,
    mamba_d_state=8,
    mamba_n_groups=2,
    mamba_d_conv=4,
    mamba_expand=2,
    mamba_chunk_size=16,
    mamba_conv_bias=True,
    mamba_proj_bias=False,
    embedding_multiplier=3.0,
    logits_scaling=2.0,
    residual_multiplier=0.5,
    attention_multiplier=0.2,
    normalization_function="rmsnorm",
    max_position_embeddings=256,
)

# Heads of keys that serve two of values each, and of other sizes than those.
QWEN3_NEXT = of(
    "qwen3_next",
    "Qwen3NextForCausalLM",
    BASE,
    num_hidden_layers=4,
    head_dim=16,
    full_attention_interval=3,
    partial_rotary_factor=0.25,
    rope_theta=10000000,
    linear_conv_kernel_dim=4,
    linear_key_head_dim=8,
    linear_value_head_dim=12,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    decoder_sparse_step=1,
    mlp_only_layers=[],
    num_experts=6,
    num_experts_per_tok=2,
    moe_intermediate_size=32,
    shared_expert_intermediate_size=40,
    norm_topk_prob=True,
    attention_bias=False,
    use_sliding_window=False,
    max_position_embeddings=256,
)
QWEN35 = of(
    "qwen3_5_text",
    "Qwen3_5ForCausalLM",
    BASE,
    num_hidden_layers=3,
    head_dim=16,
    layer_types=["linear_attention", "full_attention", "linear_attention"],
    linear_conv_kernel_dim=4,
    linear_key_head_dim=12,
    linear_value_head_dim=8,
    linear_num_key_heads=2,
    linear_num_value_heads=6,
    attn_output_gate=True,
    mamba_ssm_dtype="float32",
    mtp_num_hidden_layers=1,
    rope_parameters={
        "mrope_interleaved": True,
        "mrope_section": [1, 1, 0],
        "partial_rotary_factor": 0.25,
        "rope_theta": 10000000,
        "rope_type": "default",
    },
    max_position_embeddings=256,
    tie_word_embeddings=True,
)
QWEN35_MOE = of(
    "qwen3_5_moe_text",
    "Qwen3_5MoeForCausalLM",
    {k: v for k, v in QWEN35.items() if k != "intermediate_size"},
    num_hidden_layers=2,
    layer_types=["linear_attention", "full_attention"],
    num_experts=6,
    num_experts_per_tok=2,
    moe_intermediate_size=32,
    shared_expert_intermediate_size=40,
    tie_word_embeddings=False,
)
