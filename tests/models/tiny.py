"""Tiny random-weight models of each Llama kind, and the logits transformers gave for them.

In: a variant's name. Out: its `config.json` as a dict with a real file's key set, float32 weights
under the checkpoint's names, a folder on disk as Hugging Face writes it, and stored logits. Only
numpy and ml_dtypes: `make_goldens.py` beside this file is the one that needs torch. The weights
come from raw PCG64 words, a stream numpy promises never to change, so no weights are stored.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Weights = dict[str, NDArray[np.float32]]

GOLDENS = Path(__file__).parent / "goldens" / "llama"

# Prompts at most this long have the logits of all positions stored, longer ones of the last three.
WHOLE = 33
TAIL = 3

# Llama 1 as first converted: no key-value heads, theta or rope_scaling; 172 is no multiple of 32.
LLAMA1 = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 172,
    "max_position_embeddings": 128,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.28.0",
    "use_cache": True,
    "vocab_size": 160,
}
LLAMA2 = {
    **LLAMA1,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "transformers_version": "4.31.0",
}
del LLAMA2["pad_token_id"]
# Prompts of 33 and 70 tokens lie beyond the original 32 positions; of head_dim 32's sixteen waves
# one is kept, one blended and fourteen slowed.
LLAMA31 = {
    **LLAMA2,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "mlp_bias": False,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 32,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "transformers_version": "4.45.0",
}
TINYLLAMA = {
    **LLAMA2,
    "attention_bias": False,
    "hidden_size": 128,
    "intermediate_size": 160,
    "num_attention_heads": 8,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "rope_theta": 10000.0,
    "transformers_version": "4.35.0",
    "use_cache": False,
}
# As `save_pretrained` of transformers 5 writes it: dtype for torch_dtype, and rope_parameters.
TRANSFORMERS5 = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "dtype": "float32",
    "eos_token_id": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "pad_token_id": None,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "tie_word_embeddings": False,
    "transformers_version": "5.23.0",
    "use_cache": True,
    "vocab_size": 160,
}
MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 128,
    "max_position_embeddings": 128,
    "model_type": "mistral",
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.42.0",
    "use_cache": True,
    "vocab_size": 160,
}

VARIANTS: dict[str, dict[str, object]] = {
    "llama1": LLAMA1,
    "llama2-gqa": LLAMA2,
    "llama3.1": LLAMA31,
    "llama3.2-tied": {**LLAMA31, "tie_word_embeddings": True, "eos_token_id": [2, 3, 4]},
    "tinyllama": TINYLLAMA,
    "smollm-tied": {
        **TINYLLAMA,
        "hidden_size": 288,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    "rope-linear": {
        **LLAMA2,
        "max_position_embeddings": 32,
        "rope_scaling": {"type": "linear", "factor": 4.0},
        "rope_theta": 10000.0,
    },
    # The prompt of 70 is past max_position_embeddings: transformers prefills it whole with the
    # frequencies of a context of 70, so a model compiled for another context differs there.
    "rope-dynamic": {
        **LLAMA2,
        "max_position_embeddings": 48,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
        "rope_theta": 10000.0,
    },
    "rope-yarn": {
        **LLAMA2,
        "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32, "type": "yarn"},
        "rope_theta": 10000.0,
    },
    "parameters-default": TRANSFORMERS5,
    "parameters-llama3": {
        **TRANSFORMERS5,
        "head_dim": 32,
        "hidden_size": 96,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "rope_parameters": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 32,
            "rope_theta": 500000.0,
            "rope_type": "llama3",
        },
    },
    "parameters-yarn": {
        **TRANSFORMERS5,
        "rope_parameters": {
            "attention_factor": 1.25,
            "beta_fast": 8.0,
            "beta_slow": 0.5,
            "factor": 4.0,
            "original_max_position_embeddings": 32,
            "rope_theta": 10000.0,
            "rope_type": "yarn",
            "truncate": False,
            "type": "yarn",
        },
    },
    # Attention is narrower than the hidden state: 4 heads of 16 in a hidden size of 96.
    "head-dim": {**TRANSFORMERS5, "hidden_size": 96},
    "attention-bias": {**TRANSFORMERS5, "attention_bias": True},
    "mlp-bias": {**TRANSFORMERS5, "mlp_bias": True, "intermediate_size": 172},
    "mistral": MISTRAL,
    # A query sees itself and the 15 tokens before it.
    "mistral-window": {**MISTRAL, "sliding_window": 16},
}

PROMPTS: tuple[tuple[int, ...], ...] = tuple(
    (1, *((7 * i * i + 31 * i + length) % 157 + 3 for i in range(1, length)))
    for length in (1, 7, 33, 70)
)


@dataclass(frozen=True, slots=True)
class Golden:
    """Stored logits of one prompt: float32 (len(positions), vocab), row i for positions[i]."""

    prompt: tuple[int, ...]
    positions: range
    logits: NDArray[np.float32]


def head_dim(config: Mapping[str, object]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def shapes(config: Mapping[str, object]) -> dict[str, tuple[int, ...]]:
    """Every stored tensor's name and shape: no lm_head where the config ties it."""
    hidden, inner, vocab = (
        config[key] for key in ("hidden_size", "intermediate_size", "vocab_size")
    )
    query = config["num_attention_heads"] * head_dim(config)
    kv = config.get("num_key_value_heads", config["num_attention_heads"]) * head_dim(config)
    linears = {
        "self_attn.q_proj": (query, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, query),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        found[f"{prefix}input_layernorm.weight"] = (hidden,)
        found[f"{prefix}post_attention_layernorm.weight"] = (hidden,)
        for name, shape in linears.items():
            found[f"{prefix}{name}.weight"] = shape
            if config.get("attention_bias" if "attn" in name else "mlp_bias"):
                found[f"{prefix}{name}.bias"] = shape[:1]
    found["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (vocab, hidden)
    return found


def weights(config: Mapping[str, object], seed: int = 0) -> Weights:
    """Draw every tensor from its own name and the seed, scaled for logits of about unit scale."""
    return {name: _tensor(name, shape, seed) for name, shape in shapes(config).items()}


def _tensor(name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    words = np.random.PCG64(zlib.crc32(f"{name}:{seed}".encode())).random_raw(int(np.prod(shape)))
    unit = ((words >> np.uint64(11)) * 2.0**-52 - 1.0).reshape(shape) * 3.0**0.5  # variance 1
    if name.endswith("norm.weight"):
        drawn = 1.0 + 0.1 * unit
    elif name.endswith(".bias"):
        drawn = 0.3 * unit
    else:
        drawn = unit / shape[-1] ** 0.5
    return drawn.astype(np.float32)


def checksum(tensors: Weights) -> int:
    """A CRC-32 over all bytes in name order: goldens hold the one their weights had."""
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(np.ascontiguousarray(tensors[name], "<f4").tobytes(), value)
    return value


def goldens(variant: str) -> list[Golden]:
    """The stored logits of a variant, one Golden a prompt, in the order of PROMPTS."""
    with np.load(GOLDENS / f"{variant}.npz") as stored:
        return [
            Golden(prompt, positions(prompt), stored[f"logits_{len(prompt)}"]) for prompt in PROMPTS
        ]


def positions(prompt: tuple[int, ...]) -> range:
    """The positions whose logits are stored."""
    return range(0 if len(prompt) <= WHOLE else len(prompt) - TAIL, len(prompt))


def write_folder(
    path: Path,
    config: Mapping[str, object],
    tensors: Weights,
    *,
    shards: int = 1,
    dtype: str = "float32",
) -> None:
    """Write config.json and the weights, in one file or in `shards` files with an index."""
    path.mkdir(parents=True, exist_ok=True)
    key = "dtype" if "dtype" in config else "torch_dtype"
    (path / "config.json").write_text(json.dumps({**config, key: dtype}, indent=2) + "\n")
    as_numpy = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    stored = {name: tensor.astype(as_numpy) for name, tensor in tensors.items()}
    if shards == 1:
        _write_safetensors(path / "model.safetensors", stored, dtype)
        return
    names = sorted(stored)
    weight_map: dict[str, str] = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = names[len(names) * i // shards : len(names) * (i + 1) // shards]
        _write_safetensors(path / file, {name: stored[name] for name in part}, dtype)
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in stored.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _write_safetensors(path: Path, tensors: Mapping[str, NDArray], dtype: str) -> None:
    """The format in a few lines of its own, so that a reader's test does not rest on our writer."""
    code = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        entry = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [begin, end]}
        header[name] = entry
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    data = b"".join(tensor.tobytes() for tensor in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
