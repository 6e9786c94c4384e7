"""Which rule and which numbers a Group gets."""

from __future__ import annotations

from dataclasses import replace

import pytest
from schedule_groups import TILE, gated_group, norm_group, product_group, rows, weight

from sterna.base.dtype import F32
from sterna.base.errors import ScheduleError
from sterna.base.target import parse_target
from sterna.ir.loop import Alloc
from sterna.ir.rewrite import visit
from sterna.nn.trace import Trace
from sterna.passes.lower import lower
from sterna.passes.prepack import ROW_TILE, RowTile
from sterna.quantize.scheme import SCHEMES
from sterna.schedule.apply import apply
from sterna.schedule.choose import (
    Plan,
    alone_table,
    choose,
    group_table,
    plan_of,
    planned,
    schedule,
    streams_of,
    table,
)
from sterna.schedule.rules.product import MatmulKnobs
from sterna.schedule.steps import At, Inline, Parallel, Split, Vectorize

V3 = parse_target("cpu:x86-64-v3")
V4 = parse_target("cpu:x86-64-v4-vnni")
LEVELS = tuple(f"cpu:x86-64-{level}" for level in ("v2", "v3", "v4-vnni"))
TARGETS = (*LEVELS, "cpu:aarch64-linux", "cpu:wasm32")
Q4 = SCHEMES["q4f16_1"]


def test_few_rows_read_weights_once_and_many_share_a_panel() -> None:
    few = choose(product_group("few", (128, 64), Q4, 2), V3)
    some = choose(product_group("some", (128, 64), Q4, 32), V3)
    many = choose(product_group("many", (128, 64), Q4, 33), V3)
    assert Inline("t1.weight") in few
    assert Inline("t1.weight") in some
    assert few != some
    assert any(isinstance(s, At) and s.stage == "t1.weight" and s.scope == "scratch" for s in many)


def test_a_plan_tells_how_many_rows_of_x_cost_what_one_does() -> None:
    alone, groups = parse_target("webgpu:barrier-free"), parse_target("webgpu")
    many = product_group("many", (128, 64), Q4, 128)
    assert plan_of(many, alone).tile == alone_table(alone.table).matmul.tokens > 1
    assert plan_of(many, groups).tile == group_table(groups.table).tokens > 1
    assert plan_of(many, V3).tile == table(V3.table)[V3.lanes()].matmul.tokens > 1
    for target in (alone, groups, V3):
        assert plan_of(product_group("one", (128, 64), Q4, 1), target).tile == 1
        assert plan_of(norm_group("norm", 64, 128, residual=False), target).tile == 1


@pytest.mark.parametrize(("columns", "block"), [(64, 16), (128, 32), (4096, 32), (20, 16)])
def test_a_small_product_still_has_items_for_every_thread(columns: int, block: int) -> None:
    schedule = choose(product_group("small", (columns, 64), Q4, 1), V3)
    first = next(s for s in schedule if isinstance(s, Split))
    assert first.factor == block


@pytest.mark.parametrize("spec", TARGETS)
def test_every_cpu_has_a_row_and_its_vectors_are_as_wide_as_its_registers(spec: str) -> None:
    target = parse_target(spec)
    for most in (1, 512):
        group = product_group("any", (172, 172), Q4, most)
        schedule = choose(group, target)
        apply(group, schedule)
        lanes = {s.stage: s.factor for s in schedule if isinstance(s, Split) and "lane" in s.inner}
        assert set(lanes.values()) == {target.lanes()}
    knobs = table(target.table)[target.lanes()]
    assert 64 % knobs.matvec.rows == 0
    assert 64 % knobs.matvec.least_rows == 0
    assert 64 % (target.lanes() * knobs.matmul.vectors) == 0
    assert knobs.matmul.tokens * knobs.matmul.vectors < target.vector_registers
    assert ROW_TILE % (target.lanes() * streams_of(target)) == 0  # each has whole registers


def test_streams_are_the_tables_and_processors_with_groups_have_one() -> None:
    assert [streams_of(parse_target(spec)) for spec in LEVELS] == [1, 4, 2]
    for spec in ("webgpu", "webgpu:barrier-free", "cuda", "vulkan"):
        assert streams_of(parse_target(spec)) == 1


@pytest.mark.parametrize(("columns", "block"), [(1024, 64), (1056, 32), (512, 32), (96, 32)])
def test_tiles_are_narrower_where_items_are_few_or_columns_would_be_left(
    columns: int, block: int
) -> None:
    trace, n = Trace("tiles"), rows(512)
    x = trace.param("x", (n, 64), F32)
    y = trace.emit("matmul", x, weight(trace, (columns, 64), Q4))
    group = lower(trace.function(y), dict.fromkeys(trace.weights, RowTile(32))).group
    first = next(s for s in choose(group, V4) if isinstance(s, Split))
    assert first.factor == block


@pytest.mark.parametrize(
    ("scheme", "depth", "rule", "steps"),
    [
        ("q4f32_1", 1024, "matmul", 0),  # 64 columns of f32: 256 KiB, which are near
        ("q4f32_1", 2080, "matmul", 1024),
        ("q0f16", 2048, "matmul", 1024),
        ("q0f32", 1024, "skinny_matmul", 0),  # nothing to unpack
        ("q0f32", 2048, "matmul", 1024),
    ],
)
def test_a_panel_is_near_and_no_mere_copy(scheme: str, depth: int, rule: str, steps: int) -> None:
    group = product_group("deep", (1024, depth), SCHEMES[scheme], 512)
    plan = plan_of(group, V4)
    assert (plan.rule, plan.knobs.depth) == (rule, steps)
    blocks = [s.factor for s in choose(group, V4) if isinstance(s, Split) and s.outer == "k_block"]
    groups = [s.factor for s in choose(group, V4) if isinstance(s, Split) and s.outer == "g_block"]
    assert blocks + groups == {2080: [13], 2048: [1024]}.get(depth, [])
    assert apply(group, choose(group, V4))


def test_norms_and_elementwise_groups_run_rows_in_parallel() -> None:
    for group in (norm_group("norm", 64, 8, residual=True), gated_group("gated", (rows(8), 64))):
        schedule = choose(group, V3)
        assert sum(isinstance(s, Parallel) for s in schedule) == 1
        assert any(isinstance(s, Vectorize) for s in schedule)


def test_a_width_without_a_row_is_refused() -> None:
    wide = replace(V3, vector_bytes=128)
    with pytest.raises(ScheduleError, match="no row for 32 lanes"):
        choose(gated_group("gated", (rows(8), 64)), wide)


def test_blocks_that_leave_a_tile_are_refused() -> None:
    """The tiles of a weight are padded, what lies behind the last one is not there."""
    group = product_group("wide", (96, 64), Q4, 1)
    plan = plan_of(group, V3)
    wide = Plan(plan.rule, replace(plan.knobs, rows=2 * TILE, least_rows=2 * TILE))
    with pytest.raises(ScheduleError, match=f"128 rows do not divide tiles of {TILE}"):
        schedule(group, wide)
    skinny = Plan("skinny_matmul", MatmulKnobs(lanes=8, tokens=2, vectors=3))
    with pytest.raises(ScheduleError, match="24 rows do not divide"):
        schedule(group, skinny)


def test_a_panel_that_would_be_a_copy_is_none_whoever_chose_the_rule() -> None:
    """A tuner tries each rule, and what is asked for ahead is what is read."""
    group = product_group("plain", (64, 64), SCHEMES["q0f32"], 64)
    knobs = MatmulKnobs(lanes=16, tokens=2, vectors=1, ahead=4096, steps=4)
    func = planned(group, Plan("matmul", knobs))[1]
    assert not any(isinstance(n, Alloc) and n.buffer.scope == "scratch" for n in visit(func.body))
