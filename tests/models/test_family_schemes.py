"""Every family in quantized schemes: what is stored is what is read, and computed with."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_families as tiny
from test_family_logits import PAGES, weights

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

import compiled

from sterna.checkpoint.mlc import encode_bf16
from sterna.models import build, family
from sterna.models.params import stored_weights
from sterna.nn.decoder import Limits, trace_causal_lm
from sterna.passes.pipeline import graph_passes, run
from sterna.quantize.pack import dequantize, quantize
from sterna.quantize.scheme import SCHEMES, scheme

QUANTIZED = [name for name, s in SCHEMES.items() if s.is_quantized]
# Of the logits' spread: KV cache and norms are of the compute dtype, activations of 16 bits.
CLOSE = {"f32": 0.005, "f16": 0.02, "bf16": 0.15}
PAIRS = [(v, QUANTIZED[i % len(QUANTIZED)]) for i, v in enumerate(tiny.VARIANTS)]
PAIRS += [("gpt2", "q4f16_0")]  # transposed twice


def marked() -> list[object]:
    return [p if p in PAIRS[-1:] else pytest.param(*p, marks=pytest.mark.slow) for p in PAIRS]


def of_any_layer(name: str) -> str:
    return ".".join("{i}" if part.isdigit() else part for part in name.split("."))


@pytest.mark.parametrize("variant", tiny.VARIANTS)
def test_weights_read_are_those_stored(variant: str) -> None:
    config = tiny.VARIANTS[variant]
    first = list(tiny.VARIANTS).index(variant) % 6
    for name in QUANTIZED[first::6]:
        module = trace_causal_lm(build(config, scheme(name)), Limits(8, 4, 16))
        after = run(module, graph_passes(family(config).FUSED, code_bits=None))
        read = {
            of_any_layer(w.name): (tuple(int(e.value) for e in w.shape), w.dtype)
            for function in after.functions.values()
            for w in function.weights
            if w.name not in after.constants
        }
        stored = {
            of_any_layer(tensor): spec
            for weight in stored_weights(config, scheme(name))
            for tensor, spec in weight.tensors.items()
        }
        assert read == stored


def restored(variant: str, name: str) -> tiny.Weights:
    """The weights that a reader of the quantized folder finds, as a checkpoint would hold them."""
    drawn, found = weights(variant), {}
    for weight in stored_weights(tiny.MODELS[variant], scheme(name)):
        for source in weight.sources:
            values = drawn[source].T if weight.transposed else drawn[source]
            packed = quantize(np.ascontiguousarray(values), weight.scheme, name=source)
            if weight.kind != "exact":
                packed = {part: on_disk(array) for part, array in packed.items()}
            own = dequantize(packed, weight.scheme, values.shape).astype(np.float32)
            found[source] = np.ascontiguousarray(own.T) if weight.transposed else own
    return found


def on_disk(array: compiled.Logits) -> compiled.Logits:
    """float32 tensors of quantized models are cut to bfloat16 in a folder, but "exact" ones."""
    if array.dtype != np.float32:
        return array
    bits = encode_bf16(np.ascontiguousarray(array)).astype("<u4") << np.uint32(16)
    return bits.view("<f4").reshape(array.shape)


def logits(root: Path, variant: str, tensors: tiny.Weights, name: str) -> compiled.Logits:
    """At all positions; the same bits in one step and token by token."""
    sizes = {"context_window_size": tiny.CONTEXT, "prefill_chunk_size": 40, "max_batch_size": 2}
    made = compiled.build_drawn(root, tiny.VARIANTS[variant], tensors, name, **sizes)
    model = made.load(num_pages=len(PAGES))
    found = compiled.all_logits(model, tiny.PROMPT, [len(tiny.PROMPT)], PAGES)
    single = compiled.all_logits(model, tiny.PROMPT, [1] * len(tiny.PROMPT), PAGES)
    model.close()
    assert found.tobytes() == single.tobytes()
    return found


@pytest.mark.parametrize(("variant", "name"), marked())
def test_logits_are_those_of_the_restored_weights(variant: str, name: str, tmp_path: Path) -> None:
    found = logits(tmp_path / "quantized", variant, weights(variant), name)
    wanted = logits(tmp_path / "plain", variant, restored(variant, name), "q0f32")
    assert np.abs(found - wanted).max() < CLOSE[scheme(name).compute.name] * wanted.std()
