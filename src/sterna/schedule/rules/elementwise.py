"""Schedules for a Group without reductions: every element for itself.

In: a Group whose stages are outputs of any rank. Out: steps that run the first axis in parallel
and the last in vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from sterna.ir.compute import Compute, Group
from sterna.ir.expr import const_value
from sterna.ir.rewrite import free_vars, loads, substitute
from sterna.ir.simplify import simplify
from sterna.schedule.steps import Inline, Parallel, Schedule, Split, Step, Vectorize


@dataclass(frozen=True, slots=True)
class ElementwiseKnobs:
    """Elements of a vector loop, and how many of them a work item of a flat tensor has."""

    SPACE: ClassVar[Mapping[str, tuple[int, ...]]] = {
        "lanes": (4, 8, 16, 32),
        "flat": (1024, 4096, 16384),
    }

    lanes: int
    flat: int = 4096


def elementwise(group: Group, knobs: ElementwiseKnobs) -> Schedule:
    """parallel rows { vectors along the last axis }."""
    internal = [c for c in group.computes if c.out not in group.outputs]
    steps: list[Step] = [Inline(c.name) for c in internal]
    for stage in group.computes:
        if stage.out in group.outputs:
            steps += _stage(stage, knobs)
    return tuple(steps)


def _stage(stage: Compute, knobs: ElementwiseKnobs) -> list[Step]:
    if not stage.axes:
        return []
    name, last = stage.name, stage.axes[-1].name
    outer, inner, lane = stage.axes[0].name, last, f"{last}_lane"
    steps: list[Step] = []
    if len(stage.axes) == 1:
        outer, inner = f"{last}_block", f"{last}_inside"
        steps.append(Split(name, last, outer, inner, knobs.flat))
    steps.append(Parallel(name, outer))
    if _vectorizes(stage):
        steps += [Split(name, inner, f"{last}_vector", lane, knobs.lanes), Vectorize(name, lane)]
    return steps


def _vectorizes(stage: Compute) -> bool:
    """Whether each read moves along by one, or not at all, with the last axis.

    Packed codes are read several times from one word: that loop is left to the C compiler.
    """
    last = stage.axes[-1].var
    return all(
        last not in free_vars(i) or const_value(simplify(substitute(i, {last: last + 1}) - i)) == 1
        for load in loads(stage.body)
        for i in load.index
    )
