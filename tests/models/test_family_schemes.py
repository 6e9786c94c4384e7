"""Every family in quantized schemes: what is stored is what is read, and computed with.

All of the matrix is computed in numpy from the graph that kernels are made of, and a library of
each family in one scheme or two; both are compared with the plain graph of the restored weights.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_families as tiny
from test_family_logits import PAGES, marked, weights

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

import compiled

from sterna.checkpoint.mlc import encode_bf16
from sterna.convert.forward import graph_logits
from sterna.ir.graph import IRModule
from sterna.models import build, family
from sterna.models.params import StoredWeight, stored_weights
from sterna.nn.decoder import Limits, trace_causal_lm
from sterna.passes.pipeline import graph_passes, run
from sterna.quantize.pack import dequantize, quantize
from sterna.quantize.scheme import SCHEMES, scheme

Parts = dict[str, compiled.Logits]
QUANTIZED = [name for name, s in SCHEMES.items() if s.is_quantized]
# Of the logits' spread. In numpy, activations become codes of 16 bits where a scheme computes in
# 16; in a library the KV cache is of the compute dtype as well.
SAME = {"f32": 2e-5, "f16": 0.002, "bf16": 0.002}
CLOSE = {"f32": 0.005, "f16": 0.02, "bf16": 0.15}
FAMILIES = list({family(config): variant for variant, config in tiny.VARIANTS.items()}.values())
PAIRS = [(v, QUANTIZED[i % len(QUANTIZED)]) for i, v in enumerate(FAMILIES)]
PAIRS += [("gpt2", "q4f16_0")]  # transposed twice


def pairs() -> list[object]:
    return [p if p in PAIRS[-1:] else pytest.param(*p, marks=pytest.mark.slow) for p in PAIRS]


def of_any_layer(name: str) -> str:
    return ".".join("{i}" if part.isdigit() else part for part in name.split("."))


def graph(variant: str, name: str) -> IRModule:
    """The graph as kernels are made of it, save that keys are rotated before they are kept."""
    config, own = tiny.VARIANTS[variant], scheme(name)
    module = trace_causal_lm(build(config, own), Limits(len(tiny.PROMPT), 1, 40))
    bits = 16 if own.is_quantized and own.compute.bits == 16 else None
    passes = graph_passes(family(config).FUSED, code_bits=bits)
    return run(module, [p for p in passes if p[0] != "fuse_rope_append"])


def stored(variant: str, name: str, *, cut: bool = False) -> tuple[Parts, Parts]:
    """(parts of a folder's weights, what they restore to as weights of a plain folder)."""
    drawn, parts, plain = weights(variant), Parts(), Parts()
    for weight in stored_weights(tiny.MODELS[variant], scheme(name)):
        whole = whole_weight(drawn, weight)
        packed = quantize(whole, weight.scheme, name=weight.name)
        if cut and weight.kind != "exact":
            packed = {part: on_disk(array) for part, array in packed.items()}
        for part, array in zip(weight.parts, packed.values(), strict=True):
            parts[weight.tensor_name(part)] = array
        restored = dequantize(packed, weight.scheme, whole.shape)
        plain[weight.name] = restored.astype(np.float32)
    return parts, plain


def restored(variant: str, name: str) -> tiny.Weights:
    """The weights that a reader of the quantized folder finds, as a checkpoint would hold them."""
    _, plain = stored(variant, name, cut=True)
    found: tiny.Weights = {}
    for weight in stored_weights(tiny.MODELS[variant], scheme(name)):
        rows = [shape[-1 if weight.transposed else 0] for shape in weight.source_shapes]
        parts = np.split(plain[weight.name], np.cumsum(rows)[:-1])
        for source, part in zip(weight.sources, parts, strict=True):
            found[source] = np.ascontiguousarray(part.T if weight.transposed else part)
    return found


def whole_weight(drawn: tiny.Weights, weight: StoredWeight) -> compiled.Logits:
    rows = [drawn[source].T if weight.transposed else drawn[source] for source in weight.sources]
    return np.ascontiguousarray(np.concatenate(rows))


def on_disk(array: compiled.Logits) -> compiled.Logits:
    """float32 tensors of quantized models are cut to bfloat16 in a folder, but "exact" ones."""
    if array.dtype != np.float32:
        return array
    bits = encode_bf16(np.ascontiguousarray(array)).astype("<u4") << np.uint32(16)
    return bits.view("<f4").reshape(array.shape)


def last_places(
    module: IRModule, prompt: list[int], plain: Parts, wanted: compiled.Logits
) -> np.floating:
    """How far the logits go where weights move by a last place: what rounding does to a model.

    No other order of its sums can be held to less. It is 2e-5 of the spread where a recurrence
    carries it on, and how numpy adds depends on the processor.
    """
    rng, gaps = np.random.default_rng(0), []
    for _ in range(3):
        steps = {k: rng.integers(-1, 2, a.shape) * np.float32(2**-23) for k, a in plain.items()}
        moved = {k: (a * (1 + steps[k])).astype(np.float32) for k, a in plain.items()}
        found = graph_logits(module, [prompt], lambda own, x, of=moved: of[own])  # type: ignore[misc]
        gaps.append(np.abs(found.astype(np.float32) - wanted).max())
    return max(gaps)


@pytest.mark.parametrize("variant", marked())
def test_logits_of_the_graph_in_every_scheme(variant: str) -> None:
    plain_graph, prompt = graph(variant, "q0f32"), tiny.PROMPT[:12]
    for name in QUANTIZED:
        module = graph(variant, name)
        parts, plain = stored(variant, name)
        read = {
            of_any_layer(w.name): (tuple(int(e.value) for e in w.shape), w.dtype.numpy)
            for function in module.functions.values()
            for w in function.weights
            if w.name not in module.constants
        }
        assert read == {
            of_any_layer(part): (array.shape, array.dtype) for part, array in parts.items()
        }
        found = graph_logits(module, [prompt], lambda part, x, of=parts: of[part])  # type: ignore[misc]
        wanted = graph_logits(plain_graph, [prompt], lambda own, x, of=plain: of[own])  # type: ignore[misc]
        gap = np.abs(found.astype(np.float32) - wanted).max()
        if gap >= (bound := SAME[scheme(name).compute.name] * wanted.std()):
            bound = 2 * last_places(plain_graph, prompt, plain, wanted)
        assert gap < bound, name


@pytest.mark.parametrize(("variant", "name"), pairs())
def test_logits_are_those_of_the_restored_weights(variant: str, name: str, tmp_path: Path) -> None:
    """Of a library at all positions; the same bits in one step and token by token."""
    sizes = {"context_window_size": tiny.CONTEXT, "prefill_chunk_size": 40, "max_batch_size": 2}
    made = compiled.build_drawn(tmp_path, tiny.VARIANTS[variant], weights(variant), name, **sizes)
    model = made.load(num_pages=len(PAGES))
    found = compiled.all_logits(model, tiny.PROMPT, [len(tiny.PROMPT)], PAGES)
    single = compiled.all_logits(model, tiny.PROMPT, [1] * len(tiny.PROMPT), PAGES)
    model.close()
    assert found.tobytes() == single.tobytes()
    _, plain = stored(variant, name, cut=True)
    wanted = graph_logits(graph(variant, "q0f32"), [tiny.PROMPT], lambda own, x: plain[own])
    assert np.abs(found - wanted).max() < CLOSE[scheme(name).compute.name] * wanted.std()
