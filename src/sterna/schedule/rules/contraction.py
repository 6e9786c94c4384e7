"""Schedules for a Group whose output's every element is a sum of its own, without a weight stage.

In: a Group whose stages are sums over [m, n] (and lanes of partial sums) and one output [m, n]:
products with the weights of chosen experts. Out: steps that cut n into blocks for threads, take
all rows in each, and make an element's sums where it is stored.
"""

from __future__ import annotations

from dataclasses import dataclass

from sterna.base.dtype import U32
from sterna.base.errors import ScheduleError
from sterna.ir.compute import Compute, Group
from sterna.ir.expr import const_value
from sterna.ir.rewrite import loads
from sterna.schedule.steps import At, Parallel, Reorder, Schedule, Split, Step, Vectorize


@dataclass(frozen=True, slots=True)
class ContractionKnobs:
    """Lanes of a register, and elements of a row that a work item takes at once."""

    lanes: int
    block: int = 16


@dataclass(frozen=True, slots=True)
class Contraction:
    """Partial sums by lane, if there are any; their total; the output."""

    partial: Compute | None
    total: Compute
    out: Compute


def contraction(group: Group) -> Contraction | None:
    """The sums that head a group, if it has this form."""
    sums, out = [c for c in group.computes if c.over], group.computes[-1]
    if not sums or len(group.outputs) != 1 or len(group.computes) != len(sums) + 1:
        return None
    total, partial = sums[-1], sums[0] if len(sums) == 2 else None
    sizes = [const_value(a.extent) for a in out.axes]
    alike = [const_value(a.extent) for a in total.axes] == sizes and len(sizes) == 2
    if not alike or len(sums) > 2 or (partial is not None and len(partial.axes) != 3):
        return None
    return Contraction(partial, total, out)


def contract(group: Group, knobs: ContractionKnobs) -> Schedule:
    """parallel blocks of n { rows { elements { partial sums side by side, then their sum } } }."""
    found = contraction(group)
    if found is None:
        raise ScheduleError(f"{group.name} has no sums of this form")
    out, total, partial = found.out, found.total, found.partial
    row, column = (a.name for a in out.axes)
    block, inside = f"{column}_block", f"{column}_inside"
    steps: list[Step] = [
        Split(out.name, column, block, inside, knobs.block),
        Reorder(out.name, (block, row, inside)),
        Parallel(out.name, block),
        At(total.name, out.name, inside, "register"),
    ]
    if partial is None:
        return tuple(steps)
    steps.append(At(partial.name, out.name, inside, "register"))
    lane, width = partial.axes[-1].name, const_value(partial.axes[-1].extent)
    steps.append(Reorder(partial.name, (partial.over[0].name, lane)))
    if width == knobs.lanes and not any(load.buffer.dtype == U32 for load in loads(partial.body)):
        steps.append(Vectorize(partial.name, lane))  # packed words are left to the C compiler
    return tuple(steps)
