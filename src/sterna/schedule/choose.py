"""The schedule of a Group for a target: a rule found by the Group's structure, numbers by a table.

In: a Group and a Target. Out: a Schedule. The rules know no target; the tables, one file a kind
of target and one row a vector width, hold every number that was measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import msgspec

from sterna.base.errors import ScheduleError
from sterna.base.target import Target
from sterna.ir.bounds import bounds
from sterna.ir.compute import Group
from sterna.schedule.rules.elementwise import ElementwiseKnobs, elementwise
from sterna.schedule.rules.matmul import (
    MatmulKnobs,
    MatvecKnobs,
    Product,
    matmul,
    matvec,
    product,
    skinny_matmul,
)
from sterna.schedule.rules.norm import NormKnobs, norm
from sterna.schedule.rules.work_groups import (
    GroupKnobs,
    elementwise_groups,
    matmul_groups,
    matvec_groups,
    norm_groups,
)
from sterna.schedule.steps import Schedule


@dataclass(frozen=True, slots=True)
class Knobs:
    """One row of a table.

    Up to `matvec_rows` rows of x a product is a matvec, up to `skinny_rows` a skinny matmul.
    `matmul` is for products of floats, `pairs` for those of pairs of integers.
    """

    matvec_rows: int
    skinny_rows: int
    matvec: MatvecKnobs
    skinny: MatmulKnobs
    matmul: MatmulKnobs
    pairs: MatmulKnobs
    norm: NormKnobs
    elementwise: ElementwiseKnobs


def choose(group: Group, target: Target) -> Schedule:
    """A schedule that runs every stage of `group`; ScheduleError when no rule knows its form."""
    if target.group_threads:
        return _in_groups(group, group_table(target.table))
    knobs = table(target.table).get(target.lanes())
    if knobs is None:
        raise ScheduleError(
            f"the schedule table {target.table!r} has no row for {target.lanes()} lanes"
        )
    found = product(group)
    if found is not None:
        if _most_rows(found) <= knobs.matvec_rows:
            return matvec(found, knobs.matvec)
        if _most_rows(found) <= knobs.skinny_rows:
            return skinny_matmul(found, knobs.skinny)
        return matmul(found, knobs.matmul if found.weight.out.dtype.is_float else knobs.pairs)
    if any(c.over for c in group.computes):
        return norm(group, knobs.norm)
    return elementwise(group, knobs.elementwise)


def _in_groups(group: Group, knobs: GroupKnobs) -> Schedule:
    found = product(group)
    if found is not None:
        few = _most_rows(found) <= knobs.few_rows
        return matvec_groups(found, knobs) if few else matmul_groups(found, knobs)
    if any(c.over for c in group.computes):
        return norm_groups(group, knobs)
    return elementwise_groups(group, knobs)


def _most_rows(found: Product) -> float:
    most = bounds(found.out.axes[0].extent)[1]
    return float("inf") if most is None else most


@cache
def table(name: str) -> dict[int, Knobs]:
    """The rows of a schedule table by f32 lanes of a register."""
    text = (files("sterna.schedule") / "tables" / f"{name}.json").read_text(encoding="utf-8")
    return msgspec.json.decode(text, type=dict[int, Knobs])


@cache
def group_table(name: str) -> GroupKnobs:
    """A schedule table of targets with work groups."""
    text = (files("sterna.schedule") / "tables" / f"{name}.json").read_text(encoding="utf-8")
    return msgspec.json.decode(text, type=GroupKnobs)
