"""Reductions that begin at a value: the same bits under every schedule, or a reason."""

from __future__ import annotations

import numpy as np
import pytest
from schedule_groups import Array

from sterna.base.errors import ScheduleError
from sterna.ir.compute import Group
from sterna.ir.evaluate import evaluate_group, evaluate_primfunc
from sterna.ir.parser import parse_group
from sterna.schedule.apply import apply
from sterna.schedule.steps import (
    At,
    Hold,
    Inline,
    Parallel,
    Reorder,
    Schedule,
    Split,
    Step,
    Tensorize,
    Thread,
    Unroll,
    Vectorize,
    Version,
)

N = 5  # rows
GROUPS = {
    combine: parse_group(f"""\
@group
def product(x: f32[n, 12], w: f32[12, 8], b: f32[n, 8], *, n: dim(1, 64)):
    first[m:n, j:8]: f32 = b[m, j] + 1.0
    acc[m:n, j:8]: f32 = {combine}((x[m, k] * w[k, j] for k in range(12)), start=first[m, j] * 2.0)
    y[m:n, j:8]: f32 = acc[m, j] / 3.0
    return y""")
    for combine in ("sum", "max")
}
RNG = np.random.default_rng(1)
ARRAYS: dict[str, Array] = {
    name: RNG.standard_normal(shape, np.float32)
    for name, shape in (("x", (N, 12)), ("w", (12, 8)), ("b", (N, 8)))
}


def run(group: Group, *schedule: Step) -> Array:
    """The output under the interpreter, which checks every bound."""
    func = apply(group, schedule)
    held = {p.name: ARRAYS.get(p.name, np.full((N, 8), np.nan, np.float32)) for p in func.params}
    evaluate_primfunc(func, held, dict.fromkeys(func.dims, N))
    return held["y"]


PLAIN: Schedule = (Inline("first"), At("acc", "y", "m", "local"))
KEPT: Schedule = (At("first", "y", "m", "local"), At("acc", "y", "m", "register"))
TILE: Schedule = (
    Split("y", "m", "mo", "mi", 2),
    Split("y", "j", "jo", "ji", 4),
    Reorder("y", ("mo", "jo", "mi", "ji")),
    At("acc", "y", "jo", "register"),
)


@pytest.mark.parametrize("combine", GROUPS)
def test_a_plain_schedule_is_what_the_group_means(combine: str) -> None:
    group = GROUPS[combine]
    dims = {group.inputs[0].shape[0]: N}
    (meant,) = evaluate_group(group, ARRAYS, dims).values()  # type: ignore[arg-type]
    assert np.allclose(run(group, *PLAIN), meant, rtol=1e-5, atol=1e-6)
    without = ARRAYS["x"] @ ARRAYS["w"] / 3
    assert not np.allclose(meant, without, atol=0.1)


@pytest.mark.parametrize("combine", GROUPS)
@pytest.mark.parametrize(
    "steps",
    [
        KEPT,
        (*KEPT, Reorder("acc", ("k", "j")), Vectorize("acc", "j")),
        (*KEPT, Split("acc", "k", "ko", "ki", 4), Unroll("acc", "ki")),
        (Inline("first"), Split("y", "m", "mo", "mi", 2), Parallel("y", "mo"),
         At("acc", "y", "mi", "local")),
        (Inline("first"), *TILE),
        (Inline("first"), *TILE, Vectorize("y", "ji")),
        (Inline("first"), *TILE, Reorder("acc", ("k", "m", "j")), Vectorize("acc", "j")),
        (Inline("first"), *TILE, Reorder("acc", ("k", "m", "j")), Version("acc", "m")),
        (*TILE, At("first", "acc", "m", "local")),
        (*TILE, At("first", "acc", "j", "register")),
        (*TILE, At("first", "y", "mo", "local")),
        (*TILE, At("first", "y", "jo", "local"), Split("acc", "j", "a", "b", 3)),
        (Inline("first"), At("acc", "y", "m", "shared")),
        (At("first", "y", "m", "shared"), At("acc", "y", "m", "shared"),
         Thread("acc", "j"), Thread("first", "j"), Thread("y", "j")),
        (Inline("first"), Split("y", "m", "mo", "mi", 2), At("acc", "y", "mo", "shared")),
        (Inline("first"), At("acc", "y", "m", "local"), Split("acc", "k", "ko", "ki", 4),
         Reorder("acc", ("ko", "j", "ki")), Hold("acc", "ki")),
    ],
)  # fmt: skip
def test_every_schedule_has_the_bits_of_the_plain_one(combine: str, steps: Schedule) -> None:
    group = GROUPS[combine]
    found, plain = run(group, *steps), run(group, *PLAIN)
    assert not np.isnan(found).any()
    assert np.array_equal(found.view(np.uint32), plain.view(np.uint32))


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ((*KEPT[1:], Reorder("acc", ("k", "j")), At("first", "acc", "j", "local")),
         "stage 'acc' begins outside that loop"),
        ((*KEPT[1:], At("first", "acc", "k", "local")), "stage 'acc' begins outside that loop"),
        ((At("first", "y", "j", "local"), At("acc", "y", "m", "local")),
         "stage 'acc' reads it outside that loop"),
        ((At("acc", "y", "m", "local"),), "stage 'first' is not an output"),
        ((*KEPT, Tensorize("acc", "k")), "a matrix unit's sums have none"),
        ((*KEPT, Inline("acc")), "'acc' is a reduction or an output: cannot be inlined"),
    ],
)  # fmt: skip
def test_what_a_start_does_not_allow_is_refused(steps: Schedule, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        apply(GROUPS["sum"], steps)
