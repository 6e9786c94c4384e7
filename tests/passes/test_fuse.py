"""Which operators become one kernel, and that the numbers stay."""

import numpy as np
import pytest
from graph_values import evaluate
from test_passes_keep_numbers import outcome, passed, traced, weights

from sterna.ir.graph import Function, IRModule
from sterna.ir.parser import parse_module
from sterna.ir.verify import verify
from sterna.ops import OPS
from sterna.passes.fuse import MOVERS, fuse
from sterna.passes.pipeline import infer

PACKED = "bias=7, bits=4, depth=32, group=32, layout='NK', packing='word', rows=64"


def fused(params: str, *lines: str, near_rows: bool = False) -> tuple[IRModule, IRModule]:
    """A function f(x, y, ...) of those lines before and after, both verified."""
    body = "".join(f"    {line}\n" for line in lines)
    text = f"n = dim(1, 8)\n\n@function\ndef f({params}):\n{body}\nentry('f')\n"
    before = parse_module(text)
    verify(before, infer)
    after = fuse(before, near_rows=near_rows)
    verify(after, infer)
    return before, after


def kernels(module: IRModule, function: str = "f") -> list[str]:
    """What each kernel of a function computes, in order: "matmul add"."""
    calls = [b.call.op for b in module.functions[function].bindings]
    return [heads(module.functions[c]) if c in module.functions else c for c in calls]


def heads(primitive: Function) -> str:
    return " ".join(b.call.op for b in primitive.bindings)


def assert_same_numbers(modules: tuple[IRModule, IRModule]) -> None:
    rng = np.random.default_rng(0)
    entry = modules[0].functions["f"]
    arrays = {
        p.name: rng.standard_normal([int(getattr(e, "value", 5)) for e in p.shape], np.float32)
        for p in entry.params
    }
    for a, b in zip(*(evaluate(m, arrays, {}, n=5) for m in modules), strict=True):
        np.testing.assert_array_equal(a, b)


ADD = "s: f32[n, 8] = add(x, y)"
NORM = "u: f32[n, 8] = rms_norm(s, w, eps=1e-05)"
SUMS = "x: f32[n, 8], y: f32[n, 8], w: f32[8], m: f32[8, 8]"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        # The sum is stored beside its norm.
        ([ADD, NORM, "return s, u"], ["add rms_norm"]),
        ([ADD, NORM, "v: f32[n, 8] = matmul(u, m)", "return v"], ["add rms_norm", "matmul"]),
        # Two norms of one sum.
        (
            [ADD, NORM, "v: f32[n, 8] = rms_norm(s, w, eps=0.5)", "return u, v"],
            ["add rms_norm rms_norm"],
        ),
        # A kernel that needs the sum before the norm is there keeps them apart.
        (
            [ADD, "v: f32[n, 8] = matmul(s, m)", NORM, "return u, v"],
            ["add", "matmul", "rms_norm"],
        ),
        (
            [ADD, NORM, "v: f32[n, 8] = matmul(u, m)", "a: f32[n, 8] = rms_norm(s, w, eps=0.5)",
             "return v, a"],
            ["add rms_norm", "matmul", "rms_norm"],
        ),
        # As above, seen through a mover.
        (
            [ADD, "p: f32[n, 4] = slice(s, size=4, start=0)", "q: f32[n, 4] = silu(p)", NORM,
             "return u, q"],
            ["add", "slice silu", "rms_norm"],
        ),
        # Epilogues of a product.
        (
            ["a: f32[n, 8] = matmul(x, m)", "b: f32[n, 8] = add(a, w)",
             "c: f32[n, 8] = add(y, b)", "return c"],
            ["matmul add add"],
        ),
        # A product that two read is stored; so is one that is a result.
        (
            ["a: f32[n, 8] = matmul(x, m)", "b: f32[n, 8] = add(a, w)",
             "c: f32[n, 8] = multiply(a, y)", "return b, c"],
            ["matmul", "add", "multiply"],
        ),
        (
            ["a: f32[n, 8] = matmul(x, m)", "b: f32[n, 8] = add(a, w)", "return a, b"],
            ["matmul", "add"],
        ),
        # Nothing follows a norm into its kernel.
        (
            ["a: f32[n, 8] = rms_norm(x, w, eps=1e-05)", "b: f32[n, 8] = add(a, w)", "return b"],
            ["rms_norm", "add"],
        ),
        # SwiGLU: slices of the stacked product go into the one kernel that reads both.
        (
            ["g: f32[n, 4] = slice(x, size=4, start=0)", "u: f32[n, 4] = slice(x, size=4, start=4)",
             "a: f32[n, 4] = silu(g)", "b: f32[n, 4] = multiply(a, u)", "return b"],
            ["slice slice silu multiply"],
        ),
        # A mover is repeated for each reader, unless it is a result.
        (
            ["g: f32[n, 4] = slice(x, size=4, start=0)", "a: f32[n, 4] = silu(g)",
             "b: f32[n, 4] = multiply(g, g)", "return a, b"],
            ["slice silu", "slice multiply"],
        ),
        (
            ["g: f32[n, 4] = slice(x, size=4, start=0)", "a: f32[n, 4] = silu(g)", "return a, g"],
            ["slice", "silu"],
        ),
        # Movers of movers.
        (
            ["h: f16[n, 8] = cast(x, dtype='f16')", "g: f16[n, 4] = slice(h, size=4, start=0)",
             "a: f16[n, 4] = silu(g)", "return a"],
            ["cast slice silu"],
        ),
    ],
)  # fmt: skip
def test_kernels(lines: list[str], expected: list[str]) -> None:
    modules = fused(SUMS, *lines)
    assert kernels(modules[1]) == expected
    assert_same_numbers(modules)


def test_packed_weights_are_read_where_they_are_used() -> None:
    _, after = fused(
        "x: f32[n, 32], tokens: i32[n]",
        "q = weight('q', u32[64, 4])",
        "s = weight('s', f16[64, 1])",
        f"w: f32[64, 32] = dequantize(q, s, {PACKED})",
        "e: f32[n, 32] = take(w, tokens)",
        "h: f32[n, 64] = matmul(x, w)",
        "return e, h",
    )
    assert kernels(after) == ["dequantize take", "dequantize matmul"]
    for binding in after.functions["f"].bindings:
        primitive = after.functions[binding.call.op]
        assert [w.name for w in primitive.weights] == ["q", "s"]
        assert not set(primitive.params) & set(primitive.weights)


def test_what_a_called_function_reads_is_stored() -> None:
    before = parse_module(
        "n = dim(1, 8)\n\n@function\ndef f(x: f32[n, 8]):\n"
        "    a: f32[n, 4] = slice(x, size=4, start=0)\n"
        "    b: f32[n, 4] = g(a, repeat=2)\n    return b\n\n"
        "@function\ndef g(x: f32[n, 4]):\n    y: f32[n, 4] = silu(x)\n    return y\n\nentry('f')\n"
    )
    after = fuse(before)
    verify(after, infer)
    assert [b.call.op for b in after.functions["f"].bindings] == ["f_0_slice", "g"]
    assert kernels(after, "g") == ["silu"]


LAYER = [
    "cast rms_norm",
    "dequantize matmul",
    "slice slice slice rope_append",
    "attention",
    "dequantize matmul",
    "add cast rms_norm",
    "dequantize matmul",
    "slice slice silu multiply",
    "dequantize matmul add",
]
BIASED = [*LAYER[:6], "dequantize matmul cast add", LAYER[7], "dequantize matmul cast add add"]


@pytest.mark.parametrize(
    ("variant", "scheme", "layer"),
    [
        ("llama3.2-tied", "q4f16_1", LAYER),
        ("mlp-bias", "q4f16_1z", BIASED),
        ("llama2-gqa", "q4f16_0", LAYER),
    ],
)
def test_a_model_computes_the_same_from_few_kernels(
    variant: str, scheme: str, layer: list[str]
) -> None:
    before = passed(traced(variant, scheme), variant)
    after = fuse(before)
    verify(after, infer)
    assert kernels(after, "layer") == layer
    stored = weights(variant, scheme, stacked=True)
    for a, b in zip(outcome(before, stored), outcome(after, stored), strict=True):
        np.testing.assert_array_equal(a, b)
    assert_defined_once(before, after)


CODED = (
    "c, s, t = outs(dynamic_quantize({}, group=4, parts=2, span=4), "
    "i32[n, 2, 2], f32[n, 2], i32[n, 2])"
)
GATED = ["a: f32[n, 8] = silu(x)", "b: f32[n, 8] = multiply(a, y)"]
ACTIVATED = [*GATED, CODED.format("b")]
PAIRED = [*GATED, "p: i32[n, 2, 2] = bf16_pairs(b, span=4)"]


@pytest.mark.parametrize(
    ("lines", "near", "expected"),
    [
        ([*ACTIVATED, "return c, s, t"], True, ["silu multiply dynamic_quantize"]),
        ([*ACTIVATED, "return c, s, t"], False, ["silu multiply", "dynamic_quantize"]),
        # What others read too is stored, once.
        ([*ACTIVATED, "return b, c, s, t"], True, ["silu multiply", "dynamic_quantize"]),
        # A product's epilogue stays with the product.
        (
            ["a: f32[n, 8] = matmul(x, m)", "b: f32[n, 8] = silu(a)", CODED.format("b"),
             "return c, s, t"],
            True,
            ["matmul silu", "dynamic_quantize"],
        ),
        ([CODED.format("x"), "return c, s, t"], True, ["dynamic_quantize"]),
        # Numbers of a pair are computed once each, near or not.
        ([*PAIRED, "return p"], False, ["silu multiply bf16_pairs"]),
        ([*PAIRED, "return b, p"], True, ["silu multiply", "bf16_pairs"]),
    ],
)  # fmt: skip
def test_what_only_becomes_codes_or_pairs_is_not_stored(
    lines: list[str], near: bool, expected: list[str]
) -> None:
    assert kernels(fused(SUMS, *lines, near_rows=near)[1]) == expected


def assert_defined_once(before: IRModule, after: IRModule) -> None:
    """Every value has one maker, but for what movers make."""
    primitives = [f for f in after.functions.values() if f.primitive]
    made = [o for f in primitives for b in f.bindings for o in b.outs if b.call.op not in MOVERS]
    wanted = {
        out
        for f in before.functions.values()
        for b in f.bindings
        for out in b.outs
        if b.call.op in OPS and b.call.op not in MOVERS
    }
    assert len(made) == len(set(made))
    assert set(made) == wanted
    called = [b.call.op for f in after.functions.values() if not f.primitive for b in f.bindings]
    assert len(called) == len(set(called))


def test_rows_of_a_table_in_16_bits_are_stored_as_they_are_read() -> None:
    module = fuse(
        parse_module(
            """n = dim(1, 8)

@function
def f(ids: i32[n]):
    table = weight('table', f16[32, 8])
    rows: f16[n, 8] = take(table, ids)
    x: f32[n, 8] = cast(rows, dtype='f32')
    return x

entry('f')
"""
        )
    )
    verify(module, infer)
    assert kernels(module) == ["take cast"]
