"""What llama.cpp's converter makes of a checkpoint: names by the `gguf` package, and its rules.

In: an architecture, a config.json and weights under the checkpoint's names. Out: the tensors and
the metadata of a file. Rules are those of convert_hf_to_gguf.py, written again in numpy; `older`
are what it did in former versions, of which there are files as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gguf
import numpy as np
from gguf_source import permuted

Weights = dict[str, np.ndarray]
Config = Mapping[str, Any]
Rule = Callable[[Config, str, np.ndarray, bool], Iterator[tuple[str, np.ndarray]]]


def tensors(arch: str, config: Config, weights: Weights, *, older: bool = False) -> Weights:
    """Every tensor of the file by its name there."""
    named = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(named[arch], 64)
    found: Weights = {}
    for name, weight in stacked(weights).items():
        for own, values in RULES.get(arch, plain)(config, name, weight, older):
            title = own if own.startswith("blk.") else table.get_name(own, (".weight", ".bias"))
            assert title is not None, own
            assert title not in found, title
            found[title] = np.ascontiguousarray(values)
    return found


def stacked(weights: Weights) -> Weights:
    """With all experts of a layer in one tensor."""
    found: dict[str, Any] = {}
    for name, weight in weights.items():
        title = re.sub(r"\.experts\.\d+\.", ".experts.", name)
        found.setdefault(title, []).append(weight)
    return {n: np.array(p) if ".experts." in n else p[0] for n, p in found.items()}


def plain(config: Config, name: str, weight: np.ndarray, older: bool) -> Any:
    yield name, weight


def in_pairs(config: Config, name: str, weight: np.ndarray, older: bool) -> Any:
    """Llama and its kin: rows that rotate together lie together."""
    heads = config["num_attention_heads"]
    own = name.split(".")[-2]
    count = {"q_proj": heads, "k_proj": config.get("num_key_value_heads") or heads}.get(own)
    yield name, permuted(weight, count) if count else weight


def mixtral(config: Config, name: str, weight: np.ndarray, older: bool) -> Any:
    yield from in_pairs(config, name, weight, older)


def added_one(config: Config, name: str, weight: np.ndarray, older: bool) -> Any:
    yield name, weight + np.float32(1) if name.endswith("norm.weight") else weight


def one_row(config: Config, name: str, weight: np.ndarray, older: bool) -> Any:
    yield name, weight[0] if name.endswith("shared_expert_gate.weight") else weight


def gpt_oss(config: Config, name: str, weight: np.ndarray, older: bool) -> Any:
    yield (f"{name}.weight" if name.endswith("sinks") else name), weight


def corrected(config: Config, name: str, weight: np.ndarray, older: bool) -> Any:
    yield name.replace("e_score_correction_bias", "e_score_correction.bias"), weight


def turned(config: Config, name: str, weight: np.ndarray, older: bool) -> Any:
    inside = name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))
    yield name, weight.T if inside else weight


def by_kind(config: Config, name: str, weight: np.ndarray, older: bool) -> Any:
    """GPT-NeoX and Falcon: queries of all heads, then keys, then values."""
    if "query_key_value" in name:
        heads, groups = config["num_attention_heads"], key_heads(config)
        own = weight.reshape(groups, heads // groups + 2, -1, *weight.shape[1:])
        parts = (own[:, :-2], own[:, -2:-1], own[:, -1:])
        weight = np.concatenate([p.reshape(-1, *weight.shape[1:]) for p in parts])
    yield name, weight


def key_heads(config: Config) -> int:
    """Of the models whose queries, keys and values are one matrix."""
    if config["model_type"] == "gpt_neox":
        return int(config["num_attention_heads"])
    return int(config.get("num_kv_heads") or 1)


def internlm2(config: Config, name: str, weight: np.ndarray, older: bool) -> Any:
    if "wqkv" not in name:
        yield name, weight
        return
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    own = weight.reshape(groups, heads // groups + 2, -1, weight.shape[-1])
    layer = name.split(".")[2]
    for title, part, count in (("q", own[:, :-2], heads), ("k", own[:, -2], groups),
                               ("v", own[:, -1], 0)):  # fmt: skip
        rows = part.reshape(-1, weight.shape[-1])
        yield f"blk.{layer}.attn_{title}.weight", permuted(rows, count) if count else rows


def one_matrix(config: Config, name: str, weight: np.ndarray, older: bool) -> Any:
    """GLM-4's and Phi's first checkpoints had one matrix of queries, keys and values."""
    if not older or not re.search(r"\.[qkv]_proj\.", name):
        yield name, weight
    elif ".q_proj." in name:
        _, _, layer, _, _, leaf = name.split(".")
        others = [WEIGHTS[name.replace("q_proj", f"{kind}_proj")] for kind in "qkv"]
        yield f"blk.{layer}.attn_qkv.{leaf}", np.concatenate(others)


WEIGHTS: Weights = {}  # of the model being written, for rules that join


def latent(config: Config, name: str, weight: np.ndarray, older: bool) -> Any:
    if not name.endswith("kv_b_proj.weight") or older:
        yield from corrected(config, name, weight, older)
        return
    plain_dim, value = config["qk_nope_head_dim"], config["v_head_dim"]
    own = weight.reshape(-1, plain_dim + value, weight.shape[-1])
    yield name.replace("kv_b", "k_b"), own[:, :plain_dim].swapaxes(1, 2)
    yield name.replace("kv_b", "v_b"), own[:, plain_dim:]


def mamba(config: Config, name: str, weight: np.ndarray, older: bool) -> Any:
    groups = config.get("n_groups") or config["mamba_n_groups"]
    if name.endswith(".dt_bias"):
        name = name.removesuffix(".dt_bias") + ".dt_proj.bias"
    elif name.endswith("conv1d.weight"):
        weight = weight[:, 0]
    elif name.endswith(".A_log"):
        weight = -np.exp(weight)[:, None]
    elif name.endswith(".D"):
        weight = weight[:, None]
    elif name.endswith((".mixer.norm.weight", ".mamba.norm.weight")):
        # A program that quantizes writes a single row as a vector.
        weight = weight if older and groups == 1 else weight.reshape(groups, -1)
    yield name, weight


def hybrid(config: Config, name: str, weight: np.ndarray, older: bool) -> Any:
    layer = name.split(".")[2] if ".layers." in name else ""
    if name.endswith("input_linear.weight"):
        gate, up = np.split(weight, 2)
        yield f"blk.{layer}.ffn_gate.weight", gate
        yield f"blk.{layer}.ffn_up.weight", up
    elif name.endswith("output_linear.weight"):
        yield f"blk.{layer}.ffn_down.weight", weight
    elif ".mamba." in name:
        yield from mamba(config, name, weight, older)
    else:
        yield from in_pairs(config, name, weight, older)


def rwkv(config: Config, name: str, weight: np.ndarray, older: bool) -> Any:
    for before, after in (
        ("ffn", "feed_forward"), ("attn", "attention"), ("_lora.lora.0.weight", "1.weight"),
        ("_lora.lora.2.weight", "2.weight"), ("_lora.lora.2.bias", "0.weight"),
        ("feed_forward_norm", "ln2"), ("g_norm", "ln_x"),
    ):  # fmt: skip
        name = name.replace(before, after)
    layer = name.split(".")[2] if ".layers." in name else ""
    if "attention.x_" in name:
        if name.endswith("x_r"):
            own = [WEIGHTS[f"model.layers.{layer}.attn.x_{letter}"] for letter in "rwkvag"]
            yield f"blk.{layer}.time_mix_lerp_fused.weight", np.stack(own)
        return
    weight = weight.squeeze()
    leafless = not name.endswith((".weight", ".bias"))
    weight = weight.reshape(-1) if name.endswith("r_k") else weight
    name = f"{name}.weight" if leafless else name
    if layer == "0" and re.search(r"attention\.a[012]\.", name):
        yield re.sub(r"attention\.a", "attention.v", name), weight  # which nothing reads
    yield name, weight


def bert(config: Config, name: str, weight: np.ndarray, older: bool) -> Any:
    types = name.endswith("token_type_embeddings.weight") and len(weight) == 1
    yield name.removeprefix("bert."), weight[0] if types and older else weight


def delta(config: Config, name: str, weight: np.ndarray, older: bool) -> Any:
    """Qwen3-Next, and what the generation after it has in common; the first files had ssm_in."""
    layer = name.split(".")[2] if ".layers." in name else ""
    if name.endswith(".A_log"):
        weight = -np.exp(weight)
    elif name.endswith(".dt_bias"):
        name = name.removesuffix(".dt_bias") + ".dt_proj.bias"
    elif name.endswith("conv1d.weight"):
        weight = weight.squeeze()
    elif name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight"):
        weight = weight + np.float32(1)
    if name.endswith("in_proj_qkvz.weight") and not older:
        keys, values = config["linear_num_key_heads"], config["linear_num_value_heads"]
        dims = [config["linear_key_head_dim"]] * 2 + [
            values // keys * config["linear_value_head_dim"]
        ]
        own = np.split(weight.reshape(keys, -1, weight.shape[1]), np.cumsum(dims), axis=1)
        *qkv, z = (part.reshape(-1, weight.shape[1]) for part in own)
        yield f"blk.{layer}.attn_qkv.weight", np.concatenate(qkv)
        yield f"blk.{layer}.attn_gate.weight", z
        return
    yield from one_row(config, name, weight, older)


def tiled(config: Config, name: str, weight: np.ndarray, older: bool) -> Any:
    """Qwen3.5: value head i beside those of the other key heads; layers that guess ahead behind."""
    keys, values = config["linear_num_key_heads"], config["linear_num_value_heads"]
    dim, start = config["linear_value_head_dim"], 0
    if name.endswith(("in_proj_a.weight", "in_proj_b.weight", "A_log", "dt_bias")):
        dim = 1
    elif name.endswith(("in_proj_qkv.weight", "conv1d.weight")):
        start = 2 * keys * config["linear_key_head_dim"]
    elif not name.endswith(("in_proj_z.weight", "linear_attn.out_proj.weight")):
        dim = 0
    if dim:
        axis = int(name.endswith("out_proj.weight"))
        own = np.arange(values * dim).reshape(keys, -1, dim).swapaxes(0, 1).reshape(-1)
        weight = weight.take([*range(start), *(start + own)], axis)
    yield from delta(config, name, weight, older)
    if name == "model.norm.weight":
        yield f"blk.{config['num_hidden_layers']}.nextn.enorm.weight", weight


RULES: dict[str, Rule] = {
    **dict.fromkeys(("granite", "smollm3", "olmo"), in_pairs),
    **dict.fromkeys(("gemma", "gemma2", "gemma3"), added_one),
    **dict.fromkeys(("qwen2moe", "llama4"), one_row),
    **dict.fromkeys(("chatglm", "glm4", "phi2"), one_matrix),
    **dict.fromkeys(("gptneox", "falcon"), by_kind),
    "llama": mixtral, "gpt-oss": gpt_oss, "glm4moe": corrected, "gpt2": turned,
    "internlm2": internlm2, "deepseek2": latent, "mamba2": mamba, "granitehybrid": hybrid,
    "qwen3next": delta, "qwen35": tiled, "qwen35moe": tiled, "rwkv7": rwkv, "bert": bert,
}  # fmt: skip
