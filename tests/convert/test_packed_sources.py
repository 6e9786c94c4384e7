"""Weights of other programs, kept as they are: what is stored means what their formats say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import packed_sources as made
import pytest
from source_folder import edit_config

from sterna.base.errors import CheckpointError, ShapeMismatch, UnsafeFile, UnsupportedModel
from sterna.checkpoint.mlc import read_mlc_folder
from sterna.checkpoint.model_folder import open_model
from sterna.convert import convert_weight, default_quantization, gen_config
from sterna.models.params import stored_weights
from sterna.models.stored_scheme import stored_scheme
from sterna.quantize.pack import dequantize

FORMATS: dict[str, Any] = {
    "gptq 4": made.gptq(4, 32, sym=True, act_order=False),
    "gptq 4 zeros": made.gptq(4, 64, sym=False, act_order=False),
    "gptq 8": made.gptq(8, 32, sym=True, act_order=False),
    "gptq 3": made.gptq(3, 32, sym=False, act_order=False),
    "gptq 2": made.gptq(2, 32, sym=False, act_order=False),
    "gptq act-order": made.gptq(4, 32, sym=True, act_order=True),
    "gptq rows": made.gptq(4, -1, sym=True, act_order=False),
    "gptq v2": made.gptq(4, 32, sym=False, act_order=False, version="gptq_v2"),
    "awq": made.awq(64),
    "compressed int4": made.compressed(4, 32, symmetric=True),
    "compressed int4 zeros": made.compressed(4, 64, symmetric=False),
    "compressed int8 rows": made.compressed(8, None, symmetric=True, layout="int-quantized"),
    "fp8 tensor": made.fp8("tensor"),
    "fp8 rows": made.fp8("row"),
    "fp8 blocks": made.fp8("block"),
    "nf4": made.nf4(nested=False),
    "nf4 nested": made.nf4(nested=True),
    "int8": made.int8_rows(),
    **{f"mlx {bits}": made.mlx(bits, 64) for bits in (2, 3, 4, 5, 6, 8)},
}


def write(folder: Path, title: str) -> dict[str, np.ndarray]:
    section, module = FORMATS[title]
    is_mlx = title.startswith("mlx")
    return made.write_packed(
        folder, section, module, key="quantization" if is_mlx else "quantization_config",
        everything=is_mlx,
    )  # fmt: skip


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    """The folder's weights under checkpoint names, unstacked."""
    model = open_model(folder)
    found = {}
    for weight in stored_weights(model.config, stored_scheme(model)):
        parts = {part: model.tensors[weight.tensor_name(part)].read() for part in weight.parts}
        plain = parts.get(weight.name.rpartition(".")[2])
        whole = plain if plain is not None else dequantize(parts, weight.scheme, weight.shape)
        start = 0
        for source, shape in zip(weight.sources, weight.source_shapes, strict=True):
            found[source] = whole[start : start + shape[0]]
            start += shape[0]
    return found


@pytest.mark.parametrize("title", FORMATS)
def test_kept_as_they_are(title: str, tmp_path: Path) -> None:
    wanted = write(tmp_path / "source", title)
    assert default_quantization(tmp_path / "source") == "stored"
    receipt = convert_weight(tmp_path / "source", tmp_path / "out", quantization="stored")
    assert receipt.total.error.max_abs == 0
    gen_config(tmp_path / "source", tmp_path / "out", quantization="stored")
    found = weights_of(tmp_path / "out")
    assert set(found) == set(wanted)
    for name, weight in wanted.items():
        off = np.abs(found[name] - weight).max()
        assert off <= 2e-7 * np.abs(weight).max(), name  # one rounding of float32, or none
    assert open_model(tmp_path / "out").quantization.startswith(
        json.loads((tmp_path / "out" / "sterna.json").read_text())["quantization"]
    )


def test_mlc_reads_what_is_written(tmp_path: Path) -> None:
    """Any loader of the format finds the tensors: known dtypes, no float cut on the way."""
    write(tmp_path / "source", "fp8 blocks")
    convert_weight(tmp_path / "source", tmp_path / "out", quantization="stored")
    gen_config(tmp_path / "source", tmp_path / "out", quantization="stored")
    index = json.loads((tmp_path / "out" / "tensor-cache.json").read_text())
    records = [record for shard in index["records"] for record in shard["records"]]
    assert {record["format"] for record in records} == {"raw"}
    assert {record["dtype"] for record in records} <= {"uint32", "float32", "float16", "uint8"}
    assert read_mlc_folder(tmp_path / "out").tensors


def test_quantized_again_is_told(tmp_path: Path) -> None:
    wanted = write(tmp_path / "source", "awq")
    receipt = convert_weight(tmp_path / "source", tmp_path / "out", quantization="q8f16_1")
    assert "quantized before" in " ".join(receipt.notes)
    assert 0 < receipt.total.error.relative_rms < 0.01
    gen_config(tmp_path / "source", tmp_path / "out", quantization="q8f16_1")
    name = "model.layers.0.mlp.down_proj.weight"
    gap = weights_of(tmp_path / "out")[name] - wanted[name]
    assert np.abs(gap).max() < 0.01 * np.abs(wanted[name]).max()


def changed(title: str, **changes: Any) -> Any:
    section, module = FORMATS[title]
    return {**section, **changes}, module


REFUSED: dict[str, Any] = {
    "5 bits": (changed("gptq 4", bits=5), UnsupportedModel, "5 bits"),
    "marlin": (changed("gptq 4", is_marlin_format=True), UnsupportedModel, "Marlin"),
    "rules by module": (changed("gptq 4", dynamic={"a": {}}), UnsupportedModel, "by module"),
    "gptq version": (changed("gptq 4", checkpoint_format="marlin"), UnsupportedModel, "marlin"),
    "bits are text": (changed("gptq 4", bits="4"), UnsafeFile, "bits as a whole number"),
    "wrong group": (changed("gptq 4", group_size=64), ShapeMismatch, "call for"),
    "group 0": (changed("gptq 4", group_size=0), ShapeMismatch, "do not fill"),
    "other bits": (changed("gptq 4", bits=8), ShapeMismatch, "call for"),
    "not symmetric": (changed("gptq 4 zeros", sym=True), UnsafeFile, "calls the model symmetric"),
    "gemv": (changed("awq", version="gemv"), UnsupportedModel, "gemv"),
    "no zeros": (changed("awq", zero_point=False), UnsupportedModel, "zero_point"),
    "marlin-24": (
        changed("compressed int4", format="marlin-24"), UnsupportedModel, "marlin-24"),
    "transforms": (
        changed("compressed int4", transform_config={"a": 1}), UnsupportedModel, "transform"),
    "sparse": (
        changed("compressed int4", sparsity_config={"a": 1}), UnsupportedModel, "sparsity"),
    "no groups": (changed("compressed int4", config_groups={}), UnsafeFile, "config_groups"),
    "block size": (changed("fp8 blocks", weight_block_size="x"), UnsupportedModel, "block_size"),
    "other blocks": (changed("fp8 blocks", weight_block_size=[64, 64]), ShapeMismatch, "calls for"),
    "e5m2": (changed("fp8 tensor", fmt="e5m2"), UnsupportedModel, "e5m2"),
    "neither": (changed("nf4", load_in_4bit=False), UnsupportedModel, "neither"),
    "method": (changed("awq", quant_method="hqq"), UnsupportedModel, "hqq"),
    "no object": ((["gptq"], FORMATS["gptq 4"][1]), UnsupportedModel, "not an object"),
    "no method": (changed("awq", quant_method=None), UnsupportedModel, "quant_method"),
}  # fmt: skip


@pytest.mark.parametrize("title", REFUSED)
def test_variations_are_named(title: str, tmp_path: Path) -> None:
    (section, module), kind, words = REFUSED[title]
    made.write_packed(tmp_path / "source", section, module)
    with pytest.raises(kind, match=words) as caught:
        convert_weight(tmp_path / "source", tmp_path / "out", quantization="stored")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


ELSEWHERE = {
    # newer versions of mlx-lm say it twice; the first ones of AutoGPTQ and AutoAWQ, in files apart
    "mlx 4": lambda folder, section: edit_config(folder, quantization_config=section),
    "gptq 4": lambda folder, section: moved(folder, "quantize_config.json", section),
    "awq": lambda folder, section: moved(folder, "quant_config.json", {
        "zero_point": True, "q_group_size": 64, "w_bit": 4, "version": "GEMM"}),
}  # fmt: skip


def moved(folder: Path, file: str, section: dict[str, Any]) -> None:
    edit_config(folder, quantization_config=None)
    (folder / file).write_text(json.dumps(section))


@pytest.mark.parametrize("title", ELSEWHERE)
def test_what_is_said_elsewhere_or_twice(title: str, tmp_path: Path) -> None:
    wanted = write(tmp_path / "source", title)
    ELSEWHERE[title](tmp_path / "source", FORMATS[title][0])
    assert default_quantization(tmp_path / "source") == "stored"
    convert_weight(tmp_path / "source", tmp_path / "out", quantization="stored")
    gen_config(tmp_path / "source", tmp_path / "out", quantization="stored")
    found = weights_of(tmp_path / "out")
    name = "model.layers.0.mlp.down_proj.weight"
    assert np.abs(found[name] - wanted[name]).max() <= 2e-7 * np.abs(wanted[name]).max()


@pytest.mark.parametrize("title", ["fp8 tensor", "compressed int8 rows"])
def test_scales_of_the_cache_are_passed_over(title: str, tmp_path: Path) -> None:
    section, module = FORMATS[title]

    def scaled(out: made.Made, stem: str, shape: Any, rng: Any) -> None:
        module(out, stem, shape, rng)
        for leaf in ("k_scale", "v_scale"):
            out.tensors[f"{stem.rpartition('.')[0]}.{leaf}"] = np.ones(1, np.float32)

    made.write_packed(tmp_path / "source", section, scaled)
    receipt = convert_weight(tmp_path / "source", tmp_path / "out", quantization="stored")
    assert receipt.total.error.max_abs == 0


def test_mlx_modes_are_named(tmp_path: Path) -> None:
    section, module = FORMATS["mlx 4"]
    made.write_packed(tmp_path / "s", {**section, "mode": "mxfp4"}, module, key="quantization")
    with pytest.raises(UnsupportedModel, match="mxfp4"):
        convert_weight(tmp_path / "s", tmp_path / "out", quantization="stored")


BROKEN: dict[str, Any] = {
    "a part is gone": ("awq", "qzeros", None),
    "scales are infinite": ("awq", "scales", np.inf),
    "index outside": ("gptq act-order", "g_idx", 999),
    "NaN weights": ("fp8 tensor", "weight", np.nan),
    "another shape": ("compressed int4", "weight_shape", 7),
    "no nested scales": ("nf4 nested", "weight.nested_absmax", None),
    "levels": ("nf4", "weight.quant_map", 0.5),
    "state": ("nf4", "weight.quant_state.bitsandbytes__nf4", 65),
}


@pytest.mark.parametrize("title", BROKEN)
def test_damaged_parts_are_refused(title: str, tmp_path: Path) -> None:
    base, leaf, value = BROKEN[title]
    section, module = FORMATS[base]

    def broken(out: made.Made, stem: str, shape: Any, rng: Any) -> None:
        module(out, stem, shape, rng)
        name = f"{stem}.{leaf}"
        if value is None:
            del out.tensors[name]
        else:
            out.tensors[name] = np.full_like(out.tensors[name], value)

    made.write_packed(tmp_path / "source", section, broken)
    with pytest.raises(CheckpointError) as caught:
        convert_weight(tmp_path / "source", tmp_path / "out", quantization="stored")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
