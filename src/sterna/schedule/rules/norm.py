"""Schedules for a Group of reductions over rows, such as a norm.

In: a Group whose last stage is an output [rows, width] and whose other stages are computed once
a row: reductions, what follows from them, and outputs that they read. Out: steps that place all
of them inside the loop over rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from sterna.base.errors import ScheduleError
from sterna.ir.compute import Compute, Group
from sterna.ir.expr import Binary, const_value
from sterna.ir.rewrite import free_vars, loads
from sterna.schedule.steps import At, Parallel, Reorder, Schedule, Split, Step, Vectorize


@dataclass(frozen=True, slots=True)
class NormKnobs:
    """Elements of a vector loop over the width; partial sums are as wide as they are defined."""

    SPACE: ClassVar[Mapping[str, tuple[int, ...]]] = {"lanes": (4, 8, 16, 32)}

    lanes: int


def norm(group: Group, knobs: NormKnobs) -> Schedule:
    """parallel rows { each stage, a row of it; the last stage in vectors along the width }."""
    last = group.computes[-1]
    if last.out not in group.outputs or last.over:
        raise ScheduleError(f"{group.name}: its last stage {last.name!r} must be an output")
    row = last.axes[0].name
    steps: list[Step] = [*_vectors(last, knobs.lanes), Parallel(last.name, row)]
    for stage in group.computes[:-1]:
        scope = "global" if stage.out in group.outputs else "register"
        steps.append(At(stage.name, last.name, row, scope))
        steps += _partial_sums(stage, knobs) if stage.over else _vectors(stage, knobs.lanes)
    return tuple(steps)


def _vectors(stage: Compute, lanes: int) -> list[Step]:
    """Vectors along the last axis of a stage with more axes than the rows."""
    if len(stage.axes) < 2:
        return []
    h, width = stage.axes[-1].name, const_value(stage.axes[-1].extent)
    while width is not None and lanes > width:
        lanes //= 2
    return [
        Split(stage.name, h, f"{h}_vector", f"{h}_lane", lanes),
        Vectorize(stage.name, f"{h}_lane"),
    ]


def _partial_sums(stage: Compute, knobs: NormKnobs) -> list[Step]:
    """Sums side by side in one vector, where they just fill one, or many, column by column."""
    sums = const_value(stage.axes[-1].extent) if len(stage.axes) > 1 else None
    if sums is not None and sums > knobs.lanes and _by_columns(stage):
        c, over = stage.axes[-1].name, tuple(axis.name for axis in stage.over)
        return [
            Split(stage.name, c, f"{c}_vector", f"{c}_lane", knobs.lanes),
            Reorder(stage.name, (f"{c}_vector", *over, f"{c}_lane")),
            Vectorize(stage.name, f"{c}_lane"),
        ]
    if sums is None or sums > knobs.lanes or sums != 1 << (int(sums).bit_length() - 1):
        return []
    lane = stage.axes[-1].name
    over = tuple(axis.name for axis in stage.over)
    return [Reorder(stage.name, (*over, lane)), Vectorize(stage.name, lane)]


def _by_columns(stage: Compute) -> bool:
    """Whether neighbouring sums are of products with neighbours in memory."""
    if not (isinstance(stage.body, Binary) and stage.body.op == "*"):
        return False
    column = stage.axes[-1].var
    reading = [load for load in loads(stage.body) if column in free_vars(load)]
    return bool(reading) and all(load.index[-1] is column for load in reading)
