"""Checkpoints that hold all experts in one tensor, plain and in MXFP4, mean what they say."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packed_sources import write_safetensors
from source_folder import add_tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))

import tiny_families as tiny
from test_family_logits import weights
from test_packed_sources import weights_of

from sterna.base.errors import ShapeMismatch, UnsafeFile
from sterna.convert import convert_weight, default_quantization, gen_config

# What a code of 4 bits is, from the specification: a sign, two bits of exponent, one of mantissa.
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def write(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(config))
    add_tokenizer(folder)
    return folder


def stacks(variant: str, *, alternate: bool) -> dict[str, np.ndarray]:
    """The variant's weights with [experts, in, out] matrices, as published."""
    apart = weights(variant)
    found = {name: array for name, array in apart.items() if ".experts." not in name}
    for prefix in sorted({n.split(".experts.")[0] for n in apart if ".experts." in n}):
        count = 1 + max(int(n.split(".experts.")[1].split(".")[0]) for n in apart
                        if n.startswith(f"{prefix}.experts."))  # fmt: skip
        for parts, title in ((("gate_proj", "up_proj"), "gate_up_proj"), (("down_proj",),) * 2):
            title = title if isinstance(title, str) else title[0]
            for leaf, suffix in (("weight", ""), ("bias", "_bias")):
                rows = [[apart.get(f"{prefix}.experts.{e}.{p}.{leaf}") for p in parts]
                        for e in range(count)]  # fmt: skip
                if rows[0][0] is None:
                    continue
                each = np.array(rows)  # [experts, part, out, ...]
                each = each.swapaxes(1, 2) if alternate else each
                flat = each.reshape(count, -1, *each.shape[3:])
                stack = flat.swapaxes(1, 2) if flat.ndim == 3 else flat
                found[f"{prefix}.experts.{title}{suffix}"] = np.ascontiguousarray(stack)
    return found


@pytest.mark.parametrize(("variant", "alternate"), [("gpt-oss", True), ("llama4", False)])
def test_stacked_is_converted_as_apart(variant: str, alternate: bool, tmp_path: Path) -> None:
    config = tiny.VARIANTS[variant]
    folders = []
    for title, tensors in (
        ("apart", weights(variant)), ("stacked", stacks(variant, alternate=alternate))
    ):  # fmt: skip
        source = write(tmp_path / title, config, tensors)
        convert_weight(source, tmp_path / f"{title}-out", quantization="q4f16_1")
        folders.append(tmp_path / f"{title}-out")
    shards = [sorted(folder.glob("params_shard_*.bin")) for folder in folders]
    assert [p.read_bytes() for p in shards[0]] == [p.read_bytes() for p in shards[1]]


def test_granites_stacks_have_rows_as_elsewhere(tmp_path: Path) -> None:
    """[experts, out, in], beside a matrix that ends in the same name and is no stack."""
    config, apart = tiny.VARIANTS["granitemoehybrid-experts"], weights("granitemoehybrid-experts")
    stacked = {name: array for name, array in apart.items() if "_proj.weight" not in name}
    stacked |= {name: array for name, array in apart.items() if ".self_attn." in name}
    for layer in range(3):
        place = f"model.layers.{layer}.block_sparse_moe"
        inside = [[apart[f"{place}.input_linear.{e}.{part}_proj.weight"] for part in ("gate", "up")]
                  for e in range(6)]  # fmt: skip
        down = [apart[f"{place}.output_linear.{e}.down_proj.weight"] for e in range(6)]
        stacked[f"{place}.input_linear.weight"] = np.stack([np.concatenate(e) for e in inside])
        stacked[f"{place}.output_linear.weight"] = np.stack(down)
    stacked |= {name: array for name, array in apart.items() if ".mamba." in name}
    shards = []
    for title, tensors in (("apart", apart), ("stacked", stacked)):
        source = write(tmp_path / title, config, tensors)
        convert_weight(source, tmp_path / f"{title}-out", quantization="q4f16_1")
        found = sorted((tmp_path / f"{title}-out").glob("params_shard_*.bin"))
        shards.append([path.read_bytes() for path in found])
    assert shards[0] == shards[1]


def mxfp4(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[dict[str, np.ndarray], Any]:
    """(blocks and scales of a matrix for each expert, the values they mean)."""
    experts, rows, depth = shape
    codes = rng.integers(0, 16, shape)
    powers = rng.integers(120, 126, (experts, rows, depth // 32))
    pairs = codes.reshape(experts, rows, depth // 32, 16, 2)
    blocks = (pairs[..., 0] | pairs[..., 1] << 4).astype(np.uint8)
    values = FP4[codes] * np.repeat(2.0 ** (powers - 127.0), 32, axis=-1)
    return {"blocks": blocks, "scales": powers.astype(np.uint8)}, values


def packed() -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(config, tensors, the weights they mean) of a gpt-oss in MXFP4."""
    config = {**tiny.VARIANTS["gpt-oss"], "quantization_config": {"quant_method": "mxfp4"}}
    plain = stacks("gpt-oss", alternate=True)
    tensors = {n: a.astype(np.float16) for n, a in plain.items()}
    wanted = {n: a.astype(np.float16) for n, a in weights("gpt-oss").items()}
    rng = np.random.default_rng(3)
    for name in [n for n in plain if n.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, depth, rows = plain[name].shape
        parts, values = mxfp4(rng, (experts, rows, depth))
        del tensors[name]
        tensors |= {f"{name}_{part}": array for part, array in parts.items()}
        prefix = name.rpartition(".")[0]
        for e in range(experts):
            if name.endswith("down_proj"):
                wanted[f"{prefix}.{e}.down_proj.weight"] = values[e]
            else:
                wanted[f"{prefix}.{e}.gate_proj.weight"] = values[e, ::2]
                wanted[f"{prefix}.{e}.up_proj.weight"] = values[e, 1::2]
    return config, tensors, wanted


def test_mxfp4_is_kept_as_it_is(tmp_path: Path) -> None:
    config, tensors, wanted = packed()
    source = write(tmp_path / "source", config, tensors)
    assert default_quantization(source) == "stored"
    receipt = convert_weight(source, tmp_path / "out", quantization="stored")
    gen_config(source, tmp_path / "out", quantization="stored")
    assert receipt.total.error.max_abs == 0
    assert receipt.notes == ()
    found = weights_of(tmp_path / "out")
    assert set(found) == set(wanted)
    for name, weight in wanted.items():
        np.testing.assert_array_equal(found[name], weight.astype(np.float32), name)


def test_lies_about_stacks_are_told(tmp_path: Path) -> None:
    config, tensors, _ = packed()
    name = "model.layers.0.mlp.experts.gate_up_proj"
    changes: dict[str, tuple[dict[str, np.ndarray], type[Exception]]] = {
        "scales": ({f"{name}_scales": tensors[f"{name}_scales"][:, :-1].copy()}, ShapeMismatch),
        "rank": ({f"{name}_blocks": tensors[f"{name}_blocks"][0].copy()}, ShapeMismatch),
        "dtype": ({f"{name}_scales": tensors[f"{name}_scales"].view(np.int8)}, ShapeMismatch),
        "odd": ({f"{name}_bias": tensors[f"{name}_bias"][:, :-1].copy()}, ShapeMismatch),
        "experts": ({f"{name}_bias": tensors[f"{name}_bias"][0].copy()}, ShapeMismatch),
        "nan": ({f"{name}_scales": np.full_like(tensors[f"{name}_scales"], 255)}, UnsafeFile),
    }
    for title, (change, error) in changes.items():
        source = write(tmp_path / title, config, {**tensors, **change})
        with pytest.raises(error) as caught:
            convert_weight(source, tmp_path / f"{title}-out", quantization="stored")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / f"{title}-out").exists()
