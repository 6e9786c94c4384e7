"""Every rule on every scheme: the numbers that a Group means, and the same bits from each rule."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from schedule_groups import (
    gated_group,
    norm_group,
    product_arrays,
    product_group,
    rows,
    take_group,
)
from schedule_library import Library, build

from sterna.base.dtype import F32
from sterna.base.target import host_target
from sterna.ir.compute import Group
from sterna.ir.evaluate import evaluate_group, evaluate_primfunc
from sterna.ir.loop import Prefetch
from sterna.ir.rewrite import visit
from sterna.quantize.pack import dequantize, quantize
from sterna.quantize.scheme import MLC_SCHEMES, SCHEMES
from sterna.schedule.apply import apply
from sterna.schedule.choose import Plan, choose, schedule
from sterna.schedule.rules.product import MatmulKnobs
from sterna.schedule.steps import Schedule

FEW, SOME, MANY = 2, 32, 512  # upper bounds of the rows: a matvec, a skinny and a tiled product
ROWS = (1, 3, 7, 65)
KINDS = {name: s for name, s in SCHEMES.items() if "f32" not in name and "bf16" not in name}
KINDS |= {"q0f32": SCHEMES["q0f32"], "q0bf16": SCHEMES["q0bf16"], "q4bf16_1": SCHEMES["q4bf16_1"]}
KINDS |= {"q4f32_1z": SCHEMES["q4f32_1z"], "q3f16_0": MLC_SCHEMES["q3f16_0"]}
TAILS = ("q0f16", "q0f32", "q4f16_1", "q4f16_0", "q3f16_1z")  # more C for the last columns
CASES = [(name, (172, 172) if name in TAILS else (176, 172)) for name in KINDS]
CASES += [("q4f16_1", (64, 64)), ("q0f16", (64, 64)), ("q4f16_0", (8, 256)), ("q0f32", (300, 5))]
WIDTHS = (64, 172, 20, 7)


def title(name: str, shape: tuple[int, int], most: int) -> str:
    return f"{name}_{shape[0]}_{shape[1]}_{most}"


def groups() -> Iterator[Group]:
    for name, shape in CASES:
        for most in (FEW, SOME, MANY):
            yield product_group(title(name, shape, most), shape, KINDS[name], most)
    for width in WIDTHS:
        yield norm_group(f"norm_{width}", width, MANY, residual=False)
        yield norm_group(f"sum_norm_{width}", width, MANY, residual=True)
    for name in ("q4f16_1", "q3f16_1", "q0f16", "q4f16_1z"):
        yield take_group(f"take_{name}", (50, 72), KINDS[name], MANY)
    yield gated_group("gated_1", (rows(5000),))
    yield gated_group("gated_2", (rows(MANY), 100))
    yield gated_group("gated_3", (rows(MANY), 3, 20))
    yield gated_group("gated_fixed", (37,))


@pytest.fixture(scope="module")
def scheduled() -> dict[str, tuple[Group, Schedule]]:
    return {g.name: (g, choose(g, host_target())) for g in groups()}


@pytest.fixture(scope="module")
def library(
    scheduled: dict[str, tuple[Group, Schedule]], tmp_path_factory: pytest.TempPathFactory
) -> Library:
    return build(scheduled, host_target(), tmp_path_factory.mktemp("schedule"))


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_matvec_and_matmul_give_the_same_bits(
    scheduled: dict[str, tuple[Group, Schedule]],
    library: Library,
    name: str,
    shape: tuple[int, int],
) -> None:
    arrays = product_arrays(shape, KINDS[name], max(ROWS))
    (wide,) = library.run(title(name, shape, MANY), arrays, n=max(ROWS)).values()
    group = scheduled[title(name, shape, MANY)][0]
    dim = next(d for d in group.inputs[0].shape if d not in shape)
    inputs = {b.name: arrays[b.name] for b in group.inputs}
    (expected,) = evaluate_group(group, inputs, {dim: max(ROWS)}).values()
    assert np.abs(wide - expected).max() <= 2e-6 * np.abs(expected).max()
    for count in ROWS:
        for most in (FEW, SOME, MANY):
            (part,) = library.run(title(name, shape, most), arrays, n=count).values()
            assert np.array_equal(part.view(np.uint32), wide[:count].view(np.uint32)), (count, most)


TINY = ("q0f16", "q4f16_1", "q4f16_0z", "q3f16_1", "q8f16_1z")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Library:
    made = (
        product_group(title(k, (20, 40), m), (20, 40), KINDS[k], m)
        for k in TINY
        for m in (FEW, SOME, MANY)
    )
    kernels = {g.name: (g, choose(g, host_target())) for g in made}
    return build(kernels, host_target(), tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("most", [FEW, SOME, MANY])
@pytest.mark.parametrize("name", TINY)
def test_compiled_as_interpreted(tiny: Library, name: str, most: int) -> None:
    """The interpreter checks every access; C gives its bits."""
    arrays, func = product_arrays((20, 40), KINDS[name], 2), tiny.funcs[title(name, (20, 40), most)]
    (found,) = tiny.run(func.name, arrays, n=2).values()
    held = {p.name: arrays[p.name] for p in func.params if p.name in arrays}
    held[func.params[-1].name] = out = np.zeros_like(found)
    evaluate_primfunc(func, held, dict.fromkeys(func.dims, 2))
    assert np.array_equal(out.view(np.uint32), found.view(np.uint32))


@pytest.mark.parametrize(
    ("name", "source", "lines"), [("q0f32", "layer_weight", 2), ("q4f32_1", "t1_weight", 4)]
)
def test_parts_of_k_asked_for_ahead_give_the_same_bits(
    tmp_path: Path, name: str, source: str, lines: int
) -> None:
    """32 of 96 steps of k at a time, two a turn, 6 of 13 rows: as they lie, and from a panel."""
    shape, lanes, count = (128, 96), host_target().lanes(), 13
    vectors = 16 * lines // lanes
    tile = MatmulKnobs(lanes, tokens=3, vectors=vectors, items=1, depth=32, rows=6)
    plans = {"plain": tile, "ahead": replace(tile, ahead=1024, steps=2)}
    few = product_group("few", shape, SCHEMES[name], FEW)
    made = {"few": (few, choose(few, host_target()))}
    for title, knobs in plans.items():
        group = product_group(title, shape, SCHEMES[name], MANY)
        made[title] = (group, schedule(group, Plan("matmul", knobs)))
    library = build(made, host_target(), tmp_path)
    for title in plans:
        visited = visit(library.funcs[title].body)
        asked = {(n.place.buffer.name, n.place.index) for n in visited if isinstance(n, Prefetch)}
        assert {buffer for buffer, _ in asked} == ({source} if title == "ahead" else set())
        assert len(asked) == (lines if title == "ahead" else 0)
    arrays = product_arrays(shape, SCHEMES[name], count)
    outs = [
        out.view(np.uint32)
        for title in made
        for out in library.run(title, arrays, n=count).values()
    ]
    assert all(np.array_equal(out, outs[0]) for out in outs)


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_each_cache_line_is_asked_for_once(lanes: int) -> None:
    """However many registers it fills: 32 rows of a weight are two lines of f32."""
    group = product_group("lines", (128, 96), SCHEMES["q0f32"], MANY)
    knobs = MatmulKnobs(lanes, vectors=32 // lanes, items=1, ahead=1024)
    func = apply(group, schedule(group, Plan("skinny_matmul", knobs)))
    asked = [n.place for n in visit(func.body) if isinstance(n, Prefetch)]
    assert [p.buffer.name for p in asked] == ["layer_weight"] * 2


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("residual", [False, True])
def test_norm(
    scheduled: dict[str, tuple[Group, Schedule]], library: Library, width: int, residual: bool
) -> None:
    name = f"sum_norm_{width}" if residual else f"norm_{width}"
    rng = np.random.default_rng(width)
    arrays = {k: rng.standard_normal((65, width)).astype(np.float32) for k in ("x", "r")}
    arrays["layer_w"] = rng.standard_normal(width).astype(np.float32)
    group = scheduled[name][0]
    wanted = {b.name: arrays[b.name] for b in group.inputs}
    whole = library.run(name, wanted, n=65)
    expected = evaluate_group(group, wanted, {group.outputs[0].shape[0]: 65})
    assert set(whole) == set(expected)
    for k, array in expected.items():
        np.testing.assert_allclose(whole[k], array, rtol=1e-6, atol=1e-6)
    single = library.run(name, wanted, n=1)
    assert all(np.array_equal(single[k], whole[k][:1]) for k in whole)


@pytest.mark.parametrize("name", ["q4f16_1", "q3f16_1", "q0f16", "q4f16_1z"])
def test_take_reads_packed_rows(library: Library, name: str) -> None:
    rng = np.random.default_rng(0)
    full = rng.standard_normal((50, 72)).astype(np.float32)
    packed = quantize(full, KINDS[name])
    ids = np.array([0, 49, 7, 7, 31], np.int32)
    arrays = {f"layer_{k}": a for k, a in packed.items()} | {"ids": ids}
    (found,) = library.run(f"take_{name}", arrays, n=5).values()
    assert np.array_equal(found, dequantize(packed, KINDS[name], (50, 72))[ids])


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("gated_1", (1,)), ("gated_1", (4999,)), ("gated_2", (3, 100)),
        ("gated_3", (2, 3, 20)), ("gated_fixed", (37,)),
    ],
)  # fmt: skip
def test_elementwise(
    scheduled: dict[str, tuple[Group, Schedule]],
    library: Library,
    name: str,
    shape: tuple[int, ...],
) -> None:
    rng = np.random.default_rng(1)
    arrays = {k: rng.standard_normal(shape).astype(np.float32) for k in "ab"}
    group = scheduled[name][0]
    dims = {} if name == "gated_fixed" else {group.outputs[0].shape[0]: shape[0]}
    (expected,) = evaluate_group(group, arrays, dims).values()
    (found,) = library.run(name, arrays, n=shape[0]).values()
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-7)
    assert found.dtype == F32.numpy
