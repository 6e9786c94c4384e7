"""Tiny random-weight models of every family but Llama, and what transformers gave for them.

In: a variant's name. Out: its config.json as a dict, float32 weights under the checkpoint's names,
and stored logits of one prompt at a few positions. `tiny.py` has the same for Llama at length.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from family_configs import (
    BASE,
    COHERE,
    DEEPSEEK,
    FALCON,
    GEMMA2,
    GEMMA3,
    GPT,
    GRANITE_HYBRID,
    LAYER_NORM,
    LLAMA4,
    LONGROPE,
    MAMBA2,
    NO_EPS,
    QWEN2,
    QWEN3_MOE,
    QWEN3_NEXT,
    QWEN35,
    QWEN35_MOE,
    RWKV7,
    of,
)
from numpy.typing import NDArray

Weights = dict[str, NDArray[np.float32]]

GOLDENS = Path(__file__).parent / "goldens" / "families"
CONTEXT = 64
PROMPT = (1, *((7 * i * i + 31 * i) % 61 + 2 for i in range(1, 40)))
POSITIONS = (0, 1, 7, 15, 16, 22, 39)  # around a page's border and windows of 8 and 16

VARIANTS: dict[str, dict[str, object]] = {
    "qwen2": QWEN2,
    "qwen2-window": {**QWEN2, "use_sliding_window": True, "sliding_window": 8},
    "qwen3": of("qwen3", "Qwen3ForCausalLM", BASE, head_dim=16, tie_word_embeddings=True),
    "phi3": of("phi3", "Phi3ForCausalLM", BASE, sliding_window=16, pad_token_id=0),
    "phi3-longrope": of(
        "phi3",
        "Phi3ForCausalLM",
        BASE,
        pad_token_id=0,
        original_max_position_embeddings=32,
        rope_scaling=LONGROPE,
    ),
    "phi4-mini": of(
        "phi3",
        "Phi3ForCausalLM",
        BASE,
        pad_token_id=0,
        head_dim=16,
        hidden_size=64,
        partial_rotary_factor=0.75,
        tie_word_embeddings=True,
    ),
    "gemma": of(
        "gemma",
        "GemmaForCausalLM",
        BASE,
        head_dim=16,
        num_key_value_heads=1,
        hidden_act="gelu_pytorch_tanh",
        tie_word_embeddings=True,
    ),
    "gemma2": GEMMA2,
    "gemma3": GEMMA3,
    "stablelm": of(
        "stablelm",
        "StableLmForCausalLM",
        LAYER_NORM,
        hidden_size=64,
        use_qkv_bias=True,
        partial_rotary_factor=0.25,
    ),
    "olmo": of("olmo", "OlmoForCausalLM", NO_EPS, clip_qkv=0.8),
    "olmo2": of("olmo2", "Olmo2ForCausalLM", BASE),
    "olmo3": of(
        "olmo3",
        "Olmo3ForCausalLM",
        BASE,
        num_hidden_layers=5,
        sliding_window=8,
        rope_theta=500000.0,
        rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    ),
    "gpt2": of("gpt2", "GPT2LMHeadModel", GPT),
    "gpt-bigcode": of(
        "gpt_bigcode",
        "GPTBigCodeForCausalLM",
        GPT,
        multi_query=True,
        activation_function="gelu_pytorch_tanh",
    ),
    "starcoder2": of(
        "starcoder2",
        "Starcoder2ForCausalLM",
        NO_EPS,
        norm_epsilon=1e-5,
        use_bias=True,
        hidden_act="gelu_pytorch_tanh",
        sliding_window=16,
        tie_word_embeddings=True,
    ),
    "gpt-neox": of(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        {k: v for k, v in LAYER_NORM.items() if k != "num_key_value_heads"},
        hidden_size=64,
        hidden_act="gelu",
        rotary_pct=0.25,
        rotary_emb_base=10000,
        use_parallel_residual=True,
    ),
    "gpt-neox-serial": of(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        {k: v for k, v in LAYER_NORM.items() if k != "num_key_value_heads"},
        hidden_size=64,
        hidden_act="gelu",
        rotary_pct=1.0,
        rotary_emb_base=10000,
        use_parallel_residual=False,
    ),
    "gptj": of("gptj", "GPTJForCausalLM", GPT, rotary_dim=8, tie_word_embeddings=False),
    "phi": of(
        "phi",
        "PhiForCausalLM",
        LAYER_NORM,
        hidden_size=64,
        num_key_value_heads=4,
        hidden_act="gelu_new",
        partial_rotary_factor=0.5,
        qk_layernorm=False,
    ),
    "internlm2": of(
        "internlm2", "InternLM2ForCausalLM", BASE, bias=False, rope_theta=1000000, rope_scaling=None
    ),
    "cohere": COHERE,
    "cohere-head-norms": {**COHERE, "use_qk_norm": True, "layer_norm_eps": 1e-5},
    "cohere2": of(
        "cohere2",
        "Cohere2ForCausalLM",
        LAYER_NORM,
        num_hidden_layers=5,
        head_dim=12,
        logit_scale=0.25,
        sliding_window=8,
        tie_word_embeddings=True,
    ),
    "granite": of(
        "granite",
        "GraniteForCausalLM",
        BASE,
        embedding_multiplier=6.0,
        logits_scaling=4.0,
        residual_multiplier=0.5,
        attention_multiplier=0.125,
        tie_word_embeddings=True,
    ),
    "smollm3": of(
        "smollm3",
        "SmolLM3ForCausalLM",
        BASE,
        num_hidden_layers=5,
        pad_token_id=0,
        no_rope_layer_interval=4,
        tie_word_embeddings=True,
        use_sliding_window=False,
    ),
    "glm": of(
        "glm",
        "GlmForCausalLM",
        BASE,
        pad_token_id=0,
        head_dim=16,
        attention_bias=True,
        partial_rotary_factor=0.5,
    ),
    "mixtral": of(
        "mixtral",
        "MixtralForCausalLM",
        BASE,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=None,
        rope_theta=1000000.0,
    ),
    "qwen2-moe": of(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        BASE,
        num_experts=6,
        num_experts_per_tok=3,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=40,
        norm_topk_prob=False,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        use_sliding_window=False,
    ),
    "qwen3-moe": QWEN3_MOE,
    "gpt-oss": of(
        "gpt_oss",
        "GptOssForCausalLM",
        BASE,
        num_hidden_layers=3,
        hidden_size=64,
        intermediate_size=96,
        head_dim=16,
        attention_bias=True,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        num_local_experts=6,
        num_experts_per_tok=2,
        experts_per_token=2,
        swiglu_limit=1.5,
        rope_theta=150000,
        rope_scaling={
            "rope_type": "yarn",
            "factor": 8.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 16,
        },
    ),
    "deepseek-v3": DEEPSEEK,
    "kimi-k2": {  # as DeepSeek V3 with one group
        **DEEPSEEK,
        "model_type": "kimi_k2",
        "n_group": 1,
        "topk_group": 1,
        "rope_scaling": {**DEEPSEEK["rope_scaling"], "mscale_all_dim": 1.0},  # type: ignore[dict-item]
    },
    "deepseek-v2": {
        **DEEPSEEK,
        "model_type": "deepseek_v2",
        "architectures": ["DeepseekV2ForCausalLM"],
        "norm_topk_prob": False,
        "n_shared_experts": 2,
        "topk_method": "group_limited_greedy",
        "scoring_func": "softmax",
    },
    "deepseek-v2-lite": {
        **DEEPSEEK,
        "model_type": "deepseek_v2",
        "architectures": ["DeepseekV2ForCausalLM"],
        "norm_topk_prob": False,
        "q_lora_rank": None,
        "topk_method": "greedy",
        "n_group": 1,
        "topk_group": 1,
        "rope_scaling": None,
    },
    "glm4-moe": of(
        "glm4_moe",
        "Glm4MoeForCausalLM",
        BASE,
        num_hidden_layers=3,
        head_dim=16,
        partial_rotary_factor=0.5,
        attention_bias=True,
        use_qk_norm=True,
        n_routed_experts=6,
        n_shared_experts=1,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        n_group=1,
        topk_group=1,
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
        first_k_dense_replace=1,
        num_nextn_predict_layers=1,
    ),
    "falcon": FALCON,
    "falcon-large": {
        **FALCON,
        "new_decoder_architecture": True,
        "num_kv_heads": 2,
        "bias": True,
        "tie_word_embeddings": False,
    },
    "opt": of(
        "opt",
        "OPTForCausalLM",
        {k: v for k, v in NO_EPS.items() if k in ("hidden_size", "vocab_size", "torch_dtype")},
        activation_function="relu",
        do_layer_norm_before=True,
        ffn_dim=80,
        max_position_embeddings=64,
        num_attention_heads=4,
        num_hidden_layers=2,
        word_embed_proj_dim=48,
        pad_token_id=1,
    ),
    "codegen": of("codegen", "CodeGenForCausalLM", GPT, rotary_dim=8, tie_word_embeddings=False),
    "llama4": LLAMA4,
    "llama4-plain": {
        **LLAMA4,
        "use_qk_norm": False,
        "attn_temperature_tuning": False,
        "interleave_moe_layer_step": 1,
        "attention_chunk_size": None,
        "rope_scaling": None,
    },
    "glm4": of(
        "glm4",
        "Glm4ForCausalLM",
        BASE,
        pad_token_id=0,
        head_dim=16,
        attention_bias=False,
        partial_rotary_factor=0.5,
    ),
    "mamba2": MAMBA2,
    "mamba2-tied": {
        **MAMBA2,
        "n_groups": 1,
        "use_bias": True,
        "use_conv_bias": False,
        "tie_word_embeddings": True,
    },
    "rwkv7": RWKV7,
    "rwkv7-3-layers": {
        **RWKV7,
        "model_type": "rwkv7_fla",  # as files of some months have it
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_heads": None,
        "value_dim": None,
        "intermediate_size": None,
        "hidden_ratio": 3.6,
    },
    "granitemoehybrid": GRANITE_HYBRID,
    "granitemoehybrid-rope": {
        **GRANITE_HYBRID,
        "num_hidden_layers": 4,
        "layer_types": ["attention", "mamba", "attention", "mamba"],
        "position_embedding_type": "rope",
        "mamba_proj_bias": True,
        "mamba_conv_bias": False,
        "mamba_d_head": "auto",
        "mamba_n_groups": 1,
        "tie_word_embeddings": True,
    },
    "granitemoehybrid-experts": {
        **GRANITE_HYBRID,
        "num_hidden_layers": 3,
        "layer_types": ["mamba", "attention", "mamba"],
        "intermediate_size": 32,
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
    },
    "qwen3-next": QWEN3_NEXT,
    "qwen3.5": QWEN35,
    "qwen3.5-moe": QWEN35_MOE,
}


# Models that give hidden states. transformers does not read `sentence_...`: modules.json says it.
BERT = of(
    "bert",
    "BertModel",
    {k: v for k, v in NO_EPS.items() if k != "num_key_value_heads"},
    layer_norm_eps=1e-12,
    hidden_act="gelu",
    type_vocab_size=2,
    position_embedding_type="absolute",
    max_position_embeddings=64,
    pad_token_id=0,
    hidden_dropout_prob=0.1,
    attention_probs_dropout_prob=0.1,
    classifier_dropout=None,
    initializer_range=0.02,
    use_cache=True,
)
EMBEDDING: dict[str, dict[str, object]] = {
    "bert": BERT,
    "qwen3-embedding": of(
        "qwen3",
        "Qwen3ForCausalLM",
        BASE,
        head_dim=16,
        tie_word_embeddings=True,
        sentence_pooling="last",
        sentence_normalize=True,
    ),
}
MODELS = {**VARIANTS, **EMBEDDING}


def draw(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A tensor from its own name: raw PCG64 words, a stream that numpy promises to keep."""
    words = np.random.PCG64(zlib.crc32(name.encode())).random_raw(int(np.prod(shape)))
    unit = ((words >> np.uint64(11)) * 2.0**-52 - 1.0).reshape(shape) * 3.0**0.5  # variance 1
    if name.endswith("A_log"):  # states that are remembered for some tokens
        drawn = unit - 2.5
    elif ".x_" in name:  # shares of the token before
        drawn = 0.5 + 0.2 * unit
    elif name.endswith("bias"):
        drawn = 0.3 * unit
    elif len(shape) == 1 or "norm" in name:
        drawn = 1.0 + 0.1 * unit
    else:
        drawn = unit / shape[-1] ** 0.5
    return drawn.astype(np.float32)


def checksum(tensors: Weights) -> int:
    """A CRC-32 over all names and bytes."""
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(name.encode(), value)
        value = zlib.crc32(np.ascontiguousarray(tensors[name], "<f4").tobytes(), value)
    return value


def mean_state(variant: str) -> NDArray[np.float32]:
    """Of an embedding model's states at all positions."""
    with np.load(GOLDENS / f"{variant}.npz") as stored:
        mean: NDArray[np.float32] = stored["mean"]
        return mean


def golden(variant: str) -> tuple[NDArray[np.float32], int]:
    """(logits or states at POSITIONS, the checksum of the weights that gave them)."""
    with np.load(GOLDENS / f"{variant}.npz") as stored:
        name = "states" if variant in EMBEDDING else "logits"
        return stored[name], int(stored["weights_crc32"])
