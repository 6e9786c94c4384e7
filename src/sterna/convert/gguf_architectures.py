"""The architectures of GGUF files: one row each, what their names and numbers are here.

In: the value of `general.architecture`. Out: an Architecture, which maps the file's tensors to the
names of checkpoints and says what llama.cpp's converter changed on the way: it reorders the rows of
query and key projections that rotate in halves, adds 1 to Gemma's norms, and so on. Knows no file.
Models with experts, latent attention or states have their rows in `gguf_mixtures`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from sterna.convert.gguf_architecture import ADDED_ONE, ENDS, LAYER, Architecture, Paths
from sterna.convert.gguf_keys import Keys
from sterna.convert.gguf_layouts import (
    grouped_heads,
    of_rows,
    rotated_halves,
    shaped,
    turned_rows,
)
from sterna.convert.gguf_mixtures import MIXTRAL, MIXTURES

_FUSED = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
_PLAIN_MLP = {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}
_SANDWICH = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_AFTER = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_JOINED: dict[str, Paths] = {"attn_qkv": _QKV}
_GLM: dict[str, Paths] = {**LAYER, **_JOINED, "ffn_up": "mlp.gate_up_proj"}
_GLM4: dict[str, Paths] = {
    **_GLM,
    "post_attention_norm": "post_self_attn_layernorm",
    "post_ffw_norm": "post_mlp_layernorm",
}
_PHI: dict[str, Paths] = {
    **LAYER,
    **_JOINED,
    "attn_output": "self_attn.dense",
    "ffn_up": "mlp.fc1",
    "ffn_down": "mlp.fc2",
}
_GPT2 = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_GPT2_ENDS = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
_MEGATRON = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "attention.query_key_value",
    "attn_output": "attention.dense",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}
_NEOX_ENDS = {
    "token_embd": "gpt_neox.embed_in",
    "output_norm": "gpt_neox.final_layer_norm",
    "output": "embed_out",
}
_FALCON = {
    **{name: path.replace("attention.", "self_attention.") for name, path in _MEGATRON.items()},
    "attn_norm": "input_layernorm",
}
_FALCON_ENDS = {
    "token_embd": "transformer.word_embeddings",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
_BERT = {
    "attn_q": "attention.self.query",
    "attn_k": "attention.self.key",
    "attn_v": "attention.self.value",
    "attn_output": "attention.output.dense",
    "attn_output_norm": "attention.output.LayerNorm",
    "ffn_up": "intermediate.dense",
    "ffn_down": "output.dense",
    "layer_output_norm": "output.LayerNorm",
}
_BERT_ENDS = {
    "token_embd": "bert.embeddings.word_embeddings",
    "position_embd": "bert.embeddings.position_embeddings",
    "token_types": "bert.embeddings.token_type_embeddings",
    "token_embd_norm": "bert.embeddings.LayerNorm",
}
_PAIRS = {
    "self_attn.q_proj": rotated_halves("num_attention_heads"),
    "self_attn.k_proj": rotated_halves("num_key_value_heads"),
}
_APART = {path: of_rows(i) for i, path in enumerate(_QKV)}


def _query_scale(largest: int) -> Callable[[Mapping[str, Any], Keys], dict[str, Any]]:
    """Gemma's: only the largest model, of so many layers, divides its hidden size for it."""

    def implied(config: Mapping[str, Any], keys: Keys) -> dict[str, Any]:
        shared = config["hidden_size"] // config["num_attention_heads"]
        is_largest = config["num_hidden_layers"] == largest
        return {"query_pre_attn_scalar": shared if is_largest else config["head_dim"]}

    return implied


def _sliding_types(config: Mapping[str, Any], keys: Keys) -> dict[str, Any]:
    """Which layers have the window, as OLMo 3's files list it."""
    if not keys.has("attention.sliding_window_pattern"):
        return {}
    each = keys.flags("attention.sliding_window_pattern")
    return {"layer_types": [f"{'sliding' if own else 'full'}_attention" for own in each]}


def _falcon_heads(config: Mapping[str, Any], keys: Keys) -> dict[str, Any]:
    """The larger models have a norm for each half, the others one key head or all."""
    large = keys.holds("attn_norm_2.weight")
    groups = config["num_key_value_heads"]
    if large:
        return {"new_decoder_architecture": True, "num_kv_heads": groups}
    return {"multi_query": groups == 1}


def _falcon(layer: Mapping[str, Paths], **own: Any) -> Architecture:
    return Architecture(
        "falcon",
        "FalconForCausalLM",
        layer,
        _FALCON_ENDS,
        "transformer.h",
        undo={"self_attention.query_key_value": grouped_heads},
        present={"bias": "attn_qkv.bias"},
        implied=_falcon_heads,
        epsilon="layer_norm_epsilon",
        **own,
    )


def _token_types(config: Mapping[str, Any], keys: Keys) -> dict[str, Any]:
    types = keys.file.tensors.get("token_types.weight")
    width = config["hidden_size"]
    return {"type_vocab_size": max(1, prod(types.shape) // width)} if types is not None else {}


_GEMMA = {"hidden_activation": "gelu_pytorch_tanh"}
_GEMMA3 = {**_GEMMA, "rope_local_base_freq": 10000.0, "sliding_window_pattern": 6}
_GRANITE = {
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}
_PLAIN: dict[str, Architecture] = {
    "llama": Architecture(
        "llama",
        "LlamaForCausalLM",
        undo=_PAIRS,
        present={"attention_bias": "attn_q.bias"},
        other=Architecture(
            "mixtral",
            "MixtralForCausalLM",
            {**LAYER, **MIXTRAL},
            undo=_PAIRS,
            counts={
                "num_experts_per_tok": "expert_used_count",
                "num_local_experts": "expert_count",
            },
        ),
        is_other=lambda keys: bool(keys.get("expert_count")),
    ),
    # Its converter takes q, k and v apart, and then this is a Llama.
    "internlm2": Architecture("llama", "LlamaForCausalLM", undo=_PAIRS),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM"),
    # Of Qwen2-VL and 2.5-VL, whose towers are in files of their own. The three positions of a
    # text's token are the same, and then this is a Qwen2.
    "qwen2vl": Architecture("qwen2", "Qwen2ForCausalLM"),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM"),
    "phi2": Architecture(
        "phi",
        "PhiForCausalLM",
        _PHI,
        {**ENDS, "output_norm": "model.final_layernorm"},
        undo=_APART,
        epsilon="layer_norm_eps",
    ),
    "phi3": Architecture("phi3", "Phi3ForCausalLM", {**LAYER, **_FUSED}),
    "gemma": Architecture("gemma", "GemmaForCausalLM", undo=ADDED_ONE, config=_GEMMA),
    "gemma2": Architecture(
        "gemma2",
        "Gemma2ForCausalLM",
        {**LAYER, **_SANDWICH},
        undo=ADDED_ONE,
        config=_GEMMA,
        implied=_query_scale(46),
    ),
    "gemma3": Architecture(
        "gemma3_text",
        "Gemma3ForCausalLM",
        {**LAYER, **_SANDWICH},
        undo=ADDED_ONE,
        config=_GEMMA3,
        implied=_query_scale(62),
    ),
    "granite": Architecture("granite", "GraniteForCausalLM", undo=_PAIRS, numbers=_GRANITE),
    "smollm3": Architecture("smollm3", "SmolLM3ForCausalLM", undo=_PAIRS),
    "olmo": Architecture(
        "olmo",
        "OlmoForCausalLM",
        undo=_PAIRS,
        numbers={"clip_qkv": "attention.clamp_kqv"},
        epsilon="",
    ),
    "command-r": Architecture(
        "cohere",
        "CohereForCausalLM",
        numbers={"logit_scale": "logit_scale"},
        present={"use_qk_norm": "attn_q_norm.weight"},
        epsilon="layer_norm_eps",
    ),
    "cohere2": Architecture(
        "cohere2",
        "Cohere2ForCausalLM",
        numbers={"logit_scale": "logit_scale"},
        implied=_sliding_types,
        epsilon="layer_norm_eps",
    ),
    "stablelm": Architecture(
        "stablelm",
        "StableLmForCausalLM",
        present={"use_qkv_bias": "attn_q.bias"},
        epsilon="layer_norm_eps",
    ),
    "starcoder2": Architecture(
        "starcoder2",
        "Starcoder2ForCausalLM",
        {**LAYER, **_PLAIN_MLP},
        config={"use_bias": True, "hidden_act": "gelu_pytorch_tanh"},
        epsilon="norm_epsilon",
    ),
    "olmo2": Architecture(
        "olmo2",
        "Olmo2ForCausalLM",
        {**LAYER, **_AFTER},
        other=Architecture(
            "olmo3", "Olmo3ForCausalLM", {**LAYER, **_AFTER}, implied=_sliding_types
        ),
        is_other=lambda keys: keys.has("attention.sliding_window"),
    ),
    "chatglm": Architecture(
        "glm",
        "GlmForCausalLM",
        _GLM,
        undo=_APART,
        present={"attention_bias": "attn_q.bias"},
        implied=lambda config, keys: (
            {"attention_bias": True} if keys.holds("attn_qkv.bias") else {}
        ),
    ),
    "glm4": Architecture(
        "glm4",
        "Glm4ForCausalLM",
        _GLM4,
        undo=_APART,
        present={"attention_bias": "attn_q.bias"},
    ),
    "gpt2": Architecture(
        "gpt2",
        "GPT2LMHeadModel",
        _GPT2,
        _GPT2_ENDS,
        "transformer.h",
        undo=dict.fromkeys(
            (f"{_GPT2[name]}.weight" for name in ("attn_qkv", "attn_output", "ffn_up", "ffn_down")),
            turned_rows,
        ),
        epsilon="layer_norm_epsilon",
    ),
    "starcoder": Architecture(
        "gpt_bigcode",
        "GPTBigCodeForCausalLM",
        _GPT2,
        _GPT2_ENDS,
        "transformer.h",
        epsilon="layer_norm_epsilon",
    ),
    "gptneox": Architecture(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        _MEGATRON,
        _NEOX_ENDS,
        "gpt_neox.layers",
        undo={"attention.query_key_value": grouped_heads},
        flags={"use_parallel_residual": "use_parallel_residual"},
        present={"attention_bias": "attn_qkv.bias"},
        epsilon="layer_norm_eps",
    ),
    "falcon": _falcon(
        _FALCON,
        other=_falcon({**_FALCON, "attn_norm": "ln_mlp", "attn_norm_2": "ln_attn"}),
        is_other=lambda keys: keys.holds("attn_norm_2.weight"),
    ),
    "bert": Architecture(
        "bert",
        "BertModel",
        _BERT,
        _BERT_ENDS,
        "bert.encoder.layer",
        undo={
            "bert.embeddings.token_type_embeddings.weight": shaped(-1, "hidden_size"),
        },
        implied=_token_types,
        epsilon="layer_norm_eps",
    ),
}
ARCHITECTURES: dict[str, Architecture] = {**_PLAIN, **MIXTURES}
