"""GGUF files of each architecture compute what their checkpoints do: names, orders, options."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))

gguf = pytest.importorskip("gguf", reason="needs the gguf package, which writes the files")

import gguf_converter  # noqa: E402
import tiny  # noqa: E402
import tiny_families  # noqa: E402
from gguf_source import add_vocabulary  # noqa: E402

from sterna import models  # noqa: E402
from sterna.base.errors import ShapeMismatch  # noqa: E402
from sterna.checkpoint.gguf import open_gguf  # noqa: E402
from sterna.convert.formats.gguf import stored_tensors  # noqa: E402
from sterna.convert.forward import all_logits  # noqa: E402
from sterna.convert.gguf_architectures import ARCHITECTURES  # noqa: E402
from sterna.convert.gguf_model import config_json  # noqa: E402
from sterna.models.params import stored_weights  # noqa: E402
from sterna.quantize.scheme import SCHEMES  # noqa: E402

F = tiny_families.VARIANTS
OF_FILE = {"query_pre_attn_scalar": 16}  # what a file cannot say otherwise
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", tiny.VARIANTS["llama2-gqa"]),
    "llama biases": ("llama", tiny.VARIANTS["attention-bias"]),
    "qwen2": ("qwen2", F["qwen2"]),
    "qwen2vl": ("qwen2vl", F["qwen2"]),
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
    "qwen3next": ("qwen3next", F["qwen3-next"]),
    "qwen35": ("qwen35", F["qwen3.5"]),
    "qwen35moe": ("qwen35moe", F["qwen3.5-moe"]),
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
YARN = {"mscale": 0.7, "mscale_all_dim": 0.7}  # as all published models have them, the same
LATENT = {"rope_scaling": {**F["deepseek-v3"]["rope_scaling"], **YARN}}
CASES |= {
    "deepseek2 v3": ("deepseek2", {**F["deepseek-v3"], **LATENT}),
    "deepseek2 v2": ("deepseek2", {**F["deepseek-v2"], **LATENT}),
    "deepseek2 lite": ("deepseek2", F["deepseek-v2-lite"]),
    "mamba2": ("mamba2", F["mamba2"]),
    "mamba2 tied": ("mamba2", F["mamba2-tied"]),
    "granitehybrid": ("granitehybrid", F["granitemoehybrid"]),
    "rwkv7": ("rwkv7", F["rwkv7"]),
    "internlm2": ("internlm2", F["internlm2"]),
    "phi2": ("phi2", F["phi"]),
    "gpt2": ("gpt2", F["gpt2"]),
    "starcoder": ("starcoder", F["gpt-bigcode"]),
    "gptneox": ("gptneox", F["gpt-neox"]),
    "gptneox serial": ("gptneox", F["gpt-neox-serial"]),
    "falcon": ("falcon", F["falcon"]),
    "falcon large": ("falcon", F["falcon-large"]),
    "chatglm": ("chatglm", F["glm"]),
    "glm4": ("glm4", F["glm4"]),
    "cohere2": ("cohere2", F["cohere2"]),
    "olmo3": ("olmo2", F["olmo3"]),
    "bert": ("bert", {**tiny_families.EMBEDDING["bert"], "sentence_pooling": "cls"}),
    "qwen3 embedding": ("qwen3", tiny_families.EMBEDDING["qwen3-embedding"]),
}
OLDER = ("deepseek2 v3", "phi2", "chatglm", "mamba2 tied", "qwen3next")
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


def gpt(config: dict[str, Any]) -> dict[str, Any]:
    """Models whose config.json has GPT-2's words."""
    return {
        "context_length": config["n_positions"], "embedding_length": config["n_embd"],
        "feed_forward_length": 4 * config["n_embd"], "block_count": config["n_layer"],
        "attention.head_count": config["n_head"],
        "attention.layer_norm_epsilon": config["layer_norm_epsilon"],
        **({"attention.head_count_kv": 1} if config["model_type"] == "gpt_bigcode" else {}),
    }  # fmt: skip


def neox(config: dict[str, Any]) -> dict[str, Any]:
    dim = config["hidden_size"] // config["num_attention_heads"]
    return {
        "rope.dimension_count": int(config["rotary_pct"] * dim),
        "use_parallel_residual": config["use_parallel_residual"],
    }


def falcon(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "feed_forward_length": 4 * config["hidden_size"],
        "attention.head_count_kv": gguf_converter.key_heads(config),
        "attention.layer_norm_epsilon": config["layer_norm_epsilon"],
    }


def latent(config: dict[str, Any]) -> dict[str, Any]:
    rank, rotated = config["kv_lora_rank"], config["qk_rope_head_dim"]
    key = config["qk_nope_head_dim"] + rotated
    older = {"attention.key_length": key, "attention.value_length": config["v_head_dim"]}
    absorbed = {
        "attention.key_length": rank + rotated, "attention.value_length": rank,
        "attention.key_length_mla": key, "attention.value_length_mla": config["v_head_dim"],
    }  # fmt: skip
    scale = (config["rope_scaling"] or {}).get("mscale_all_dim")
    sigmoid = config["model_type"] == "deepseek_v3"
    return {
        **(older if config.get("older") else absorbed),
        "attention.kv_lora_rank": rank, "rope.dimension_count": rotated,
        "leading_dense_block_count": config["first_k_dense_replace"],
        **({"attention.q_lora_rank": r} if (r := config["q_lora_rank"]) else {}),
        **({"rope.scaling.yarn_log_multiplier": 0.1 * scale} if scale else {}),
        **({"expert_weights_norm": True} if config["norm_topk_prob"] else {}),
        "expert_gating_func": 2 if sigmoid else 1,
    }  # fmt: skip


def mamba(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "context_length": 1 << 20, "feed_forward_length": 0, "attention.head_count": 0,
        "ssm.conv_kernel": config["conv_kernel"],
        "ssm.inner_size": config["expand"] * config["hidden_size"],
        "ssm.state_size": config["state_size"], "ssm.time_step_rank": config["num_heads"],
        "ssm.group_count": config["n_groups"],
        "attention.layer_norm_rms_epsilon": config["layer_norm_epsilon"],
    }  # fmt: skip


def hybrid(config: dict[str, Any]) -> dict[str, Any]:
    heads = config["num_key_value_heads"]
    return {
        "attention.head_count_kv": [heads * (t == "attention") for t in config["layer_types"]],
        "expert_shared_feed_forward_length": config["shared_intermediate_size"],
        "ssm.conv_kernel": config["mamba_d_conv"],
        "ssm.inner_size": config["mamba_expand"] * config["hidden_size"],
        "ssm.state_size": config["mamba_d_state"], "ssm.time_step_rank": config["mamba_n_heads"],
        "ssm.group_count": config["mamba_n_groups"], "rope.scaling.finetuned": False,
    }  # fmt: skip


def delta(config: dict[str, Any]) -> dict[str, Any]:
    types = config.get("layer_types", [])
    period = types.index("full_attention") + 1 if types else config["full_attention_interval"]
    heads = config["linear_num_value_heads"]
    rope = config.get("rope_parameters", config)
    guessing = config.get("mtp_num_hidden_layers", 0)
    return {
        "full_attention_interval": period, "ssm.conv_kernel": config["linear_conv_kernel_dim"],
        "ssm.state_size": config["linear_key_head_dim"],
        "ssm.group_count": config["linear_num_key_heads"], "ssm.time_step_rank": heads,
        "ssm.inner_size": heads * config["linear_value_head_dim"],
        "block_count": config["num_hidden_layers"] + guessing,
        "rope.freq_base": float(rope["rope_theta"]),
        "rope.dimension_count": int(config["head_dim"] * rope["partial_rotary_factor"]),
        **({"nextn_predict_layers": guessing} if guessing else {}),
        **({"rope.dimension_sections": [*rope["mrope_section"], 0]} if rope is not config else {}),
    }  # fmt: skip


def rwkv(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "attention.head_count": 0, "wkv.head_size": config["head_dim"],
        "attention.layer_norm_epsilon": config["norm_eps"],
        "attention.decay_lora_rank": config["decay_low_rank_dim"],
        "attention.iclr_lora_rank": config["a_low_rank_dim"],
        "attention.value_residual_mix_lora_rank": config["v_low_rank_dim"],
        "attention.gate_lora_rank": config["gate_low_rank_dim"],
    }  # fmt: skip


def windows(config: dict[str, Any]) -> dict[str, Any]:
    """OLMo 3 says which layers have one."""
    if "sliding_window" not in config:
        return {}
    layers = range(config["num_hidden_layers"])
    return {"attention.sliding_window_pattern": [(i + 1) % 4 != 0 for i in layers]}


OWN: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "gpt2": gpt, "starcoder": gpt, "gptneox": neox, "falcon": falcon, "deepseek2": latent,
    "mamba2": mamba, "granitehybrid": hybrid, "rwkv7": rwkv, "olmo2": windows,
    "qwen2vl": lambda config: {"rope.dimension_sections": [2, 3, 3, 0]},
    **dict.fromkeys(("qwen3next", "qwen35", "qwen35moe"), delta),
    "bert": lambda config: {"attention.causal": False},
}  # fmt: skip
# Keys that the converter writes for these architectures in a way of its own.
TAKEN = {"granitehybrid": ("num_key_value_heads",), "deepseek2": ("head_dim",),
         "falcon": ("num_key_value_heads",),
         **dict.fromkeys(("qwen3next", "qwen35", "qwen35moe"),
                         ("num_hidden_layers", "rope_theta", "partial_rotary_factor"))}  # fmt: skip


def write(
    path: Path,
    arch: str,
    config: dict[str, Any],
    weights: tiny.Weights,
    *,
    older: bool = False,
    restored: bool | None = None,
) -> None:
    """`restored` False has Q8_0 blocks wherever rows hold whole ones, True what they stand for."""
    writer = gguf.GGUFWriter(path, arch)
    keys = {**KEYS, **LLAMA4} if arch == "llama4" else KEYS
    for field, key in keys.items():
        if field in TAKEN.get(arch, ()) or (field == "sliding_window" and arch == "qwen2"):
            continue
        if config.get(field):
            writer.add_uint32(f"{arch}.{key}", config[field])
    for field, key in NUMBERS.items():
        if config.get(field) is not None and field not in TAKEN.get(arch, ()):
            writer.add_float32(f"{arch}.{key}", config[field])
    if "partial_rotary_factor" in config and "partial_rotary_factor" not in TAKEN.get(arch, ()):
        dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        writer.add_uint32(
            f"{arch}.rope.dimension_count", int(dim * config["partial_rotary_factor"])
        )
    scaling = config.get("rope_scaling")
    if scaling:
        kind = scaling.get("rope_type") or scaling["type"]
        writer.add_string(f"{arch}.rope.scaling.type", kind)
        writer.add_float32(f"{arch}.rope.scaling.factor", scaling["factor"])
        if "original_max_position_embeddings" in scaling:
            original = scaling["original_max_position_embeddings"]
            writer.add_uint32(f"{arch}.rope.scaling.original_context_length", original)
    if config.get("norm_topk_prob") and arch == "glm4moe":
        writer.add_bool(f"{arch}.expert_weights_norm", True)
    for key, value in (OWN[arch]({**config, "older": older}) if arch in OWN else {}).items():
        add(writer, f"{arch}.{key}", value)
    if "sentence_pooling" in config:
        kinds = {"mean": 1, "cls": 2, "last": 3}
        writer.add_uint32(f"{arch}.pooling_type", kinds[config["sentence_pooling"]])
    add_vocabulary(writer, config["vocab_size"])
    gguf_converter.WEIGHTS = weights
    for title, weight in gguf_converter.tensors(arch, config, weights, older=older).items():
        small = weight.ndim < 2 or weight.shape[-1] % 32 or title.endswith("_norm.weight")
        if restored is None or small:
            writer.add_tensor(title, weight)
            continue
        raw = gguf.quantize(weight, gguf.GGMLQuantizationType.Q8_0)
        if restored:
            writer.add_tensor(title, gguf.dequantize(raw, gguf.GGMLQuantizationType.Q8_0))
        else:
            writer.add_tensor(title, raw, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file,
                 writer.write_tensors_to_file, writer.close):  # fmt: skip
        step()


def add(writer: Any, key: str, value: Any) -> None:
    """A value by its own type, as the converter's methods write it."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    else:
        writer.add_string(key, value)


@pytest.mark.parametrize(
    ("title", "older"), [*((title, False) for title in CASES), *((title, True) for title in OLDER)]
)
def test_a_file_computes_what_its_checkpoint_does(title: str, older: bool, tmp_path: Path) -> None:
    arch, config = CASES[title]
    weights, turned = drawn(config)
    write(tmp_path / "m.gguf", arch, config, weights, older=older)
    file = open_gguf(tmp_path / "m.gguf")
    tensors = stored_tensors(file)
    assert {name: t.shape[::-1] if t.turned else t.shape for name, t in tensors.items()} == {
        name: weight.shape for name, weight in drawn(config_json(file))[0].items()
    }
    found = {name: t.values(0, t.shape[0]) for name, t in tensors.items()}
    wanted = logits(config, {n: w.T if n in turned else w for n, w in weights.items()})
    assert np.abs(logits(config_json(file), found) - wanted).max() < 2e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("older", [False, True])
def test_sizes_of_heads_that_lie(
    older: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arch, config = CASES["qwen3next"]
    monkeypatch.setitem(OWN, arch, lambda config: {**delta(config), "ssm.state_size": 9})
    write(tmp_path / "m.gguf", arch, config, drawn(config)[0], older=older)
    with pytest.raises(ShapeMismatch, match=r"rows, which are not those of the heads"):
        stored_tensors(open_gguf(tmp_path / "m.gguf"))


WIDE = {"hidden_size": 64, "n_embd": 64, "moe_intermediate_size": 64, "qk_nope_head_dim": 32,
        "mamba_n_heads": 8, "linear_value_head_dim": 32}  # fmt: skip
PLAIN = {  # turned matrices, and vectors of the file
    ("deepseek2 v3", False): 3,
    ("qwen2moe", False): 2,
    ("qwen3next", False): 4,
    ("qwen3next", True): 4,
}


@pytest.mark.parametrize(
    ("title", "older"),
    [
        *((title, False) for title in ("gpt2", "gptneox", "granitehybrid", "llama", "qwen2moe")),
        *((title, False) for title in ("qwen3next", "qwen35")),
        *(("deepseek2 v3", False), ("deepseek2 v3", True), ("chatglm", True), ("phi2", True)),
        ("qwen3next", True),
    ],
)
def test_blocks_stay_as_they_are_wherever_rows_lie(title: str, older: bool, tmp_path: Path) -> None:
    arch, config = CASES[title]
    config = {key: WIDE.get(key, value) for key, value in config.items()}
    weights = drawn(config)[0]
    read = []
    for restored in (False, True):
        path = tmp_path / f"{restored}.gguf"
        write(path, arch, config, weights, older=older, restored=restored)
        read.append(stored_tensors(open_gguf(path)))
    blocks, floats = read
    for name, tensor in blocks.items():
        rows = tensor.shape[0]
        np.testing.assert_array_equal(tensor.values(0, rows), floats[name].values(0, rows), name)
        some = tensor.values(rows // 3, rows)  # and a part of it alike
        np.testing.assert_array_equal(some, floats[name].values(rows // 3, rows), name)
    plain = [
        name
        for name, tensor in blocks.items()
        if len(tensor.shape) == 2 and tensor.shape[1] % 32 == 0 and tensor.scheme is None
    ]
    assert len(plain) == PLAIN.get((title, older), 0), plain


def drawn(config: dict[str, Any]) -> tuple[tiny.Weights, set[str]]:
    """Random weights as a checkpoint of the config has them, and those that it holds turned."""
    stored = stored_weights(config, SCHEMES["q0f32"])
    weights = {
        name: tiny_families.draw(name, shape)
        for weight in stored
        for name, shape in zip(weight.sources, weight.source_shapes, strict=True)
    }
    return weights, {name for weight in stored if weight.transposed for name in weight.sources}


def logits(config: dict[str, Any], weights: tiny.Weights) -> np.ndarray:
    held = models.expert_weights(config)

    def of(name: str, x: Any) -> Any:
        return np.concatenate([weights[n] for n in held[name]]) if name in held else weights[name]

    model = models.build(config, SCHEMES["q0f32"])
    return all_logits(model, [tiny_families.PROMPT], of)


def test_every_architecture_is_tried() -> None:
    assert {arch for arch, _ in CASES.values()} == set(ARCHITECTURES)
