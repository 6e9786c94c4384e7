"""GGUF files of tiny models, written by the `gguf` package from blocks of any type.

In: a config of `tiny`, and the type of each tensor. Out: a file, and the weights in it under the
checkpoint's names, dequantized by the same package: what a reader must find.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from source_folder import tiny

Type = gguf.GGMLQuantizationType
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip
KEYS = {
    "context_length": "max_position_embeddings", "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers", "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
}  # fmt: skip
# Where blocks hold floats, by byte; all else may be any bits.
FLOATS = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
          "IQ4_NL": (0,)}  # fmt: skip
WHOLE: dict[str, Any] = {
    **tiny.VARIANTS["llama2-gqa"],
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 160,
}
Choose = Callable[[str], str]


def gguf_name(name: str) -> str:
    stem, leaf = name.rpartition(".")[::2]
    if stem.startswith("model.layers."):
        layer, rest = stem.removeprefix("model.layers.").split(".", 1)
        return f"blk.{layer}.{NAMES[rest]}.{leaf}"
    return f"{NAMES[stem]}.{leaf}"


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q and k as llama.cpp's converter lays them."""
    shape = weight.shape
    return (
        weight.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)
    )


def restored(weight: np.ndarray, heads: int) -> np.ndarray:
    """The same undone."""
    shape = weight.shape
    return (
        weight.reshape(heads, shape[0] // heads // 2, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)
    )


def blocks(weight: np.ndarray, kind: str, seed: int) -> np.ndarray:
    """Bytes of a type: packed by the package where it can, else random with scales like these."""
    if kind not in FLOATS and kind != "MXFP4":
        return gguf.quantize(weight, Type[kind])
    size, width = gguf.GGML_QUANT_SIZES[Type[kind]]
    rng = np.random.default_rng(seed)
    count = weight.shape[1] // size
    raw = rng.integers(0, 256, (weight.shape[0], count, width), dtype=np.uint8)
    if kind == "MXFP4":
        raw[..., 0] = rng.integers(118, 122, raw.shape[:2])
    for at in FLOATS.get(kind, ()):
        scale = rng.uniform(0.5, 1, raw.shape[:2]) * {"Q2_K": 4e-3, "IQ4_NL": 1e-3}.get(kind, 1e-4)
        raw[..., at : at + 2] = scale.astype("<f2")[..., None].view(np.uint8)
    return raw.reshape(weight.shape[0], count * width)


def write_gguf(
    path: Path, config: Mapping[str, Any], choose: Choose, *, extra: Mapping[str, Any] | None = None
) -> tiny.Weights:
    """Write a model; `choose` gives the type of a matrix by its checkpoint name."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, field in KEYS.items():
        writer.add_uint32(f"llama.{key}", config[field])
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", config["rms_norm_eps"])
    writer.add_float32("llama.rope.freq_base", config.get("rope_theta", 10000.0))
    for key, value in (extra or {}).items():
        writer.add_string(key, value)
    add_vocabulary(writer, config["vocab_size"])
    found: tiny.Weights = {}
    for seed, (name, weight) in enumerate(tiny.weights(config).items()):
        heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}.get(
            name.split(".")[-2][0] if "_proj" in name and "self_attn" in name else "", 0
        )
        if weight.ndim == 1:
            writer.add_tensor(gguf_name(name), weight)
            found[name] = weight
            continue
        kind = choose(name)
        there = permuted(weight, heads) if heads else weight
        if kind == "F32":
            writer.add_tensor(gguf_name(name), there)
            found[name] = weight
            continue
        raw = blocks(there, kind, seed)
        writer.add_tensor(gguf_name(name), raw, raw_dtype=Type[kind])
        values = gguf.dequantize(raw, Type[kind]).reshape(weight.shape)
        found[name] = restored(values, heads) if heads else values
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return found


def add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """A SentencePiece vocabulary: control tokens, bytes would be too many, letters and pairs."""
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz"]
    pairs = [f"{a}{b}" for a in "▁aeiou" for b in "abcdefghijklmnopqrstuvwxyz"]
    tokens = ["<unk>", "<s>", "</s>", *letters, *pairs][:size]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 3 + [-float(i) for i in range(len(tokens) - 3)])
    writer.add_token_types([2, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
