"""A stage made a turn ahead of its readers: the same bits, one barrier a turn, or refused."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_groups import Array, norm_group, product_arrays, product_group

from sterna.base.dtype import U32
from sterna.base.errors import ScheduleError
from sterna.base.target import parse_target
from sterna.codegen.simt import group_kernel
from sterna.ir.compute import Group
from sterna.ir.evaluate import evaluate_primfunc
from sterna.ir.expr import Load, const_value
from sterna.ir.loop import For, ForKind, PrimFunc, Stmt, Sync
from sterna.ir.rewrite import visit
from sterna.quantize.scheme import SCHEMES
from sterna.schedule.apply import apply
from sterna.schedule.choose import Plan, _in_groups, group_table, planned
from sterna.schedule.steps import At, DoubleBuffer, Inline, Parallel, Schedule, Thread

N = 3
SHAPE = (6, 64)
KNOBS = replace(group_table("work_groups"), rows=8, tokens=4, each=2, depth=8)


def tiled(panels: int, scheme: str, shape: tuple[int, int], **knobs: int) -> tuple[Group, PrimFunc]:
    group = product_group("product", shape, SCHEMES[scheme], 64, epilogue=False)
    plan = Plan("matmul_groups", replace(KNOBS, panels=panels, **knobs))
    return group, planned(group, plan)[1]


def results(group: Group, func: PrimFunc, scheme: str, shape: tuple[int, int]) -> Array:
    """The product under the interpreter, which checks every bound."""
    arrays = product_arrays(shape, SCHEMES[scheme], N)
    arrays = {b.name: arrays[b.name] for b in group.inputs}
    out = np.full((N, shape[0]), np.nan, np.float32)
    evaluate_primfunc(func, {**arrays, group.outputs[0].name: out}, dict.fromkeys(func.dims, N))
    return out


@settings(max_examples=8, deadline=None)
@given(
    scheme=st.sampled_from(["q4f16_1", "q8f16_1z", "q0f32", "q0f16"]),
    rows=st.integers(1, 20),
    groups=st.integers(1, 3),
    knobs=st.fixed_dictionaries(
        {
            "rows": st.sampled_from([4, 8, 64]),
            "depth": st.sampled_from([3, 8, 32, 50]),
            "tokens": st.sampled_from([4, 8]),
            "each": st.sampled_from([1, 2, 4]),
            "lanes": st.sampled_from([1, 2, 4]),
        }
    ),
)
def test_no_bit_changes(scheme: str, rows: int, groups: int, knobs: dict[str, int]) -> None:
    """At widths and depths that no tile divides, and with one panel alone."""
    shape = (rows, 32 * groups)
    one, two = (results(*tiled(panels, scheme, shape, **knobs), scheme, shape) for panels in (1, 2))
    assert not np.isnan(one).any()
    assert np.array_equal(one.view(np.uint32), two.view(np.uint32))


def syncs_in_loops(stmt: Stmt) -> list[int]:
    """Of each sequential loop, how often threads meet in a turn."""
    loops = [n for n in visit(stmt) if isinstance(n, For) and n.kind is ForKind.SERIAL]
    found = [sum(isinstance(n, Sync) for n in visit(loop.body)) for loop in loops]
    return [count for count in found if count]


@pytest.mark.parametrize("scheme", ["q4f16_1", "q0f16"])
@pytest.mark.parametrize(("panels", "syncs"), [(1, 2), (2, 1)])
@pytest.mark.parametrize("lanes", [1, 4])
def test_threads_meet_once_a_panel(scheme: str, panels: int, syncs: int, lanes: int) -> None:
    _, func = tiled(panels, scheme, (8, 256), lanes=lanes)
    kernel = group_kernel(func.body)
    assert syncs_in_loops(kernel.body) == [syncs]
    (shared,) = kernel.shared
    assert shared.shape[0].value == (2 if panels == 2 else 8 if scheme == "q0f16" else 32)
    read = sorted(b.name for b in kernel.private if b.name.endswith("_read"))
    weight = "layer_q_weight_read" if scheme == "q4f16_1" else "layer_weight_read"
    assert set(read) == (set() if lanes == 1 else {weight, "x_read"})
    assert len(kernel.private) - len(read) == 1 + (scheme == "q4f16_1") + (panels == 2)


def test_what_is_stored_is_not_read_again() -> None:
    """The words of a panel: of the first, and of the next in each turn."""
    _, func = tiled(2, "q4f16_1", (8, 256), lanes=4)
    words = [n for n in visit(func.body) if isinstance(n, Load) and n.buffer.dtype == U32]
    assert len([n for n in words if n.buffer.scope == "global"]) == 2


def test_one_panel_where_two_have_no_room() -> None:
    target = parse_target("webgpu")
    fits = product_group("fits", (64, 256), SCHEMES["q4f16_1"], 64)
    two = replace(group_table("work_groups"), panels=2)
    assert _in_groups(fits, two, target).knobs.panels == 2
    small = replace(target, shared_bytes=target.shared_bytes - 1)
    assert _in_groups(fits, two, small).knobs.panels == 1


def test_fewer_rows_where_one_panel_has_no_room() -> None:
    target = parse_target("webgpu")
    deep = product_group("deep", (64, 256), SCHEMES["q4f16_0"], 64)
    knobs = group_table("work_groups")
    plan = _in_groups(deep, knobs, target)
    assert plan.knobs.rows == 32
    _, func = planned(deep, plan)
    (shared,) = group_kernel(func.body).shared
    assert prod(int(const_value(size) or 0) for size in shared.shape) * 4 == target.shared_bytes
    assert _in_groups(deep, knobs, parse_target("cuda")).knobs.rows == knobs.rows


NORM = norm_group("norm", 20, 8, residual=False)
LAST, ROW = NORM.computes[-1].name, NORM.computes[-1].axes[0].name
PRODUCT = product_group("product", (6, 8), SCHEMES["q0f32"], 8, epilogue=False)
Y = PRODUCT.outputs[0].name
WEIGHT, SUM = f"{Y}.weight", f"{Y}.acc"


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        ((DoubleBuffer(Y), Inline(WEIGHT), At(SUM, Y, "n")), "only what is no sum"),
        ((At(WEIGHT, SUM, "k", "local"), DoubleBuffer(WEIGHT), At(SUM, Y, "m")), "shared memory"),
        ((Inline(WEIGHT), At(SUM, Y, "n", "shared"), DoubleBuffer(SUM)), "no sum"),
        (
            (Parallel(Y, "m"), At(WEIGHT, Y, "m", "shared"), DoubleBuffer(WEIGHT), At(SUM, Y, "m")),
            "no turn of 'm' is next",
        ),
        (
            (Thread(Y, "n"), At(WEIGHT, Y, "n", "shared"), DoubleBuffer(WEIGHT), At(SUM, Y, "n")),
            "no turn of 'n' is next",
        ),
    ],
)
def test_what_cannot_be_made_ahead_is_refused(steps: Schedule, why: str) -> None:
    with pytest.raises(ScheduleError, match=why):
        apply(PRODUCT, steps)


def test_what_reads_this_turns_stage_is_refused() -> None:
    """Its next turn would read what is not there yet."""
    partial, square, scale = (f"{LAST}.{s}" for s in ("partial", "square", "scale"))
    steps = (
        *(At(stage, LAST, ROW, "shared") for stage in (partial, square, scale)),
        DoubleBuffer(scale),
    )
    with pytest.raises(ScheduleError, match=r"made a turn ahead of .*, which it reads"):
        apply(NORM, steps)
