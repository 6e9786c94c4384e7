"""GGUF files of each architecture compute what their checkpoints do: names, orders, options."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))

gguf = pytest.importorskip("gguf", reason="needs the gguf package, which writes the files")

import tiny  # noqa: E402
import tiny_families  # noqa: E402
from gguf_source import add_vocabulary, permuted  # noqa: E402

from sterna import models  # noqa: E402
from sterna.checkpoint.gguf import open_gguf  # noqa: E402
from sterna.convert.formats.gguf import stored_tensors  # noqa: E402
from sterna.convert.forward import all_logits  # noqa: E402
from sterna.convert.gguf_architectures import ARCHITECTURES, ENDS  # noqa: E402
from sterna.convert.gguf_model import config_json  # noqa: E402
from sterna.models.params import stored_weights  # noqa: E402
from sterna.quantize.scheme import SCHEMES  # noqa: E402

F = tiny_families.VARIANTS
OF_FILE = {"query_pre_attn_scalar": 16}  # what a file cannot say otherwise
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", tiny.VARIANTS["llama2-gqa"]),
    "llama biases": ("llama", tiny.VARIANTS["attention-bias"]),
    "qwen2": ("qwen2", F["qwen2"]),
    "qwen3": ("qwen3", F["qwen3"]),
    "phi3": ("phi3", F["phi3"]),
    "gemma": ("gemma", F["gemma"]),
    "gemma2": ("gemma2", {**F["gemma2"], **OF_FILE}),
    "gemma3": ("gemma3", {**F["gemma3"], **OF_FILE, "sliding_window_pattern": 6}),
    "granite": ("granite", F["granite"]),
    "olmo": ("olmo", F["olmo"]),
    "command-r": ("command-r", {**F["cohere"], "rope_theta": 8e6}),
    "command-r head norms": ("command-r", {**F["cohere-head-norms"], "rope_theta": 8e6}),
    "stablelm": ("stablelm", F["stablelm"]),
    "starcoder2": ("starcoder2", F["starcoder2"]),
    "olmo2": ("olmo2", F["olmo2"]),
    "smollm3": ("smollm3", {**F["smollm3"], "rope_theta": 2e6}),
    "mixtral": ("llama", F["mixtral"]),
    "qwen2moe": ("qwen2moe", F["qwen2-moe"]),
    "qwen3moe": ("qwen3moe", {**F["qwen3-moe"], "mlp_only_layers": []}),
    "gpt-oss": ("gpt-oss", {**F["gpt-oss"], "swiglu_limit": 7.0}),
    "glm4moe": ("glm4moe", F["glm4-moe"]),
    "llama4": (
        "llama4",
        {
            **F["llama4"],
            "rope_scaling": None,
            "attention_chunk_size": 8192,
            "floor_scale": 8192,
            "attn_scale": 0.1,
        },
    ),
}
KEYS = {
    "max_position_embeddings": "context_length", "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count", "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv", "sliding_window": "attention.sliding_window",
    "head_dim": "attention.key_length", "num_experts_per_tok": "expert_used_count",
    "num_experts": "expert_count", "num_local_experts": "expert_count",
    "n_routed_experts": "expert_count", "n_shared_experts": "expert_shared_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
    "first_k_dense_replace": "leading_dense_block_count", "n_group": "expert_group_count",
    "topk_group": "expert_group_used_count",
}  # fmt: skip
LLAMA4 = {
    "intermediate_size": "expert_feed_forward_length",
    "intermediate_size_mlp": "feed_forward_length",
    "interleave_moe_layer_step": "interleave_moe_layer_step",
}
NUMBERS = {
    "rms_norm_eps": "attention.layer_norm_rms_epsilon", "rope_theta": "rope.freq_base",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "attention_multiplier": "attention.scale", "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale", "logits_scaling": "logit_scale",
    "routed_scaling_factor": "expert_weights_scale",
    "logit_scale": "logit_scale", "clip_qkv": "attention.clamp_kqv",
    "layer_norm_eps": "attention.layer_norm_epsilon",
    "norm_epsilon": "attention.layer_norm_epsilon",
}  # fmt: skip


def write(path: Path, arch: str, config: dict[str, Any], weights: tiny.Weights) -> None:
    writer = gguf.GGUFWriter(path, arch)
    keys = {**KEYS, **LLAMA4} if arch == "llama4" else KEYS
    for field, key in keys.items():
        if config.get(field) and not (field == "sliding_window" and arch == "qwen2"):
            writer.add_uint32(f"{arch}.{key}", config[field])
    for field, key in NUMBERS.items():
        if config.get(field) is not None:
            writer.add_float32(f"{arch}.{key}", config[field])
    if "partial_rotary_factor" in config:
        dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        writer.add_uint32(
            f"{arch}.rope.dimension_count", int(dim * config["partial_rotary_factor"])
        )
    scaling = config.get("rope_scaling")
    if scaling:
        writer.add_string(f"{arch}.rope.scaling.type", scaling["rope_type"])
        writer.add_float32(f"{arch}.rope.scaling.factor", scaling["factor"])
        if "original_max_position_embeddings" in scaling:
            original = scaling["original_max_position_embeddings"]
            writer.add_uint32(f"{arch}.rope.scaling.original_context_length", original)
    if config.get("norm_topk_prob") and arch == "glm4moe":
        writer.add_bool(f"{arch}.expert_weights_norm", True)
    add_vocabulary(writer, config["vocab_size"])
    row = ARCHITECTURES[arch]
    row = row.sparse if row.sparse and config["model_type"] == row.sparse.model_type else row
    names = {there: here for here, there in {**ENDS, **row.layer}.items()}
    heads = {
        "q_proj": config["num_attention_heads"],
        "k_proj": config.get("num_key_value_heads") or config["num_attention_heads"],
    }
    for name, weight in stacked(weights).items():
        stem, leaf = name.rpartition(".")[::2]
        prefix = ""
        if stem.startswith("model.layers."):
            layer, stem = stem.removeprefix("model.layers.").split(".", 1)
            prefix = f"blk.{layer}."
        own = stem.rpartition(".")[2]
        if row.permuted and own in heads:
            weight = permuted(weight, heads[own])
        if row.norms_add_one and own.endswith("norm"):
            weight = weight + np.float32(1)
        if own == "shared_expert_gate":
            weight = weight[0]  # of one row, as the converter writes it
        whole = names.get(f"{stem}.{leaf}")
        title = whole if whole is not None else f"{names[stem]}.{leaf}"
        writer.add_tensor(f"{prefix}{title}", np.ascontiguousarray(weight))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file,
                 writer.write_tensors_to_file, writer.close):  # fmt: skip
        step()


def stacked(weights: tiny.Weights) -> tiny.Weights:
    """With all experts of a layer in one tensor, as llama.cpp's converter writes them."""
    found: dict[str, Any] = {}
    for name, weight in weights.items():
        title = re.sub(r"\.experts\.\d+\.", ".experts.{}.", name)
        found.setdefault(title, []).append(weight)
    return {n: np.array(parts) if "{}" in n else parts[0] for n, parts in found.items()}


@pytest.mark.parametrize("title", CASES)
def test_a_file_computes_what_its_checkpoint_does(title: str, tmp_path: Path) -> None:
    arch, config = CASES[title]
    model = models.build(config, SCHEMES["q0f32"])
    weights = {
        name: tiny_families.draw(name, shape)
        for weight in stored_weights(config, SCHEMES["q0f32"])
        for name, shape in zip(weight.sources, weight.source_shapes, strict=True)
    }
    held = models.expert_weights(config)

    def of(values: tiny.Weights, name: str) -> Any:
        return np.concatenate([values[n] for n in held[name]]) if name in held else values[name]

    write(tmp_path / "m.gguf", arch, config, weights)
    file = open_gguf(tmp_path / "m.gguf")
    found = {name: t.values(0, t.shape[0]) for name, t in stored_tensors(file).items()}
    assert set(found) == set(weights)
    documents = [tiny_families.PROMPT]
    wanted = all_logits(model, documents, lambda name, x: of(weights, name))
    ours = models.build(config_json(file), SCHEMES["q0f32"])
    logits = all_logits(ours, documents, lambda name, x: of(found, name))
    assert np.abs(logits - wanted).max() < 2e-5 * np.abs(wanted).max()


def test_every_architecture_is_tried() -> None:
    assert {arch for arch, _ in CASES.values()} == set(ARCHITECTURES)
