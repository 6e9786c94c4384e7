"""Every step keeps the meaning of a Group, to the bit, or refuses with the reason."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_groups import Array, gated_group, norm_group, product_arrays, product_group, rows

from sterna.base.errors import ScheduleError
from sterna.ir.compute import Group
from sterna.ir.evaluate import evaluate_primfunc
from sterna.ir.expr import const_value
from sterna.ir.loop import Alloc, For, If
from sterna.ir.parser import parse_group
from sterna.ir.rewrite import visit
from sterna.quantize.scheme import SCHEMES
from sterna.schedule.apply import apply
from sterna.schedule.steps import (
    At,
    Fuse,
    Hold,
    Inline,
    Parallel,
    Reorder,
    Schedule,
    Skip,
    Split,
    Step,
    Unroll,
    Vectorize,
    Version,
    to_text,
)

N = 3  # rows
GATED = gated_group("gated", (rows(8), 5))
OUT = GATED.outputs[0].name
PRODUCT = product_group("product", (6, 5), SCHEMES["q0f32"], 8, epilogue=False)
Y = PRODUCT.outputs[0].name
WEIGHT, SUM = f"{Y}.weight", f"{Y}.acc"
NORM = norm_group("norm", 20, 8, residual=True)
ADDED, NORMED = (b.name for b in NORM.outputs)
NORM_STAGES = tuple(f"{NORMED}.{s}" for s in ("partial", "square", "scale"))

TWICE = parse_group("""\
@group
def twice(x: f32[32]):
    a[i:32]: f32 = x[i] + 1.0
    y[i:16]: f32 = a[i] + a[i * 2]
    return y""")

PLAIN_PRODUCT: Schedule = (Inline(WEIGHT), At(SUM, Y, "n", "local"))
PLAIN_NORM: Schedule = tuple(At(s, NORMED, "n", "local") for s in NORM_STAGES)


def run(group: Group, schedule: Schedule) -> list[Array]:
    """Outputs of the scheduled Group under the interpreter, which checks every bound."""
    arrays = product_arrays((6, 5), SCHEMES["q0f32"], N) if group is PRODUCT else {}
    rng, func = np.random.default_rng(3), apply(group, schedule)
    held: dict[str, Array] = {}
    dims = {d: N for p in func.params for d in p.shape if const_value(d) is None}
    for p in func.params:
        shape = tuple(dims.get(d) or int(const_value(d) or 0) for d in p.shape)
        fresh = rng.standard_normal(shape).astype(p.dtype.numpy)
        held[p.name] = arrays.get(p.name, fresh).copy()
    for out in group.outputs:
        held[out.name][...] = np.nan
    evaluate_primfunc(func, held, dims)
    return [held[out.name] for out in group.outputs]


PLAIN = {"gated": run(GATED, ()), "product": run(PRODUCT, PLAIN_PRODUCT),
         "norm": run(NORM, PLAIN_NORM)}  # fmt: skip


def assert_same(group: Group, *schedule: Step) -> None:
    found = run(group, schedule)
    for one, two in zip(found, PLAIN[group.name], strict=True):
        assert not np.isnan(one).any()
        assert np.array_equal(one.view(np.uint32), two.view(np.uint32))


@pytest.mark.parametrize(
    "steps",
    [
        (Split(OUT, "b", "bo", "bi", 5),),
        (Split(OUT, "b", "bo", "bi", 2),),
        (Split(OUT, "b", "bo", "bi", 16),),
        (Split(OUT, "a", "ao", "ai", 2), Split(OUT, "ai", "u", "v", 2)),
        (Fuse(OUT, "a", "b", "ab"),),
        (Fuse(OUT, "a", "b", "ab"), Split(OUT, "ab", "o", "i", 4), Parallel(OUT, "o")),
        (Reorder(OUT, ("b", "a")),),
        (Split(OUT, "b", "bo", "bi", 2), Reorder(OUT, ("bi", "a", "bo"))),
        (Parallel(OUT, "a"),),
        (Unroll(OUT, "b"),),
        (Vectorize(OUT, "b"),),
        (Split(OUT, "b", "bo", "bi", 4), Vectorize(OUT, "bi"), Parallel(OUT, "a")),
    ],
)
def test_loop_steps(steps: Schedule) -> None:
    assert_same(GATED, *steps)


@pytest.mark.parametrize("scope", ["register", "local", "scratch"])
@pytest.mark.parametrize("axis", ["m", "n"])
def test_a_sum_anywhere(scope: str, axis: str) -> None:
    assert_same(PRODUCT, Inline(WEIGHT), At(SUM, Y, axis, scope))


@pytest.mark.parametrize(
    "steps",
    [
        (At(WEIGHT, Y, "m", "scratch"), At(SUM, Y, "n")),
        (At(WEIGHT, SUM, "k", "local"), At(SUM, Y, "m")),
        (At(SUM, Y, "m"), At(WEIGHT, SUM, "n", "local")),
        (
            Split(Y, "n", "no", "ni", 4), Reorder(Y, ("no", "m", "ni")), Parallel(Y, "no"),
            At(WEIGHT, Y, "no", "scratch"), At(SUM, Y, "m"), Reorder(SUM, ("k", "n")),
            Vectorize(SUM, "n"),
        ),
        (
            Split(Y, "m", "mo", "mi", 2), Split(Y, "n", "no", "ni", 4),
            Reorder(Y, ("no", "mo", "mi", "ni")), At(WEIGHT, Y, "no", "scratch"),
            At(SUM, Y, "mo"), Reorder(SUM, ("k", "m", "n")), Split(SUM, "k", "ko", "ki", 2),
        ),
        (*PLAIN_PRODUCT, Split(SUM, "k", "ko", "ki", 3), Unroll(SUM, "ki")),
    ],
)  # fmt: skip
def test_stages_inside_loops(steps: Schedule) -> None:
    assert_same(PRODUCT, *steps)


@pytest.mark.parametrize("factor", [4, 16])
def test_a_turn_past_fused_loops_reads_nothing_past_the_tensor(factor: int) -> None:
    """The sums of turns that are too many are made, and not stored: of rows that are there."""
    steps = (
        Inline(WEIGHT), Fuse(Y, "m", "n", "f"), Split(Y, "f", "fo", "fi", factor),
        At(SUM, Y, "fi", "local"),
    )  # fmt: skip
    assert_same(PRODUCT, *steps)


@pytest.mark.parametrize("part", [1, 2, 3])
def test_parts_of_a_tile_that_lie_past_the_rows_are_skipped(part: int) -> None:
    """Three rows in a tile of eight: the same bits, and what nobody reads is not computed."""
    tile = (
        Inline(WEIGHT), Split(Y, "m", "mo", "mi", 8), Reorder(Y, ("mo", "mi", "n")),
        At(SUM, Y, "mo"), Split(SUM, "m", "part", "row", part),
        Reorder(SUM, ("k", "part", "row", "n")),
    )  # fmt: skip
    assert_same(PRODUCT, *tile, Skip(SUM, "part"))
    asked = [s for s in visit(apply(PRODUCT, (*tile, Skip(SUM, "part"))).body) if isinstance(s, If)]
    assert len(asked) > sum(isinstance(s, If) for s in visit(apply(PRODUCT, tile).body))


@pytest.mark.parametrize("tile", [2, 4, 8])
@pytest.mark.parametrize("scope", ["local", "shared"])
def test_the_first_row_of_a_tile_has_sums_of_its_own(scope: str, tile: int) -> None:
    """Three rows: a tile of two and one that has one, or a tile of which a part is there."""
    steps = (
        Inline(WEIGHT), Split(Y, "m", "mo", "mi", tile), Reorder(Y, ("mo", "mi", "n")),
        At(SUM, Y, "mo", scope), Reorder(SUM, ("n", "k", "m")), Version(SUM, "m"),
    )  # fmt: skip
    assert_same(PRODUCT, *steps)
    (chosen,) = (s for s in visit(apply(PRODUCT, steps).body) if isinstance(s, If) and s.orelse)
    assert chosen.orelse is not None
    both, alone = (
        sum(isinstance(s, For) for s in visit(part)) for part in (chosen.then, chosen.orelse)
    )
    assert alone < both


@pytest.mark.parametrize("scope", ["local", "scratch"])
def test_sums_are_held_while_a_part_of_them_is_added(scope: str) -> None:
    """k in blocks, rows in tiles of 2: the same bits, kept sums read and stored block by block."""
    steps = (
        Inline(WEIGHT), At(SUM, Y, "n" if scope == "local" else "m", scope),
        Split(SUM, "k", "ko", "ki", 1),
    )  # fmt: skip
    assert_same(PRODUCT, *steps, Hold(SUM, "ki"))
    tiled = (
        Inline(WEIGHT), Split(Y, "m", "mo", "mi", 4), At(SUM, Y, "mo", scope),
        Split(SUM, "m", "tile", "row", 2), Split(SUM, "k", "ko", "ki", 5),
        Reorder(SUM, ("ko", "tile", "ki", "row", "n")), Skip(SUM, "tile"), Vectorize(SUM, "n"),
    )  # fmt: skip
    held = (*tiled, Hold(SUM, "ki"))
    assert_same(PRODUCT, *held)
    registers = [s for s in visit(apply(PRODUCT, held).body) if isinstance(s, Alloc)]
    assert [s.buffer.scope for s in registers] == [scope, "register"]


def test_an_output_inside_its_readers_loop() -> None:
    assert_same(NORM, *PLAIN_NORM, At(ADDED, NORMED, "n", "global"), Parallel(NORMED, "n"))


def test_an_output_beside_a_split_reader_is_cut_to_its_size() -> None:
    split = Split(NORMED, "h", "ho", "hi", 16)
    assert_same(NORM, *PLAIN_NORM, At(ADDED, NORMED, "n", "global"), split)


@pytest.mark.parametrize(
    ("group", "steps", "reason"),
    [
        (GATED, (Unroll("other", "a"),), "no stage 'other'"),
        (GATED, (Unroll(OUT, "x"),), "no loop 'x'; it has a, b"),
        (GATED, (Unroll(OUT, "a"),), "is not a number"),
        (GATED, (Split(OUT, "b", "o", "i", 0),), "must be positive"),
        (GATED, (Fuse(OUT, "b", "a", "ab"),), "must be neighbours"),
        (GATED, (Reorder(OUT, ("a", "a")),), "named twice"),
        (GATED, (Parallel(OUT, "b"),), "only the outermost"),
        (GATED, (Split(OUT, "b", "bo", "bi", 2), Vectorize(OUT, "bo")), "only the innermost"),
        (GATED, (Parallel(OUT, "a"), Unroll(OUT, "a")), "parallel already"),
        (GATED, (Inline(OUT),), "cannot be inlined"),
        (PRODUCT, (Inline(WEIGHT), Inline(SUM)), "cannot be inlined"),
        (PRODUCT, (Inline(WEIGHT),), "must be placed with at"),
        (PRODUCT, (At(SUM, Y, "m"),), "inline it or place it"),
        (PRODUCT, (*PLAIN_PRODUCT, Vectorize(SUM, "k")), "no reduction is vectorized"),
        (PRODUCT, (*PLAIN_PRODUCT, Parallel(SUM, "m")), "only the outermost"),
        (PRODUCT, (*PLAIN_PRODUCT, Split(SUM, "k", "o", "i", 2), Reorder(SUM, ("i", "o"))),
         "order of a reduction"),
        (PRODUCT, (*PLAIN_PRODUCT, Fuse(SUM, "n", "k", "nk")), "of one kind"),
        (PRODUCT, (*PLAIN_PRODUCT, Skip(SUM, "k")), "no turn too many"),
        (PRODUCT, (*PLAIN_PRODUCT, Skip(SUM, "z")), "no loop 'z'"),
        (PRODUCT, (*PLAIN_PRODUCT, Version(SUM, "z")), "no loop 'z'"),
        (PRODUCT, (*PLAIN_PRODUCT, Version(SUM, "k")), "only a loop inside"),
        (PRODUCT, (*PLAIN_PRODUCT, Version(SUM, "m")), "only a loop inside"),
        (PRODUCT, (*PLAIN_PRODUCT, Hold(SUM, "z")), "no loop 'z'"),
        (PRODUCT, (*PLAIN_PRODUCT, Hold(SUM, "n")), "only a sum that is kept"),
        (PRODUCT, (*PLAIN_PRODUCT, Hold(Y, "m")), "only a sum that is kept"),
        (PRODUCT, (*PLAIN_PRODUCT, Split(SUM, "k", "o", "i", 3), Hold(SUM, "i")), "a guard"),
        (PRODUCT, (*PLAIN_PRODUCT, Hold(SUM, "k"), Split(SUM, "n", "o", "i", 4)), "a guard"),
        (PRODUCT, (Inline(WEIGHT), At(SUM, Y, "n", "global")), "only they"),
        (PRODUCT, (Inline(WEIGHT), At(SUM, Y, "z")), "no loop 'z'"),
        (PRODUCT, (At(SUM, WEIGHT, "k"), At(WEIGHT, Y, "m")), "not a later stage"),
        (PRODUCT, (At(WEIGHT, SUM, "k"), At(SUM, WEIGHT, "k")), "not a later stage"),
        (NORM, (*PLAIN_NORM, At(ADDED, NORMED, "n", "local")), "only they"),
        (NORM, (*PLAIN_NORM, At(ADDED, NORMED, "h", "global")), "reads it outside that loop"),
        (TWICE, (At("a", "y", "i"),), "need different regions"),
        (NORM, (*PLAIN_NORM, At(ADDED, NORM_STAGES[0], "n", "global")), "reads it outside"),
    ],
)  # fmt: skip
def test_refusals(group: Group, steps: Schedule, reason: str) -> None:
    with pytest.raises(ScheduleError, match=reason):
        apply(group, steps)


def test_an_output_that_readers_need_only_a_part_of_is_refused() -> None:
    """A split of the rows by 2 asks for rows past the last: not the tensor, no more and no less."""
    steps = (Split(NORMED, "n", "no", "ni", 2), At(ADDED, NORMED, "ni", "global"))
    with pytest.raises(ScheduleError, match="do not need all of axis"):
        apply(NORM, (*(At(s, NORMED, "ni", "local") for s in NORM_STAGES), *steps))


def test_a_schedule_prints_one_step_a_line() -> None:
    steps = (Split(OUT, "b", "bo", "bi", 4), Reorder(OUT, ("bi", "bo")), Parallel(OUT, "a"))
    assert to_text(steps).splitlines() == [
        f"split({OUT}, b, bo, bi, 4)", f"reorder({OUT}, bi bo)", f"parallel({OUT}, a)",
    ]  # fmt: skip


LOOPS = st.sampled_from(["a", "b", "c", "d", "e", "f"])
STEPS = st.one_of(
    st.builds(Split, st.just(OUT), LOOPS, LOOPS, LOOPS, st.integers(1, 6)),
    st.builds(Fuse, st.just(OUT), LOOPS, LOOPS, LOOPS),
    st.builds(Reorder, st.just(OUT), st.permutations(["a", "b", "c"]).map(lambda p: tuple(p[:2]))),
    st.builds(Unroll, st.just(OUT), LOOPS),
    st.builds(Vectorize, st.just(OUT), LOOPS),
    st.builds(Parallel, st.just(OUT), LOOPS),
)


@given(st.lists(STEPS, max_size=5))
@settings(derandomize=True, max_examples=150, deadline=None)
def test_any_steps_keep_the_meaning_or_refuse(steps: list[Step]) -> None:
    try:
        apply(GATED, tuple(steps))
    except ScheduleError:
        return
    assert_same(GATED, *steps)


@given(
    st.sampled_from(["m", "n", "mo", "no"]),
    st.permutations(["mo", "mi", "no", "ni"]),
    st.integers(1, 4),
    st.integers(1, 4),
)
@settings(derandomize=True, max_examples=60, deadline=None)
def test_any_tile_of_a_product_keeps_the_sum(
    axis: str, order: list[str], rows_: int, columns: int
) -> None:
    steps = (
        Split(Y, "m", "mo", "mi", rows_), Split(Y, "n", "no", "ni", columns),
        Reorder(Y, tuple(order)), Inline(WEIGHT), At(SUM, Y, axis, "local"),
    )  # fmt: skip
    try:
        apply(PRODUCT, steps)
    except ScheduleError:
        return
    assert_same(PRODUCT, *steps)
