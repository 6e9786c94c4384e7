"""Products of pairs of bf16: near the real product, the same bits from every rule and its knobs.

The target has an instruction for them; its C model, tested beside it in tests/codegen, runs here.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from schedule_groups import Array, layouts, product_arrays, rows, weight
from schedule_library import Library, build

from sterna.base.dtype import BF16, F16, F32, I32
from sterna.base.errors import InvalidIR
from sterna.base.target import host_target, parse_target
from sterna.ir.compute import Group
from sterna.ir.evaluate import evaluate_group
from sterna.ir.graph import IRModule
from sterna.ir.parser import parse_group
from sterna.ir.printer import to_text
from sterna.nn.trace import Trace
from sterna.passes.bf16_products import bf16_products
from sterna.passes.cleanup import cleanup
from sterna.passes.fuse import fuse
from sterna.passes.lower import lower
from sterna.passes.products import products_of_floats
from sterna.quantize.pack import dequantize, quantize
from sterna.quantize.scheme import SCHEMES, Scheme
from sterna.schedule.choose import Plan, choose, plan_of, schedule
from sterna.schedule.rules.product import MatmulKnobs, MatvecKnobs

TARGET = parse_target("cpu:x86-64-v4-bf16-linux")
# Codes of 4, 3 and 8 bits in words and across them, with zero points, in both layouts, and none.
CASES = (
    "q4f16_1", "q4f16_1z", "q4f16_0", "q3f16_1", "q8f16_1", "q8f16_1z", "q4bf16_1", "q0bf16",
)  # fmt: skip
BOUNDS = {"matvec": 2, "skinny_matmul": 32, "matmul": 512}  # of the rows, for each rule
ROWS = (1, 2, 5, 33)
SHAPE = (80, 256)
STEP = 2.0**-24  # half a unit in the last place of f32


def kernels(name: str, most: int, shape: tuple[int, int] = SHAPE) -> tuple[Group, Group]:
    """The kernel that makes pairs of x and the one that multiplies, as the passes make them."""
    trace, n = Trace(f"{name}_{most}"), rows(most)
    x = trace.param("x", (n, shape[1]), F32)
    y = trace.emit("matmul", x, weight(trace, shape, SCHEMES[name]))
    function = trace.function(trace.param("r", (n, shape[0]), F32) + y)
    module = bf16_products(IRModule({function.name: function}, function.name, (n,)))
    assert products_of_floats(module) == (1, 0)
    tiles, module = layouts(trace, SCHEMES[name]), fuse(cleanup(module))
    first, second = (lower(f, tiles).group for f in module.functions.values() if f.primitive)
    return first, second


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    groups = [g for name in CASES for most in BOUNDS.values() for g in kernels(name, most)]
    made = {g.name: (g, choose(g, TARGET)) for g in groups}
    return build(made, host_target(), tmp_path_factory.mktemp("bf16"))


def run(library: Library, both: tuple[Group, Group], arrays: dict[str, Array], n: int) -> Array:
    (pairs,) = library.run(both[0].name, arrays, n=n).values()
    (out,) = library.run(both[1].name, arrays | {both[1].inputs[0].name: pairs}, n=n).values()
    return out


def real(name: str, arrays: dict[str, Array]) -> tuple[Array, Array]:
    """The product with x in bf16, and how far sums in f32 may be from it."""
    drawn = np.random.default_rng(SHAPE[0] * 1000 + SHAPE[1]).standard_normal(SHAPE)
    packed = quantize(drawn.astype(np.float32), SCHEMES[name])
    full = dequantize(packed, SCHEMES[name], SHAPE).astype(np.float64)
    x = arrays["x"].astype(BF16.numpy).astype(np.float64)
    # Each of K products and sums rounds once; so do the groups' sums, and the epilogue.
    far = 2 * (SHAPE[1] + 16) * STEP * (np.abs(x) @ np.abs(full).T + np.abs(arrays["r"]))
    return x @ full.T + arrays["r"], far


@pytest.mark.parametrize("name", CASES)
def test_every_rule_gives_the_same_bits_near_the_real_product(library: Library, name: str) -> None:
    arrays = product_arrays(SHAPE, SCHEMES[name], max(ROWS))
    for rule, most in BOUNDS.items():
        assert plan_of(kernels(name, most)[1], TARGET).rule == rule
    whole = run(library, kernels(name, BOUNDS["matmul"]), arrays, max(ROWS))
    exact, far = real(name, arrays)
    assert (np.abs(whole - exact) <= far).all()
    for count in ROWS:
        for most in BOUNDS.values():
            part = run(library, kernels(name, most), arrays, count)
            assert np.array_equal(part.view(np.uint32), whole[:count].view(np.uint32)), most


@pytest.mark.parametrize("name", ["q4f16_1z", "q8f16_1", "q0bf16"])
def test_the_operator_means_the_same_in_an_order_of_its_own(name: str) -> None:
    arrays = product_arrays(SHAPE, SCHEMES[name], 3)
    first, second = kernels(name, 32)
    dims: dict[Any, int] = {first.inputs[0].shape[0]: 3}
    (pairs,) = evaluate_group(first, arrays, dims).values()
    inputs = arrays | {second.inputs[0].name: pairs}
    (out,) = evaluate_group(second, inputs, {second.inputs[0].shape[0]: 3}).values()
    exact, far = real(name, arrays)
    assert (np.abs(out - exact) <= far).all()


def test_knobs_do_not_change_bits(tmp_path: Path) -> None:
    """Shallow panels, parts of a tile, turns of several steps, two rows at once or one."""
    name, lanes = "q4f16_1z", host_target().lanes()
    arrays, (first, second) = product_arrays(SHAPE, SCHEMES[name], 29), kernels(name, 512)
    wide = MatmulKnobs(lanes, tokens=3, vectors=1)
    plans = [
        Plan("matvec", MatvecKnobs(lanes)),
        Plan("matvec", MatvecKnobs(lanes, tokens=2, ahead=4096)),
        Plan("skinny_matmul", wide),
        Plan("skinny_matmul", replace(wide, tokens=8, part=4, ahead=2048)),
        Plan("matmul", replace(wide, steps=2, ahead=2048)),
        Plan("matmul", replace(wide, depth=64, rows=12)),
    ]
    made = {first.name: (first, choose(first, TARGET))}
    for i, plan in enumerate(plans):
        group = replace(second, name=f"product_{i}")
        made[group.name] = (group, schedule(group, plan))
    library = build(made, host_target(), tmp_path)
    (pairs,) = library.run(first.name, arrays, n=29).values()
    inputs = arrays | {second.inputs[0].name: pairs}
    results = [library.run(f"product_{i}", inputs, n=29).values() for i in range(len(plans))]
    assert len({next(iter(out)).tobytes() for out in results}) == 1


def test_products_print_and_parse() -> None:
    for group in kernels("q4f16_1z", 32):
        text = to_text(group)
        assert to_text(parse_group(text)) == text


@pytest.mark.parametrize(
    ("own", "shape"),
    [
        (SCHEMES["q0f16"], (8, 96)),  # of another dtype
        (SCHEMES["q0bf16"], (8, 33)),  # an odd depth
        (replace(SCHEMES["q4f16_1"], group=32), (8, 48)),  # half a group
    ],
)
def test_weights_that_do_not_suit_stay(own: Scheme, shape: tuple[int, int]) -> None:
    trace, n = Trace("f"), rows(8)
    x = trace.param("x", (n, shape[1]), F32)
    function = trace.function(trace.emit("matmul", x, weight(trace, shape, own)))
    module = IRModule({"f": function}, "f", (n,))
    assert products_of_floats(bf16_products(module)) == (0, 1)


def test_the_operators_refuse_what_they_cannot_mean() -> None:
    trace, n = Trace("f"), rows(8)
    x, pairs = trace.param("x", (n, 40), F32), trace.param("p", (n, 20, 1), I32)
    for span in (3, 16):
        with pytest.raises(InvalidIR, match="the span does not fit the last dim"):
            trace.emit("bf16_pairs", x, span=span)
    with pytest.raises(InvalidIR, match="a plain weight must be bf16"):
        trace.emit("bf16_matmul", pairs, trace.weight("w", (8, 40), F16), layout="NK")
    with pytest.raises(InvalidIR, match="inner dims differ"):
        trace.emit("bf16_matmul", pairs, trace.weight("v", (8, 44), BF16), layout="NK")
    words, scales = trace.weight("c", (8, 5), I32), trace.weight("s", (8, 1), F16)
    packed = {"bias": 7, "bits": 4, "depth": 40, "layout": "NK", "packing": "word", "rows": 8}
    with pytest.raises(InvalidIR, match="codes must be packed in u32 words"):
        trace.emit("bf16_matmul", pairs, words, scales, group=40, **packed)
