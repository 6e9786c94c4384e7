"""Inputs read into registers as vectors: the same bits, whole vectors alone, or refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from schedule_groups import Array, product_arrays, product_group

from sterna.base.errors import ScheduleError
from sterna.base.target import parse_target
from sterna.codegen.vectors import Copy, vector_copy
from sterna.ir.compute import Group
from sterna.ir.evaluate import evaluate_primfunc
from sterna.ir.expr import Binary
from sterna.ir.loop import For, PrimFunc
from sterna.ir.rewrite import visit
from sterna.ir.simplify import Simplifier
from sterna.quantize.scheme import SCHEMES
from sterna.schedule.apply import apply
from sterna.schedule.choose import Plan, group_table, plan_of, planned
from sterna.schedule.steps import At, CacheRead, Inline, Schedule, Split

N = 3
TABLE = group_table("work_groups")


def matvec(scheme: str, shape: tuple[int, int], **knobs: int) -> tuple[Group, PrimFunc]:
    group = product_group("product", shape, SCHEMES[scheme], 8, epilogue=False)
    return group, planned(group, Plan("matvec_groups", replace(TABLE, **knobs)))[1]


def panels(scheme: str, shape: tuple[int, int], **knobs: int) -> tuple[Group, PrimFunc]:
    group = product_group("product", shape, SCHEMES[scheme], 64, epilogue=False)
    return group, planned(group, Plan("matmul_groups", replace(TABLE, **knobs)))[1]


def results(
    group: Group, func: PrimFunc, scheme: str, shape: tuple[int, int], rows: slice = slice(N)
) -> Array:
    """The product of some rows of x under the interpreter, which checks every bound."""
    arrays = product_arrays(shape, SCHEMES[scheme], N)
    arrays["x"] = arrays["x"][rows]
    out = np.full((len(arrays["x"]), shape[0]), np.nan, np.float32)
    held = {b.name: arrays[b.name] for b in group.inputs} | {group.outputs[0].name: out}
    evaluate_primfunc(func, held, dict.fromkeys(func.dims, len(out)))
    return out


def copies(func: PrimFunc) -> list[Copy]:
    kinds = {(p.dtype, lanes) for p in func.params for lanes in (2, 4)}
    found = (vector_copy(n, kinds, Simplifier()) for n in visit(func.body) if isinstance(n, For))
    return [copy for copy in found if copy is not None]


@pytest.mark.parametrize(
    ("scheme", "shape", "rows"),
    [
        ("q4f16_1", (12, 64), 8),  # half of the last block is there
        ("q8f16_1z", (6, 32), 8),  # and here a part of a vector
        ("q3f16_1", (8, 32), 8),
        ("q4f16_0", (8, 128), 4),
        ("q0f16", (4, 32), 8),
    ],
)
def test_no_bit_changes(scheme: str, shape: tuple[int, int], rows: int) -> None:
    knobs = {"rows": rows, "slices": 1, "chunk": 4}
    one, four = (results(*matvec(scheme, shape, lanes=n, **knobs), scheme, shape) for n in (1, 4))
    assert not np.isnan(one).any()
    assert np.array_equal(one.view(np.uint32), four.view(np.uint32))


@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("tile", [2, 8])
@pytest.mark.parametrize(
    ("scheme", "shape"),
    [("q4f16_1", (12, 64)), ("q3f16_1", (8, 32)), ("q4f16_0", (8, 64)), ("q0f16", (4, 36))],
)
def test_a_row_has_the_bits_that_it_has_alone(
    scheme: str, shape: tuple[int, int], tile: int, lanes: int
) -> None:
    """In a whole tile of x, in one of which a part is there, and where its threads have some."""
    made = matvec(scheme, shape, few_rows=tile, rows=8, slices=2, chunk=4, lanes=lanes)
    together = results(*made, scheme, shape)
    assert not np.isnan(together).any()
    for i, row in enumerate(together):
        alone = results(*made, scheme, shape, slice(i, i + 1))[0]
        assert np.array_equal(row.view(np.uint32), alone.view(np.uint32))


@pytest.mark.parametrize(
    ("scheme", "shape", "found"),
    [
        ("q4f16_1", (128, 64), {"x": 2, "layer_q_weight": 2}),
        ("q8f16_1", (128, 64), {"x": 2, "layer_q_weight": 2}),
        ("q4f16_0", (128, 256), {"x": 2, "layer_q_weight": 2}),
        ("q4f16_1", (100, 64), {"x": 2, "layer_q_weight": 2}),  # the last block has 36 rows
        ("q4f16_1", (101, 64), {}),  # and here no whole vectors
        ("q4f16_0", (128, 64), {}),  # half of its only group is there
        ("q3f16_1", (128, 64), {}),  # a code may lie in two words
        ("q0f16", (128, 64), {}),
    ],
)
def test_what_is_read_in_vectors(
    scheme: str, shape: tuple[int, int], found: dict[str, int]
) -> None:
    """For one row of x, and for more, which have other sums."""
    _, func = matvec(scheme, shape, lanes=4)
    names = [copy.source.name for copy in copies(func)]
    assert {name: names.count(name) for name in names} == found


@pytest.mark.parametrize(
    ("scheme", "shape", "knobs"),
    [
        ("q4f16_1", (12, 64), {"rows": 8, "each": 4}),  # a word of a row for each thread
        ("q4f16_1", (12, 64), {"rows": 8, "each": 16}),  # four words of a row, as four rows' words
        ("q8f16_1z", (6, 64), {"rows": 8}),  # pairs; half of the last vector of four is there
        ("q4f16_0", (12, 256), {"rows": 8}),
        ("q4f16_0", (8, 192), {"rows": 8}),  # half of its last group is there
        ("q3f16_1", (8, 64), {"rows": 8}),
        ("q0f16", (12, 64), {"rows": 8}),
        ("q0f32", (12, 64), {"rows": 8, "depth": 24}),  # a part of the last panel is there
    ],
)
def test_panels_change_no_bit(scheme: str, shape: tuple[int, int], knobs: dict[str, int]) -> None:
    one, four = (results(*panels(scheme, shape, lanes=n, **knobs), scheme, shape) for n in (1, 4))
    assert not np.isnan(one).any()
    assert np.array_equal(one.view(np.uint32), four.view(np.uint32))


@pytest.mark.parametrize(
    ("scheme", "shape", "knobs", "found"),
    [
        ("q4f16_1", (128, 64), {}, {"x": 4}),  # a thread has one word of a panel
        ("q4f16_1", (128, 64), {"each": 8}, {"x": 4, "layer_q_weight": 2}),
        ("q4f16_1", (128, 64), {"each": 16}, {"x": 4, "layer_q_weight": 4}),
        ("q4f16_1", (126, 64), {"each": 16}, {"x": 4, "layer_q_weight": 2}),
        ("q4f16_1", (101, 64), {"each": 16}, {"x": 4}),
        ("q8f16_1", (128, 64), {}, {"x": 4, "layer_q_weight": 2}),
        ("q4f16_0", (128, 256), {}, {"x": 4, "layer_q_weight": 4}),
        ("q4f16_0", (128, 192), {}, {}),  # half of its last group is there
        ("q0f16", (128, 64), {}, {"x": 4, "layer_weight": 4}),
        ("q0f16", (128, 64), {"depth": 24}, {}),  # a part of the last panel is there
        ("q3f16_1", (128, 64), {}, {}),  # several threads unpack a word
        ("q4f16_1", (128, 64), {"each": 2}, {}),  # and here
    ],
)
def test_what_panels_read_in_vectors(
    scheme: str, shape: tuple[int, int], knobs: dict[str, int], found: dict[str, int]
) -> None:
    _, func = panels(scheme, shape, **{"lanes": 4} | knobs)
    read = copies(func)
    assert len({copy.source for copy in read}) == len(read)
    assert {copy.source.name: copy.lanes for copy in read} == found


def clamps(func: PrimFunc) -> int:
    return sum(isinstance(n, Binary) and n.op == "min" for n in visit(func.body))


@pytest.mark.parametrize("lanes", [1, 4])
def test_blocks_of_whole_rows_are_not_clamped(lanes: int) -> None:
    """Blocks of rows and tiles of x are one loop, and still each is known to stay inside.

    But rows of a tile of x, of which there may be fewer: in the sums of one, and of all.
    """
    assert clamps(matvec("q4f16_1", (128, 1024), lanes=lanes)[1]) == 2
    assert clamps(matvec("q4f16_1", (100, 1024), lanes=lanes)[1]) > 2


def test_the_row_says_how_much_is_read_at_once() -> None:
    group = product_group("product", (128, 64), SCHEMES["q4f16_1"], 8, epilogue=False)
    target = parse_target("cuda")
    assert plan_of(group, target).knobs.lanes == 4
    assert plan_of(group, replace(target, load_bytes=8)).knobs.lanes == 2
    assert plan_of(group, replace(target, load_bytes=0)).knobs.lanes == 1


PRODUCT = product_group("product", (8, 16), SCHEMES["q0f32"], 8, epilogue=False)
Y = PRODUCT.outputs[0].name
WEIGHT, SUM = f"{Y}.weight", f"{Y}.acc"
PLACED: Schedule = (Inline(WEIGHT), At(SUM, Y, "n", "local"))
WIDE = product_group("wide", (8, 128), SCHEMES["q0f32"], 8, epilogue=False)
SHORT = product_group("short", (8, 18), SCHEMES["q0f32"], 8, epilogue=False)


def test_a_row_of_x_as_vectors() -> None:
    func = apply(PRODUCT, (*PLACED, CacheRead(SUM, "n", "x", 4)))
    plain = apply(PRODUCT, PLACED)
    assert [copy.source.name for copy in copies(func)] == ["x"]
    got, wanted = (results(PRODUCT, f, "q0f32", (8, 16)) for f in (func, plain))
    assert np.array_equal(got.view(np.uint32), wanted.view(np.uint32))


@pytest.mark.parametrize(
    ("group", "steps", "why"),
    [
        (PRODUCT, (CacheRead(SUM, "n", "y", 4),), "does not read an input 'y'"),
        (PRODUCT, (CacheRead(SUM, "k", "x", 4),), "whole vectors"),  # one element a turn
        (PRODUCT, (CacheRead(SUM, "j", "x", 4),), "no loop 'j'"),
        (WIDE, (CacheRead(SUM, "n", "x", 4),), "up to 64"),
        (SHORT, (Split(SUM, "k", "ko", "ki", 2), CacheRead(SUM, "ko", "x", 2)), ""),
        (SHORT, (CacheRead(SUM, "n", "x", 4),), "whole vectors"),
        (PRODUCT, (Split(SUM, "k", "ko", "ki", 12), CacheRead(SUM, "ko", "x", 4)), "may leave"),
        (PRODUCT, (Split(SUM, "k", "ko", "ki", 2), CacheRead(SUM, "ko", "x", 4)), "whole vectors"),
    ],
)
def test_what_is_no_row_of_vectors_is_refused(group: Group, steps: Schedule, why: str) -> None:
    if not why:
        apply(group, (*PLACED, *steps))
        return
    with pytest.raises(ScheduleError, match=why):
        apply(group, (*PLACED, *steps))
