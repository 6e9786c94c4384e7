"""Conversion that computes the model: measured quality, calibration, budgets of bits."""

from __future__ import annotations

import json
import math
from pathlib import Path

import llama_reference
import numpy as np
import pytest
from packed_sources import CONFIG, awq, write_packed
from source_folder import Make, tiny

from sterna import models
from sterna.base.dtype import F32
from sterna.base.errors import TokenizerError, UsageError
from sterna.checkpoint.model_folder import open_model
from sterna.convert import ConvertOptions, convert_weight, format_receipt, gen_config
from sterna.convert.forward import all_logits
from sterna.convert.measure import compare, rounded_to_8_bits
from sterna.ir.evaluate import evaluate_compute
from sterna.ir.expr import Buffer, wrap
from sterna.ir.graph import TensorType
from sterna.models.rope_options import rope_options
from sterna.models.rope_scaling import inv_freq
from sterna.models.stored_scheme import stored_scheme
from sterna.ops.quantized_matmul import DYNAMIC_QUANTIZE
from sterna.quantize.recipe import Recipe
from sterna.quantize.scheme import SCHEMES


@pytest.mark.parametrize("variant", ["llama2-gqa", "attention-bias", "llama3.2-tied"])
def test_logits_in_numpy_are_the_references(variant: str) -> None:
    config = tiny.VARIANTS[variant]
    weights = tiny.weights(config)
    documents = [tiny.PROMPTS[2], tiny.PROMPTS[1]]
    model = models.build(config, SCHEMES["q0f32"])
    found = all_logits(model, documents, lambda name, x: weights[name])
    angles = inv_freq(rope_options(config), tiny.head_dim(config))
    wanted = [llama_reference.forward(config, weights, d, angles) for d in documents]
    assert np.abs(found - np.concatenate(wanted)).max() < 1e-5


def test_windows_in_numpy() -> None:
    """Of tokens further back than every window together, nothing is seen."""
    config = tiny.VARIANTS["mistral-window"]
    weights = tiny.weights(config)
    model = models.build(config, SCHEMES["q0f32"])
    reach = 3 * 15  # layers times tokens before a query
    documents = [tiny.PROMPTS[3], (9, *tiny.PROMPTS[3][1:])]
    found = all_logits(model, documents, lambda name, x: weights[name])
    first, second = found[:70], found[70:]
    assert np.abs(first[1] - second[1]).max() > 0.1
    np.testing.assert_allclose(first[reach + 1 :], second[reach + 1 :], atol=1e-4)


def test_compare() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(0, 1, (5, 9)).astype(np.float32)
    documents = [(0, 7, 2), (3, 8)]
    same = compare(documents, a, a)
    assert (same.top1, same.mean_kl, same.max_kl) == (1.0, 0.0, 0.0)
    shares = np.exp(a) / np.exp(a).sum(axis=1, keepdims=True)
    chances = (shares[0, 7], shares[1, 2], shares[3, 8])  # none of a document's first token
    assert same.perplexity == pytest.approx(np.prod(chances) ** (-1 / 3), rel=1e-6)
    assert same.perplexity == same.source_perplexity
    b = a.copy()
    b[0, a[0].argmin()] = 99
    other = compare(documents, a, b)
    assert other.top1 == 0.8
    assert other.source_perplexity == same.perplexity
    assert other.perplexity is not None
    assert other.perplexity > np.prod(chances) ** (-1 / 3)
    assert compare([(token,) for token in range(5)], a, b).perplexity is None
    assert other.max_kl > other.mean_kl > 0


def test_activations_are_rounded_as_a_kernel_rounds_them() -> None:
    x = np.random.default_rng(1).normal(0, 3, (3, 64)).astype(np.float32)
    x[1, 32:] = 0
    attrs = {"group": 32, "parts": 4, "span": 8}
    given = Buffer("x", F32, (wrap(3), wrap(64)))
    types = DYNAMIC_QUANTIZE.infer((TensorType(given.shape, F32),), attrs)
    known = {given: x}
    assert DYNAMIC_QUANTIZE.compute is not None
    for stage in DYNAMIC_QUANTIZE.compute("y", (given,), types, attrs):
        known[stage.out] = evaluate_compute(stage, known, {})
    arrays = {buffer.name: array for buffer, array in known.items()}
    codes, scales = arrays["y.code"].reshape(3, 2, 32), arrays["y_1"][..., None]
    wanted = (codes * scales).reshape(3, 64)
    np.testing.assert_allclose(rounded_to_8_bits(x, 32), wanted, rtol=1e-6, atol=0)


STORIES = "stories260K-hf"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Path:
    path = tmp_path_factory.mktemp("text") / "stories.txt"
    stories = json.loads((shared / "text" / "tinystories_100.json").read_text())
    path.write_text("\n".join(stories[:20]))
    return path


def test_receipts_say_what_changed(shared: Path, tmp_path: Path, text: Path) -> None:
    source = shared / "models" / STORIES
    options = ConvertOptions(calibrate=text, calibration_tokens=768)
    receipt = convert_weight(source, tmp_path / "c", quantization="q4f16_1", options=options)
    quality, nearest = receipt.quality, receipt.nearest
    assert quality is not None
    assert nearest is not None
    assert quality.mean_kl < nearest.mean_kl
    assert quality.positions > 100
    written = json.loads((tmp_path / "c" / "sterna.json").read_text())["receipt"]
    assert written["quality"]["mean_kl"] == quality.mean_kl
    assert written["nearest"]["top1"] == nearest.top1
    coarse = receipt.coarse
    assert coarse is not None
    assert coarse.mean_kl != quality.mean_kl
    assert coarse.perplexity is not None
    assert coarse.perplexity == pytest.approx(quality.perplexity, rel=0.02)
    assert written["coarse"]["perplexity"] == coarse.perplexity
    shown = format_receipt(receipt)
    assert "activations i8: " in shown
    assert "KL divergence" in shown
    assert "corrected on stories.txt" in shown
    plain = convert_weight(source, tmp_path / "p", quantization="q4f16_1")
    assert plain.quality == nearest
    assert plain.nearest is None


def test_a_budget_mixes_schemes(shared: Path, tmp_path: Path, text: Path) -> None:
    source = shared / "models" / STORIES
    options = ConvertOptions(calibrate=text, calibration_tokens=256, budget_bits=5.0, measure=False)
    receipt = convert_weight(source, tmp_path / "m", quantization="q4f16_1", options=options)
    gen_config(source, tmp_path / "m", quantization="stored")
    model = open_model(tmp_path / "m")
    recipe = stored_scheme(model)
    assert isinstance(recipe, Recipe)
    assert model.quantization == "mixed-5"
    used = {scheme.name for scheme in recipe.own.values()}
    assert len(used) > 1
    assert used <= {"q3f16_1", "q4f16_1", "q8f16_1"}
    linear = [w for w in receipt.weights if w.kind == "linear"]
    bits = 8 * sum(w.bytes for w in linear)  # with what fills up the last groups of rows
    assert 4.5 < bits / sum(w.parameters for w in linear) <= 5.0
    names = [w.name for w in receipt.weights if "qkv_proj" in w.name]
    assert len(names) == 5  # what is stacked has one scheme


@pytest.mark.parametrize("bits", [3.5, math.nan])
def test_a_budget_that_cannot_be_kept(tmp_path: Path, shared: Path, bits: float) -> None:
    with pytest.raises(UsageError, match=r"the smallest scheme takes 3\.599"):
        convert_weight(
            shared / "models" / STORIES, tmp_path / "m", quantization="q4f16_1",
            options=ConvertOptions(budget_bits=bits, measure=False),
        )  # fmt: skip
    assert not (tmp_path / "m").exists()


def test_not_measured_is_said(make: Make, tmp_path: Path) -> None:
    """The demo model's tokenizer gives ids that this tiny vocabulary does not have."""
    receipt = convert_weight(make(), tmp_path / "out", quantization="q4f16_1")
    assert receipt.quality is None
    assert "were not compared" in " ".join(receipt.notes)
    with pytest.raises(TokenizerError, match="different models"):
        convert_weight(
            make(name="B"), tmp_path / "b", quantization="q4f16_1",
            options=ConvertOptions(measure=True),
        )  # fmt: skip
    silent = convert_weight(
        make(name="C"), tmp_path / "c", quantization="q4f16_1",
        options=ConvertOptions(measure=False),
    )  # fmt: skip
    assert silent.notes == ()


BAD_TEXTS = {
    "short": (b"Lily.", "calibration needs at least"),
    "not text": (b"\xff\xfe" * 400, "not UTF-8"),
}


@pytest.mark.parametrize("title", BAD_TEXTS)
def test_texts_that_do_not_do(title: str, shared: Path, tmp_path: Path) -> None:
    data, words = BAD_TEXTS[title]
    (tmp_path / "t.txt").write_bytes(data)
    with pytest.raises(UsageError, match=words):
        convert_weight(
            shared / "models" / STORIES, tmp_path / "m", quantization="q4f16_1",
            options=ConvertOptions(calibrate=tmp_path / "t.txt"),
        )  # fmt: skip


def test_weights_that_are_kept_are_not_said_to_be_corrected(tmp_path: Path) -> None:
    write_packed(tmp_path / "awq", *awq(64), config={**CONFIG, "vocab_size": 1024})
    (tmp_path / "text.txt").write_text("The bird flies far. " * 40)
    for options, words in (
        (ConvertOptions(calibrate=tmp_path / "text.txt"), "awq leaves nothing to calibrate"),
        (ConvertOptions(budget_bits=4.25), "the weights were to be awq; give --quantization"),
    ):
        with pytest.raises(UsageError, match=words):
            convert_weight(
                tmp_path / "awq", tmp_path / "out", quantization="stored", options=options
            )


def test_nothing_to_calibrate(shared: Path, tmp_path: Path, text: Path) -> None:
    with pytest.raises(UsageError, match="nothing to calibrate"):
        convert_weight(
            shared / "models" / STORIES, tmp_path / "m", quantization="q0f16",
            options=ConvertOptions(calibrate=text),
        )  # fmt: skip
