"""Traced models compute the same before and after the passes, from the weights as stored."""

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from graph_values import Array, evaluate

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))

import tiny
from llama_reference import forward

from sterna.ir.graph import IRModule
from sterna.models import build, family
from sterna.models.params import stored_weights
from sterna.nn.decoder import Limits, trace_causal_lm
from sterna.passes.pipeline import graph_passes, run
from sterna.quantize.pack import quantize
from sterna.quantize.scheme import SCHEMES, scheme

CASES = [
    ("llama2-gqa", "q4f16_1"),
    ("llama3.2-tied", "q0f16"),
    ("smollm-tied", "q8f16_1"),
    ("attention-bias", "q0f32"),
    ("attention-bias", "q4f16_1z"),
    ("mlp-bias", "q3f16_1"),
    ("llama2-gqa", "q4f16_0"),  # rows are the last axis
]


def traced(variant: str, scheme_name: str) -> IRModule:
    model = build(config(variant), scheme(scheme_name))
    return trace_causal_lm(model, Limits(tokens=8, sequences=4, pages=16))


def config(variant: str) -> dict[str, object]:
    return {**tiny.VARIANTS[variant], "num_hidden_layers": 2}


def weights(variant: str, scheme_name: str, stacked: bool) -> dict[str, Array]:
    """Tensors as a model folder holds them, or of each part of a stacked weight on its own."""
    drawn = tiny.weights(config(variant))
    found: dict[str, Array] = {}
    for weight in stored_weights(config(variant), scheme(scheme_name)):
        groups = [weight.sources] if stacked else [(source,) for source in weight.sources]
        for sources in groups:
            name = weight.name if stacked else sources[0]
            rows = np.concatenate([drawn[source] for source in sources])
            for part, array in quantize(rows, weight.scheme, name=name).items():
                leaf = part if weight.scheme.is_quantized else name.rpartition(".")[2]
                found[f"{name.rpartition('.')[0]}.{leaf}"] = array
    return found


def step(module: IRModule) -> dict[str, Array]:
    """Three tokens of a new sequence and two that continue another; logits of three rows."""
    entry = module.functions[module.entry]
    cache = next(p for p in entry.params if p.name == "kv_cache")
    shape = [4, *(int(extent.value) for extent in cache.shape[1:])]
    past = np.random.default_rng(0).standard_normal(shape).astype(cache.dtype.numpy)
    index = {
        "tokens": [3, 141, 59, 26, 53],
        "logit_rows": [2, 4, 2],
        "positions": [0, 1, 2, 16, 17],
        "seq_ids": [0, 0, 0, 1, 1],
        "page_indptr": [0, 1, 3],
        "page_table": [2, 3, 0],
        "tile_start": [0, 3],
        "tile_size": [3, 2],
        "tile_seq": [0, 1],
    }
    return {"kv_cache": past} | {k: np.array(v, np.int32) for k, v in index.items()}


def outcome(module: IRModule, stored: Mapping[str, Array]) -> list[Array]:
    return evaluate(module, step(module), stored, n=5, b=2, p=3, r=3, t=2, pages=4)


def passed(module: IRModule, variant: str) -> IRModule:
    return run(module, graph_passes(family(config(variant)).FUSED, code_bits=None))


@pytest.mark.parametrize(("variant", "scheme_name"), CASES)
def test_numbers_are_those_of_the_trace(variant: str, scheme_name: str) -> None:
    before = traced(variant, scheme_name)
    after = passed(before, variant)
    expected = outcome(before, weights(variant, scheme_name, stacked=False))
    found = outcome(after, weights(variant, scheme_name, stacked=True))
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a, b)
    assert expected[0].shape == (3, 160)
    assert np.ptp(expected[0]) > 1  # logits, not a constant


def test_the_trace_means_what_the_reference_says() -> None:
    module = traced("llama2-gqa", "q0f32")
    wanted = step(module) | {"positions": np.array([0, 1, 2, 0, 1], np.int32)}
    wanted["page_indptr"] = np.array([0, 1, 2], np.int32)
    wanted["page_table"] = np.array([2, 3], np.int32)
    stored = weights("llama2-gqa", "q0f32", stacked=False)
    found, _ = evaluate(module, wanted, stored, n=5, b=2, p=2, r=3, t=2, pages=4)
    reference = reference_logits((3, 141, 59))
    np.testing.assert_allclose(found[0], reference[-1], rtol=1e-4, atol=1e-4)


def reference_logits(prompt: tuple[int, ...]) -> Array:
    c = config("llama2-gqa")
    size = tiny.head_dim(c)
    frequencies = (10000.0 ** -(np.arange(0, size, 2) / size)).astype(np.float32)
    return forward(c, tiny.weights(c), prompt, (frequencies, 1.0))


@pytest.mark.parametrize("variant", tiny.VARIANTS)
def test_weights_read_are_those_stored(variant: str) -> None:
    for name in SCHEMES:
        module = trace_causal_lm(build(tiny.VARIANTS[variant], scheme(name)), Limits(8, 4, 16))
        after = run(module, graph_passes(family(tiny.VARIANTS[variant]).FUSED, code_bits=None))
        stored = {
            tensor.replace(".layers.0.", ".layers.{i}."): spec
            for weight in stored_weights(tiny.VARIANTS[variant], scheme(name))
            for tensor, spec in weight.tensors.items()
            if ".layers." not in tensor or ".layers.0." in tensor
        }
        read = {
            weight.name: (tuple(int(e.value) for e in weight.shape), weight.dtype)
            for function in after.functions.values()
            for weight in function.weights
            if weight.name not in after.constants
        }
        assert read == stored
