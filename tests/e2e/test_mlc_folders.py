"""Folders as MLC writes them: its group sizes and layouts, no sterna.json, the old index name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from compiled import all_logits, cut

from sterna.base.target import host_target
from sterna.checkpoint.mlc import MlcWriter, read_mlc_folder
from sterna.compiler import compile_model
from sterna.models.params import stored_weights
from sterna.models.rope_options import rope_options
from sterna.models.rope_scaling import inv_freq
from sterna.quantize.pack import dequantize, quantize
from sterna.quantize.scheme import MLC_SCHEMES, SCHEMES, Scheme
from sterna.runtime import cpu

import llama_reference  # isort: skip  # from tests/models, which `compiled` puts on the path
import tiny  # isort: skip

CONFIG = tiny.VARIANTS["llama2-gqa"]


def write_mlc_folder(folder: Path, scheme: Scheme) -> dict[str, np.ndarray]:
    """A folder in MLC's words; returns what its weights restore to, by checkpoint name."""
    weights, restored = tiny.weights(CONFIG), {}
    with MlcWriter(folder, f32_as_bf16=False) as out:
        for stored in stored_weights(CONFIG, scheme):
            whole = np.concatenate([weights[name] for name in stored.sources])
            parts = quantize(whole, stored.scheme) if whole.ndim == 2 else None
            if parts is None:
                parts = {stored.name.rpartition(".")[2]: whole.astype(scheme.compute.numpy)}
            values = (
                dequantize(parts, stored.scheme, whole.shape)
                if whole.ndim == 2
                else next(iter(parts.values())).astype(np.float32)
            )
            for part, array in parts.items():
                out.add(stored.tensor_name(part), array)
            ends = np.cumsum([shape[0] for shape in stored.source_shapes])[:-1]
            restored |= dict(zip(stored.sources, np.split(values, ends), strict=True))
        out.add_file("mlc-chat-config.json", json.dumps(chat_config(scheme)).encode())
        out.commit()
    (folder / "tensor-cache.json").rename(folder / "ndarray-cache.json")
    return restored


def chat_config(scheme: Scheme) -> dict[str, object]:
    kept = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers",
            "num_key_value_heads", "rms_norm_eps", "vocab_size", "tie_word_embeddings")  # fmt: skip
    model = {key: CONFIG[key] for key in kept if key in CONFIG}
    model |= {"context_window_size": 128, "prefill_chunk_size": 64, "head_dim": 16}
    model |= {"position_embedding_base": CONFIG.get("rope_theta", 10000.0), "max_batch_size": 2}
    model["head_dim"] = tiny.head_dim(CONFIG)
    return {
        "version": "0.1.0",
        "model_type": "llama",
        "quantization": scheme.name,
        "model_config": model,
        "vocab_size": CONFIG["vocab_size"],
        "context_window_size": 128,
        "prefill_chunk_size": 64,
    }


@pytest.mark.parametrize("scheme", MLC_SCHEMES.values(), ids=lambda s: s.name)
def test_mlc_folders_run_as_they_are(scheme: Scheme, tmp_path: Path) -> None:
    assert scheme not in SCHEMES.values()
    restored = write_mlc_folder(tmp_path / "model", scheme)
    target = host_target()
    library = compile_model(tmp_path / "model", target, tmp_path / f"model{target.suffix}")
    prompt = tiny.PROMPTS[2]
    tensors = read_mlc_folder(tmp_path / "model").tensors
    executable = cpu.load(library, tensors, num_pages=16, threads=1)
    found = all_logits(executable, prompt, cut(len(prompt), 20), range(16))
    executable.close()
    frequencies = inv_freq(rope_options(CONFIG), tiny.head_dim(CONFIG))
    expected = llama_reference.forward(CONFIG, restored, prompt, frequencies)
    # The cache holds keys and values in the scheme's own float: 8 or 11 bits of them.
    tolerance = 3e-2 if scheme.compute.name == "bf16" else 4e-3
    assert np.abs(found - expected).max() < tolerance
