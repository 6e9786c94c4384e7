"""Writes the goldens beside it: `python tests/models/make_goldens.py`, with torch and transformers.

Out: for each variant of `tiny.py` the logits that transformers computes in float32 on the CPU with
eager attention, and `goldens/rope.json`: inverse frequencies for rope keys of many kinds. Each npz
also names the library versions, the checksum of the weights, and how far the float32 logits lie
from those of the same model in float64. (transformers keeps the norms, the softmax and the rotary
angles in float32 even there, so that figure is a lower bound of the reference's own error.)
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import tiny
import torch
import transformers
from numpy.typing import NDArray
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"type": "yarn", "factor": 16.0, "original_max_position_embeddings": 4096}

LONG = {
    "type": "longrope",
    "short_factor": [1.0 + 0.03 * i for i in range(32)],
    "long_factor": [1.0 + 0.2 * i * i for i in range(32)],
}
ORIGINAL = {"original_max_position_embeddings": 1024}

# Name -> (head_dim, context length or None, the rope keys of a config).
ROPE_CASES: dict[str, tuple[int, int | None, dict[str, object]]] = {
    "no keys": (128, None, {}),
    "theta": (64, None, {"rope_theta": 1000000.0, "rope_scaling": None}),
    "head_dim 80": (80, None, {"rope_theta": 500000.0}),
    "head_dim 96, parameters": (
        96,
        None,
        {"rope_parameters": {"rope_type": "default", "rope_theta": 150000}},
    ),
    "linear": (64, None, {"rope_scaling": {"type": "linear", "factor": 2.5}}),
    "linear, parameters": (
        128,
        None,
        {"rope_parameters": {"rope_type": "linear", "factor": 8, "rope_theta": 1000000.0}},
    ),
    "dynamic, below": (64, 1000, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    "dynamic, at": (64, 2048, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    "dynamic, one above": (64, 2049, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    "dynamic, above": (
        80,
        8192,
        {"rope_theta": 500000.0, "rope_scaling": {"rope_type": "dynamic", "factor": 2.3}},
    ),
    "llama 3.1": (
        128,
        None,
        {
            "rope_theta": 500000.0,
            "max_position_embeddings": 131072,
            "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 8192},
        },
    ),
    "llama 3.2": (
        64,
        None,
        {
            "max_position_embeddings": 131072,
            "rope_parameters": {
                **LLAMA3,
                "factor": 32.0,
                "original_max_position_embeddings": 8192,
                "rope_theta": 500000.0,
            },
        },
    ),
    "llama3, original length left out": (96, None, {"rope_scaling": LLAMA3}),
    "longrope, short": (
        64,
        1024,
        {"max_position_embeddings": 2048, "rope_scaling": LONG, **ORIGINAL},
    ),
    "longrope, long": (
        64,
        1025,
        {"max_position_embeddings": 2048, "rope_scaling": LONG, **ORIGINAL},
    ),
    "longrope, parameters": (
        64,
        2048,
        {
            "max_position_embeddings": 2048,
            "rope_parameters": {**LONG, "rope_theta": 500000.0, **ORIGINAL},
        },
    ),
    "longrope, attention_factor": (
        64,
        2048,
        {
            "max_position_embeddings": 4096,
            "rope_scaling": {**LONG, "attention_factor": 1.25},
            **ORIGINAL,
        },
    ),
    "yarn": (128, None, {"max_position_embeddings": 65536, "rope_scaling": YARN}),
    "yarn, finetuned": (128, None, {"rope_scaling": {**YARN, "finetuned": True}}),
    "yarn, original length left out": (80, None, {"rope_scaling": {"type": "yarn", "factor": 4}}),
    "yarn, original length outside": (
        64,
        None,
        {
            "max_position_embeddings": 65536,
            "original_max_position_embeddings": 8192,
            "rope_scaling": {"type": "yarn", "factor": 8.0},
        },
    ),
    "yarn, null factor": (
        64,
        None,
        {"max_position_embeddings": 32768, "rope_scaling": {**YARN, "factor": None}},
    ),
    "yarn, attention_factor": (64, None, {"rope_scaling": {**YARN, "attention_factor": 1.2079}}),
    "yarn, both mscales": (
        64,
        None,
        {"rope_scaling": {**YARN, "mscale": 0.707, "mscale_all_dim": 1.0}},
    ),
    "yarn, one mscale": (64, None, {"rope_scaling": {**YARN, "mscale": 0.707}}),
    "yarn, zero mscale": (
        64,
        None,
        {"rope_scaling": {**YARN, "mscale": 0.707, "mscale_all_dim": 0}},
    ),
    "yarn, attention_factor over mscales": (
        64,
        None,
        {
            "rope_scaling": {
                **YARN,
                "mscale": 0.707,
                "mscale_all_dim": 1.0,
                "attention_factor": 1.5,
            }
        },
    ),
    "yarn, betas": (128, None, {"rope_scaling": {**YARN, "beta_fast": 16, "beta_slow": 2.5}}),
    "yarn, equal betas": (64, None, {"rope_scaling": {**YARN, "beta_fast": 1.0, "beta_slow": 1.0}}),
    "yarn, equal betas, not truncated": (
        64,
        None,
        {"rope_scaling": {**YARN, "beta_fast": 1.0, "beta_slow": 1.0, "truncate": False}},
    ),
    "yarn, not truncated": (96, None, {"rope_scaling": {**YARN, "truncate": False}}),
    "yarn, short original length": (
        64,
        None,
        {"rope_scaling": {**YARN, "original_max_position_embeddings": 8}},
    ),
    "yarn, ramp past the last dimension": (
        64,
        None,
        {"rope_theta": 10.0, "rope_scaling": {**YARN, "beta_fast": 200.0}},
    ),
    "yarn, factor 1": (64, None, {"rope_scaling": {**YARN, "factor": 1.0}}),
    "yarn, parameters": (
        128,
        None,
        {
            "max_position_embeddings": 65536,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 500000,
                "factor": 8.0,
                "original_max_position_embeddings": 8192,
                "attention_factor": 1.2079441541679836,
                "beta_fast": 32,
                "beta_slow": 1,
            },
        },
    ),
}


def build(variant: str, dtype: torch.dtype) -> torch.nn.Module:
    """The variant as a transformers model: eager attention, on the CPU, with tiny.py's weights."""
    config = copy.deepcopy(tiny.VARIANTS[variant])  # transformers writes into nested dicts
    kinds = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    }
    config_class, model_class = kinds[str(config["model_type"])]
    parsed = config_class.from_dict(config)
    parsed._attn_implementation = "eager"
    model = model_class(parsed).eval()
    state = {k: torch.from_numpy(v) for k, v in tiny.weights(config).items()}
    left = model.load_state_dict(state, strict=False)
    tied = {"lm_head.weight"} if config["tie_word_embeddings"] else set()
    if set(left.missing_keys) - tied or left.unexpected_keys:
        raise ValueError(f"{variant}: the names of tiny.py do not fit transformers: {left}")
    model.tie_weights()
    return model.to(dtype)


@torch.no_grad()
def logits(variant: str, prompt: tuple[int, ...], dtype: torch.dtype) -> NDArray[np.float64]:
    """Prefill a prompt whole on a fresh model (dynamic rope has a memory), at stored positions."""
    output = build(variant, dtype)(torch.tensor([prompt]), use_cache=False).logits[0]
    return output[list(tiny.positions(prompt))].double().numpy()


def golden(variant: str) -> dict[str, NDArray]:
    """Everything that the variant's npz holds."""
    found: dict[str, NDArray] = {
        "torch": np.array(torch.__version__),
        "transformers": np.array(transformers.__version__),
        "weights_crc32": np.array(tiny.checksum(tiny.weights(tiny.VARIANTS[variant]))),
    }
    for prompt in tiny.PROMPTS:
        single = logits(variant, prompt, torch.float32)
        gap = np.abs(single - logits(variant, prompt, torch.float64)).max()
        found[f"logits_{len(prompt)}"] = single.astype(np.float32)
        found[f"float64_gap_{len(prompt)}"] = np.array(gap)
    return found


def rope_golden(name: str) -> dict[str, object]:
    """One case with the frequencies that the model's own rotary module ends up with."""
    head_dim, length, keys = ROPE_CASES[name]
    config = {"max_position_embeddings": 2048, **keys}
    parsed = transformers.LlamaConfig.from_dict(
        {"hidden_size": 2 * head_dim, "num_attention_heads": 2, **copy.deepcopy(config)}
    )
    rotary = LlamaRotaryEmbedding(parsed)
    if length is not None:
        rotary(torch.zeros(1), torch.arange(length)[None])
    return {
        "name": name,
        "config": config,
        "head_dim": head_dim,
        "context_length": length,
        "inv_freq": [float(f"{value:.9g}") for value in rotary.inv_freq.tolist()],
        "attention_factor": float(rotary.attention_scaling),
    }


def write(folder: Path) -> None:
    """Write every golden below `folder`."""
    torch.set_num_threads(1)
    (folder / "llama").mkdir(parents=True, exist_ok=True)
    for variant in tiny.VARIANTS:
        found = golden(variant)
        np.savez_compressed(folder / "llama" / f"{variant}.npz", **found)
        scale = found["logits_33"].std()
        gap = max(float(found[f"float64_gap_{len(prompt)}"]) for prompt in tiny.PROMPTS)
        print(f"{variant:20} logits {scale:.2f} float64 gap {gap:.1e}")
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    cases = ",\n".join(json.dumps(rope_golden(name)) for name in ROPE_CASES)
    text = f'{{"versions": {json.dumps(versions)}, "cases": [\n{cases}\n]}}\n'
    (folder / "rope.json").write_text(text)


if __name__ == "__main__":
    write(tiny.GOLDENS.parent)
