"""Writes the goldens of RWKV-7: `python tests/models/make_rwkv_goldens.py`, with torch and `rwkv`.

transformers has no RWKV-7, so the oracle is the program of the model's authors (`pip install rwkv`,
Apache 2.0), which reads their own files. In: the variants of `tiny_families` that are RWKV-7, with
weights drawn under the names of flash-linear-attention's checkpoints. Out: an npz of each, with the
logits of one prefill in float32 on the CPU, and how far those of single tokens lie from them.
"""

from __future__ import annotations

import os
import tempfile
from importlib.metadata import version
from pathlib import Path

os.environ |= {"RWKV_V7_ON": "1", "RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0"}  # read at import

import numpy as np
import tiny_families as tiny
import torch
from numpy.typing import NDArray
from rwkv.model import RWKV

# Names here, and in the authors' files.
WHOLE = {"model.embeddings": "emb", "model.norm": "ln_out", "lm_head": "head"}
PARTS = {
    "attn": "att", "pre_norm": "ln0", "attn_norm": "ln1", "ffn_norm": "ln2", "g_norm": "ln_x",
    "r_proj": "receptance", "k_proj": "key", "v_proj": "value", "o_proj": "output",
}  # fmt: skip
LOW_RANK = {"0.weight": "1", "2.weight": "2", "2.bias": "0"}


def author_name(name: str) -> str:
    """The name in the authors' files of what a checkpoint calls `name`."""
    module, _, leaf = name.rpartition(".")
    if module in WHOLE:
        return f"{WHOLE[module]}.{leaf}"
    path = name.removeprefix("model.layers.").replace("_lora.lora.", "_lora#")
    parts = [PARTS.get(part, part) for part in path.split("#")[0].split(".")]
    if "#" in path:  # w_lora.lora.0.weight is w1
        parts[-1] = parts[-1][0] + LOW_RANK[path.split("#")[1]]
    return ".".join(["blocks", *parts])


def names(config: dict[str, object]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of flash-linear-attention's RWKV7ForCausalLM, as its source has them."""
    hidden, layers = int(str(config["hidden_size"])), int(str(config["num_hidden_layers"]))
    head, vocabulary = int(str(config["head_dim"])), int(str(config["vocab_size"]))
    given = config["intermediate_size"]
    inner = int(str(given)) if given else 32 * ((int(hidden * config["hidden_ratio"]) + 31) // 32)  # type: ignore[operator]
    found = {
        "model.embeddings.weight": (vocabulary, hidden),
        "lm_head.weight": (vocabulary, hidden),
    }
    norms = ["model.norm", "model.layers.0.pre_norm"]
    for i in range(layers):
        layer = f"model.layers.{i}"
        norms += [f"{layer}.attn_norm", f"{layer}.ffn_norm", f"{layer}.attn.g_norm"]
        found |= {f"{layer}.attn.x_{letter}": (1, 1, hidden) for letter in "rwkvag"}
        found |= {f"{layer}.attn.{name}": (hidden,) for name in ("k_k", "k_a")}
        found |= {f"{layer}.attn.{name}_proj.weight": (hidden, hidden) for name in "rkvo"}
        found[f"{layer}.attn.r_k"] = (hidden // head, head)
        ranks = {"w": "decay", "a": "a", "g": "gate"} | ({"v": "v"} if i else {})
        for letter, title in ranks.items():
            rank, lora = (
                int(str(config[f"{title}_low_rank_dim"])),
                f"{layer}.attn.{letter}_lora.lora",
            )
            found |= {f"{lora}.0.weight": (rank, hidden), f"{lora}.2.weight": (hidden, rank)}
            found |= {} if letter == "g" else {f"{lora}.2.bias": (hidden,)}
        found |= {f"{layer}.ffn.x_k": (hidden,), f"{layer}.ffn.key.weight": (inner, hidden)}
        found[f"{layer}.ffn.value.weight"] = (hidden, inner)
    return found | {f"{n}.{leaf}": (hidden,) for n in norms for leaf in ("weight", "bias")}


def author_tensor(name: str, tensor: NDArray[np.float32]) -> torch.Tensor:
    """As the authors' files hold it: matrices of low rank are the other way round."""
    turned = "_lora." in name and tensor.ndim == 2
    return torch.from_numpy(np.ascontiguousarray(tensor.T if turned else tensor))


@torch.no_grad()
def golden(variant: str) -> dict[str, NDArray]:
    """Everything that the variant's npz holds."""
    weights = {n: tiny.draw(n, shape) for n, shape in names(tiny.VARIANTS[variant]).items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        torch.save({author_name(n): author_tensor(n, t) for n, t in weights.items()}, f"{path}.pth")
        model = RWKV(model=str(path), strategy="cpu fp32")
        every, _ = model.forward(list(tiny.PROMPT), None, full_output=True)
        state, single = None, []
        for token in tiny.PROMPT:
            logits, state = model.forward([token], state)
            single.append(logits.numpy())
    return {
        "rwkv": np.array(version("rwkv")),
        "weights_crc32": np.array(tiny.checksum(weights)),
        "logits": every[list(tiny.POSITIONS)].numpy().astype(np.float32),
        "single_gap": np.array(np.abs(every.numpy() - np.stack(single)).max()),
    }


def main() -> None:
    torch.set_num_threads(1)
    for variant, config in tiny.VARIANTS.items():
        if str(config["model_type"]).startswith("rwkv7"):
            found = golden(variant)
            np.savez_compressed(tiny.GOLDENS / f"{variant}.npz", **found)
            spread, gap = found["logits"].std(), float(found["single_gap"])
            print(f"{variant:20} logits {spread:.2f} gap of single tokens {gap:.1e}")


if __name__ == "__main__":
    main()
