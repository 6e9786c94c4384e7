"""The tiny models, their weights and the stored logits agree with an independent forward pass."""

import json
from pathlib import Path

import llama_reference
import ml_dtypes
import numpy as np
import pytest
import tiny

from sterna.models.rope_options import rope_options
from sterna.models.rope_scaling import inv_freq


@pytest.mark.parametrize("variant", tiny.VARIANTS)
def test_float64_forward_gives_the_stored_logits(variant: str) -> None:
    config = tiny.VARIANTS[variant]
    weights = tiny.weights(config)
    for golden in tiny.goldens(variant):
        length = len(golden.prompt)
        frequencies = inv_freq(rope_options(config), tiny.head_dim(config), length)
        ours = llama_reference.forward(config, weights, golden.prompt, frequencies)
        gap = np.abs(ours[list(golden.positions)] - golden.logits).max()
        assert gap < 2e-5, f"prompt of {length}"


@pytest.mark.parametrize("variant", tiny.VARIANTS)
def test_goldens_are_of_these_weights_and_of_unit_scale(variant: str) -> None:
    with np.load(tiny.GOLDENS / f"{variant}.npz") as stored:
        assert int(stored["weights_crc32"]) == tiny.checksum(
            tiny.weights(tiny.VARIANTS[variant])
        ), "the weights changed: run make_goldens.py again"
        assert str(stored["transformers"])
        assert max(stored[f"float64_gap_{len(prompt)}"] for prompt in tiny.PROMPTS) < 1e-5
    assert 0.8 < np.std(tiny.goldens(variant)[2].logits) < 1.2


def test_there_is_one_golden_a_variant() -> None:
    assert {path.stem for path in tiny.GOLDENS.glob("*.npz")} == set(tiny.VARIANTS)


@pytest.mark.parametrize(
    ("variant", "changed"),
    [
        ("rope-linear", {"rope_scaling": None}),
        ("rope-dynamic", {"rope_scaling": None}),
        ("rope-yarn", {"rope_scaling": None}),
        ("llama3.1", {"rope_scaling": None}),
        ("parameters-llama3", {"rope_parameters": None, "rope_theta": 500000.0}),
        ("parameters-yarn", {"rope_parameters": None}),
        ("mistral-window", {"sliding_window": None}),
        ("mistral-window", {"sliding_window": 17}),
    ],
)
def test_ignoring_an_option_would_show_in_the_logits(
    variant: str, changed: dict[str, object]
) -> None:
    config = {**tiny.VARIANTS[variant], **changed}
    golden = tiny.goldens(variant)[-1]
    frequencies = inv_freq(rope_options(config), tiny.head_dim(config))
    ours = llama_reference.forward(config, tiny.weights(config), golden.prompt, frequencies)
    assert np.abs(ours[list(golden.positions)] - golden.logits).max() > 0.01


def test_another_seed_draws_other_weights() -> None:
    config = tiny.VARIANTS["llama1"]
    assert tiny.checksum(tiny.weights(config)) == tiny.checksum(tiny.weights(config, seed=0))
    assert tiny.checksum(tiny.weights(config)) != tiny.checksum(tiny.weights(config, seed=1))


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_folder_holds_every_tensor_once(tmp_path: Path, shards: int, dtype: str) -> None:
    config = tiny.VARIANTS["llama3.2-tied"]
    weights = tiny.weights(config)
    tiny.write_folder(tmp_path, config, weights, shards=shards, dtype=dtype)
    found: dict[str, np.ndarray] = {}
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == shards
    for file in files:
        part = _read_safetensors(file, dtype)
        assert not found.keys() & part.keys()
        found |= part
    assert "lm_head.weight" not in found
    assert found.keys() == weights.keys()
    as_numpy = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    for name, tensor in weights.items():
        np.testing.assert_array_equal(found[name], tensor.astype(as_numpy))
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == dtype
    if shards > 1:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["weight_map"].keys() == weights.keys()
        assert set(index["weight_map"].values()) == {file.name for file in files}


def _read_safetensors(path: Path, dtype: str) -> dict[str, np.ndarray]:
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__")
    as_numpy = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    found = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        flat = np.frombuffer(data[start + begin : start + end], as_numpy)
        found[name] = flat.reshape(entry["shape"])
    return found
