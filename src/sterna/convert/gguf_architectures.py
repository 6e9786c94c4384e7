"""The architectures of GGUF files: one row each, what their names and numbers are here.

In: the value of `general.architecture`. Out: a row that maps the file's tensors to the names of
checkpoints, and says what llama.cpp's converter changed on the way: it reorders the rows of query
and key projections that rotate in halves, and adds 1 to Gemma's norms. Knows no file.
"""

from __future__ import annotations

from collections.abc import Mapping
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
_AFTER = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
ROPE_TABLES = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


@dataclass(frozen=True, slots=True)
class Architecture:
    """One value of general.architecture.

    `layer` maps the names of a layer's tensors; `permuted` says that rows of q and k lie in the
    order of interleaved rotation; `norms_add_one` that norms hold weight + 1; `config` is what the
    architecture implies besides the keys of the file, `numbers` are keys of its own, `present`
    are flags that a tensor's presence tells. `epsilon` is what config.json calls the norms' own.
    """

    model_type: str
    class_name: str
    layer: Mapping[str, str] = field(default_factory=lambda: MappingProxyType(_LAYER))
    permuted: bool = False
    norms_add_one: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    numbers: Mapping[str, str] = field(default_factory=dict)
    present: Mapping[str, str] = field(default_factory=dict)
    epsilon: str = "rms_norm_eps"


_GEMMA = {"hidden_activation": "gelu_pytorch_tanh"}
_GEMMA3 = {**_GEMMA, "rope_local_base_freq": 10000.0, "sliding_window_pattern": 6}
_GRANITE = {
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}
ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(
        "llama",
        "LlamaForCausalLM",
        permuted=True,
        present={"attention_bias": "blk.0.attn_q.bias"},
    ),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM"),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM"),
    "phi3": Architecture("phi3", "Phi3ForCausalLM", {**_LAYER, **_FUSED}),
    "gemma": Architecture("gemma", "GemmaForCausalLM", norms_add_one=True, config=_GEMMA),
    "gemma2": Architecture(
        "gemma2", "Gemma2ForCausalLM", {**_LAYER, **_SANDWICH}, norms_add_one=True, config=_GEMMA
    ),
    "gemma3": Architecture(
        "gemma3_text",
        "Gemma3ForCausalLM",
        {**_LAYER, **_SANDWICH},
        norms_add_one=True,
        config=_GEMMA3,
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
