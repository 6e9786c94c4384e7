"""Writes goldens/families: `python tests/models/make_family_goldens.py [VARIANT ...]`, with torch.

Out: for each variant of `tiny_families.py` the logits that transformers computes in float32 on the
CPU with eager attention, in one prefill, at a few positions (of embedding models the last hidden
states); the checksum of the weights under the
checkpoint's names, so that a name or a shape that differs shows; and how far float64 lies.
"""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Callable

import numpy as np
import tiny_families as tiny
import torch
import transformers
from numpy.typing import NDArray

Tensors = dict[str, NDArray[np.float32]]

# What files call a tensor that transformers 5 calls otherwise while it runs.
ON_DISK = {"gpt_neox": {"lm_head.weight": "embed_out.weight"}}


# An expert's matrices in a file: gate, up and down.
EXPERTS = {"mixtral": ("block_sparse_moe", "w1", "w3", "w2")}
USUAL = ("mlp", "gate_proj", "up_proj", "down_proj")


# Stacks of experts whose matrices are [in, out], gate and up row by row in turn.
TURNED = {"gpt_oss": True, "llama4_text": False}


def parts_of_stack(name: str, shape: torch.Size, turns: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one expert's parts, as they are named where they lie apart."""
    prefix, _, own = name.rpartition(".")
    leaf, rows = ("bias", shape[1]) if own.endswith("_bias") else ("weight", shape[-1])
    parts = ("gate_proj", "up_proj") if own.startswith("gate_up") else ("down_proj",)
    one = (rows // len(parts), *((shape[1],) if leaf == "weight" else ()))
    return {f"{prefix}.{e}.{p}.{leaf}": one for e in range(shape[0]) for p in parts}


def stack_in_memory(
    parts: list[NDArray[np.float32]], name: str, shape: torch.Size, turns: bool
) -> NDArray[np.float32]:
    """The stack of those parts, in the order of parts_of_stack."""
    count = 2 if "gate_up" in name else 1
    experts = np.stack(parts).reshape(shape[0], count, *parts[0].shape)  # [E, part, out, ...]
    joined = experts.swapaxes(1, 2) if turns else experts
    flat = joined.reshape(shape[0], -1, *parts[0].shape[1:])
    return np.ascontiguousarray(flat.swapaxes(1, 2) if flat.ndim == 3 else flat).reshape(shape)


# What else files call otherwise; Granite's hold stacks, whose parts are named for the tests alone.
OTHERWISE = {
    "granitemoehybrid": (
        (r"experts\.(\d+)\.(gate|up)_proj", r"input_linear.\1.\2_proj"),
        (r"experts\.(\d+)\.down_proj", r"output_linear.\1.down_proj"),
        (r"router\.weight", "router.layer.weight"),
    )
}


def parts_on_disk(kind: str, name: str, shape: torch.Size) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a file of what transformers 5 holds as one tensor for all experts."""
    found = {}
    for part, own in parts_by_usual_names(kind, name, shape).items():
        for old, new in OTHERWISE.get(kind, ()):
            part = re.sub(old, new, part)
        found[part] = own
    return found


def parts_by_usual_names(kind: str, name: str, shape: torch.Size) -> dict[str, tuple[int, ...]]:
    """As parts_on_disk, but for OTHERWISE."""
    if kind in TURNED and ".experts." in name:
        return parts_of_stack(name, shape, TURNED[kind])
    block, gate, up, down = EXPERTS.get(kind, USUAL)
    name = name.replace(".mlp.", f".{block}.") if kind in EXPERTS else name
    if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
        return {name: tuple(shape)}
    prefix = name.rpartition(".")[0]
    if name.endswith("down_proj"):
        return {f"{prefix}.{e}.{down}.weight": tuple(shape[1:]) for e in range(shape[0])}
    half = (shape[1] // 2, shape[2])
    return {f"{prefix}.{e}.{part}.weight": half for e in range(shape[0]) for part in (gate, up)}


def in_memory(
    weights: Tensors, config: dict[str, object], name: str, shape: torch.Size
) -> NDArray[np.float32]:
    """The tensor that transformers 5 makes of those parts."""
    kind = str(config["model_type"])
    parts = [weights[p] for p in parts_on_disk(kind, name, shape)]
    if kind in TURNED and ".experts." in name:
        return stack_in_memory(parts, name, shape, TURNED[kind])
    return parts[0] if len(parts) == 1 else np.concatenate(parts).reshape(shape)


# Model types that transformers knows by another's.
SAME_AS = {"kimi_k2": "deepseek_v3"}


def renamed(config: dict[str, object]) -> dict[str, object]:
    """The config of the model type that transformers has."""
    kind = str(config["model_type"])
    return {**config, "model_type": SAME_AS.get(kind, kind)}


def build(config: dict[str, object], weights: Tensors | None) -> tuple[torch.nn.Module, Tensors]:
    """The model and its weights by checkpoint names, drawn here if not given."""
    given = renamed(copy.deepcopy(config))
    parsed = transformers.CONFIG_MAPPING[str(given["model_type"])].from_dict(given)
    parsed._attn_implementation = "eager"
    parsed._experts_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(parsed, attn_implementation="eager")
    tied = set(model.all_tied_weights_keys) if hasattr(model, "all_tied_weights_keys") else set()
    state = {k: v for k, v in model.state_dict().items() if k not in tied}
    on_disk = ON_DISK.get(str(given["model_type"]), {})
    names = {k: on_disk.get(k, k) for k in state}
    if weights is None:
        weights = {}
        for k, name in names.items():
            for part, shape in parts_on_disk(
                str(given["model_type"]), name, state[k].shape
            ).items():
                weights[part] = tiny.draw(part, shape)
    loaded = {k: torch.from_numpy(in_memory(weights, given, name, state[k].shape))
              for k, name in names.items()}  # fmt: skip
    left = model.load_state_dict(loaded, strict=False)
    if left.unexpected_keys or set(left.missing_keys) - tied:
        raise ValueError(f"the weights do not fit: {left}")
    model.tie_weights()
    return model.eval(), weights


def internlm2(config: dict[str, object]) -> tuple[torch.nn.Module, Tensors]:
    """InternLM2 is not in transformers; it is Llama with q, k and v of each group in one matrix."""
    llama = {**config, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    model, _ = build(llama, None)
    heads, kv_heads = (
        int(str(config["num_attention_heads"])),
        int(str(config["num_key_value_heads"])),
    )
    hidden = int(str(config["hidden_size"]))
    dim = hidden // heads
    renamed = {
        "model.embed_tokens": "model.tok_embeddings",
        "input_layernorm": "attention_norm",
        "self_attn.o_proj": "attention.wo",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2",
        "lm_head": "output",
    }
    own: Tensors = {}
    state: Tensors = {}
    for name, tensor in model.state_dict().items():
        if "q_proj" in name:
            whole = name.replace("self_attn.q_proj", "attention.wqkv")
            wqkv = tiny.draw(whole, ((heads + 2 * kv_heads) * dim, hidden))
            own[whole] = wqkv
            grouped = wqkv.reshape(kv_heads, -1, dim, hidden)
            parts = (grouped[:, :-2], grouped[:, -2], grouped[:, -1])
            for letter, part in zip("qkv", parts, strict=True):
                state[name.replace("q_proj", f"{letter}_proj")] = part.reshape(-1, hidden).copy()
        elif "k_proj" not in name and "v_proj" not in name:
            other = name
            for old, new in renamed.items():
                other = other.replace(old, new)
            own[other] = state[name] = tiny.draw(other, tuple(tensor.shape))
    return build(llama, state)[0], own


def headless(config: dict[str, object]) -> tuple[torch.nn.Module, Tensors]:
    """An embedding model: without a head, and without BERT's pooler, which nothing uses."""
    given = {k: v for k, v in config.items() if not k.startswith("sentence_")}
    parsed = transformers.CONFIG_MAPPING[str(given["model_type"])].from_dict(given)
    model = transformers.AutoModel.from_config(parsed, attn_implementation="eager")
    prefix = {"bert": "bert"}.get(str(given["model_type"]), "model")
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("pooler.")}
    names = {k: f"{prefix}.{k}" for k in state}
    weights = {name: tiny.draw(name, tuple(state[k].shape)) for k, name in names.items()}
    loaded = {k: torch.from_numpy(weights[name]) for k, name in names.items()}
    left = model.load_state_dict(loaded, strict=False)
    if left.unexpected_keys or any(not k.startswith("pooler.") for k in left.missing_keys):
        raise ValueError(f"the weights do not fit: {left}")
    return model.eval(), weights


@torch.no_grad()
def states(variant: str) -> dict[str, NDArray]:
    """What the npz of an embedding model holds."""
    model, weights = headless(tiny.EMBEDDING[variant])
    prompt, at = torch.tensor([tiny.PROMPT]), list(tiny.POSITIONS)
    every = model(prompt).last_hidden_state[0].numpy()
    double = model.double()(prompt).last_hidden_state[0].numpy()
    return {
        "transformers": np.array(transformers.__version__),
        "weights_crc32": np.array(tiny.checksum(weights)),
        "states": every[at].astype(np.float32),
        "mean": every.mean(axis=0).astype(np.float32),
        "float64_gap": np.array(np.abs(every - double).max()),
    }


SPECIAL: dict[str, Callable[[dict[str, object]], tuple[torch.nn.Module, Tensors]]] = {
    "internlm2": internlm2
}


@torch.no_grad()
def golden(variant: str) -> dict[str, NDArray]:
    """Everything that the variant's npz holds."""
    config = tiny.VARIANTS[variant]
    model, weights = SPECIAL.get(variant, lambda c: build(c, None))(config)
    prompt = torch.tensor([tiny.PROMPT])
    at = list(tiny.POSITIONS)
    single = model(prompt, use_cache=False).logits[0, at].numpy()
    double = model.double()(prompt, use_cache=False).logits[0, at].numpy()
    return {
        "transformers": np.array(transformers.__version__),
        "weights_crc32": np.array(tiny.checksum(weights)),
        "logits": single.astype(np.float32),
        "float64_gap": np.array(np.abs(single - double).max()),
    }


def main() -> None:
    torch.set_num_threads(1)
    tiny.GOLDENS.mkdir(parents=True, exist_ok=True)
    for variant in sys.argv[1:] or (*tiny.VARIANTS, *tiny.EMBEDDING):
        embeds = variant in tiny.EMBEDDING
        found = states(variant) if embeds else golden(variant)
        np.savez_compressed(tiny.GOLDENS / f"{variant}.npz", **found)
        name = "states" if embeds else "logits"
        spread, gap = found[name].std(), float(found["float64_gap"])
        print(f"{variant:20} {name} {spread:.2f} float64 gap {gap:.1e}")


if __name__ == "__main__":
    main()
