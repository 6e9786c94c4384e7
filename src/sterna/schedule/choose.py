"""The schedule of a Group for a target: a rule found by the Group's structure, numbers by a table.

In: a Group and a Target. Out: a Plan, which is a rule with its numbers, and the Schedule that the
rule makes of it. The rules know no target; the tables, one file a kind of target and one row a
vector width, hold every number that was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

import msgspec

from sterna.base.errors import ScheduleError
from sterna.base.target import MatrixUnit, Target
from sterna.ir.bounds import bounds
from sterna.ir.compute import Group
from sterna.ir.expr import const_value
from sterna.ir.loop import PrimFunc
from sterna.schedule.apply import apply
from sterna.schedule.pairs import in_pairs
from sterna.schedule.rules.contraction import ContractionKnobs, contract, contraction
from sterna.schedule.rules.elementwise import ElementwiseKnobs, elementwise
from sterna.schedule.rules.matmul import (
    block_bytes,
    in_place,
    matmul,
    matmul_tiles,
    matvec,
    skinny_matmul,
    skinny_tiles,
)
from sterna.schedule.rules.matrix_unit import UnitKnobs, matmul_units
from sterna.schedule.rules.norm import NormKnobs, norm
from sterna.schedule.rules.product import (
    MatmulKnobs,
    MatvecKnobs,
    Product,
    most_rows,
    of_bytes,
    product,
)
from sterna.schedule.rules.unit_rows import FewRowsKnobs, few_rows_units
from sterna.schedule.rules.work_groups import (
    FLAT_SPACE,
    MATMUL_SPACE,
    MATVEC_SPACE,
    GroupKnobs,
    contraction_groups,
    elementwise_groups,
    matmul_groups,
    matvec_groups,
    norm_groups,
    sums_bytes,
)
from sterna.schedule.rules.work_groups import panel_bytes as group_panel_bytes
from sterna.schedule.signed import signed
from sterna.schedule.steps import Schedule
from sterna.schedule.whole import by_unit, has_digits, in_digits, with_kept

_WORD = 4  # bytes of what packed weights consist of


@dataclass(frozen=True, slots=True)
class Knobs:
    """One row of a table.

    Up to `matvec_rows` rows of x a product is a matvec, up to `skinny_rows` a skinny matmul; for
    more there is a panel, or the weight as it lies, cut where that would be larger than
    `panel_bytes` (0: any may be).
    `matmul` is for products of floats, `pairs` for those of pairs of integers, `bytes` for those
    of four bytes (None: as pairs). Packed words of a tile of rows lie in `streams` places of
    memory, which are read side by side. A row of attention has `attention_vectors` vectors of
    16 lanes in registers, where many rows are computed.
    """

    matvec_rows: int
    skinny_rows: int
    panel_bytes: int
    matvec: MatvecKnobs
    skinny: MatmulKnobs
    matmul: MatmulKnobs
    pairs: MatmulKnobs
    norm: NormKnobs
    elementwise: ElementwiseKnobs
    bytes: MatmulKnobs | None = None
    streams: int = 1
    attention_vectors: int = 1


@dataclass(frozen=True, slots=True)
class AloneKnobs:
    """The table of targets whose threads work alone: none waits for another.

    Up to `few_rows` rows of x a product is a matvec. `threads` is of a group without sums.
    """

    few_rows: int
    threads: int
    matvec: MatvecKnobs
    matmul: MatmulKnobs
    norm: NormKnobs
    contraction: ContractionKnobs


@dataclass(frozen=True, slots=True)
class FloatUnitKnobs:
    """How products whose sums are the unit's are made, for few rows of x and for many.

    `many` is of units that tell where elements lie, `kept` of opaque ones.
    """

    few: FewRowsKnobs
    many: UnitKnobs | None = None
    kept: FewRowsKnobs | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """How steps are written for some form of Group: `write(group, knobs)`, for knobs of a type.

    `space` has the values worth trying of each knob that matters to this rule. `form` rewrites
    the Group before, to one of the same bits. `tile` tells of knobs how many rows of x a product
    takes together.
    """

    knobs: type
    write: Callable[[Group, Any], Schedule]
    space: Mapping[str, tuple[int, ...]]
    form: Callable[[Group], Group] | None = None
    tile: Callable[[Any], int] = lambda knobs: 1


@dataclass(frozen=True, slots=True)
class Plan:
    """A row of RULES and its numbers: what is chosen for a Group, tuned and stored."""

    rule: str
    knobs: Any

    @property
    def tile(self) -> int:
        """Rows of x that are computed together: fewer cost what so many do."""
        return RULES[self.rule].tile(self.knobs)


def choose(group: Group, target: Target) -> Schedule:
    """The schedule of rule and table; ScheduleError when no rule knows the Group's form."""
    return schedule(group, plan_of(group, target))


def planned(group: Group, plan: Plan) -> tuple[Schedule, PrimFunc]:
    """The steps of a plan and the loops that they make; ScheduleError where it does not fit."""
    formed = _formed(group, plan)
    steps = RULES[plan.rule].write(formed, plan.knobs)
    return steps, apply(formed, steps)


def plan_of(group: Group, target: Target) -> Plan:
    """The plan of rule and table; ScheduleError where there is none."""
    row = row_of(target)
    if isinstance(row, AloneKnobs):
        return _alone(group, row)
    if isinstance(row, GroupKnobs):
        return _in_groups(group, row, target)
    return _in_vectors(group, row, target)


def row_of(target: Target) -> Knobs | AloneKnobs | GroupKnobs:
    """The row of a target's table; ScheduleError where it has none for such registers."""
    if target.group_threads and not target.barriers:
        return alone_table(target.table)
    if target.group_threads:
        return group_table(target.table)
    row = table(target.table).get(target.lanes())
    if row is None:
        raise ScheduleError(
            f"the schedule table {target.table!r} has no row for {target.lanes()} lanes"
        )
    return row


def streams_of(target: Target) -> int:
    """In how many places of memory the packed words of a tile of rows lie."""
    row = row_of(target)
    return row.streams if isinstance(row, Knobs) else 1


def attention_vectors(target: Target) -> int:
    """Vectors that a row of attention has in registers: see kernels/attention_spec."""
    row = row_of(target)
    return row.attention_vectors if isinstance(row, Knobs) else 1


def _in_vectors(group: Group, knobs: Knobs, target: Target) -> Plan:
    found = product(group)
    if found is not None:
        plan = _of_rows(found, knobs)
        if target.byte_tiles and plan.rule != "matvec" and of_bytes(found):
            return replace(plan, rule=f"{plan.rule}_tiles")
        paired = target.byte_pairs and in_pairs(group) is not group
        return replace(plan, rule=f"{plan.rule}_pairs") if paired else plan
    if contraction(group) is not None:
        return Plan("contraction", ContractionKnobs(knobs.norm.lanes))
    if any(c.over for c in group.computes):
        return Plan("norm", knobs.norm)
    return Plan("elementwise", knobs.elementwise)


def _of_rows(found: Product, knobs: Knobs) -> Plan:
    """By how many rows there can be; many have a panel, if there is something to unpack.

    It is as deep as stays near.
    """
    if most_rows(found) <= knobs.matvec_rows:
        return Plan("matvec", knobs.matvec)
    if most_rows(found) <= knobs.skinny_rows:
        return Plan("skinny_matmul", knobs.skinny)
    tile = _tile_of(found, knobs)
    size = block_bytes(found, tile)
    if 0 < knobs.panel_bytes < size:
        deep = int(const_value(found.weight.axes[0].extent) or 0)
        return Plan("matmul", replace(tile, depth=deep * knobs.panel_bytes // size))
    return Plan("skinny_matmul" if in_place(found, tile) else "matmul", tile)


def _tile_of(found: Product, knobs: Knobs) -> MatmulKnobs:
    """The tile of many rows, by what is multiplied."""
    if found.weight.out.dtype.is_float:
        return knobs.matmul
    return knobs.bytes if knobs.bytes is not None and of_bytes(found) else knobs.pairs


def schedule(group: Group, plan: Plan) -> Schedule:
    """The steps of a plan; ScheduleError where its rule does not fit the Group."""
    return RULES[plan.rule].write(_formed(group, plan), plan.knobs)


def _formed(group: Group, plan: Plan) -> Group:
    """The Group as the plan's rule takes it."""
    form = RULES[plan.rule].form
    return group if form is None else form(group)


def _in_groups(group: Group, knobs: GroupKnobs, target: Target) -> Plan:
    unit = target.unit
    if by_unit(group):
        return _by_unit(group, unit)
    found = product(group)
    if found is not None:
        few = most_rows(found) <= knobs.few_rows
        if not (few or unit is None or unit.opaque) and has_digits(group, unit.depth):
            return Plan("matmul_units", replace(unit_table()[unit.shape], unit=unit))
        knobs = replace(knobs, lanes=max(1, target.load_bytes // _WORD))
        if few:
            while sums_bytes(found, knobs) > target.shared_bytes and knobs.chunk > 1:
                knobs = replace(knobs, chunk=knobs.chunk // 2)
            return Plan("matvec_groups", knobs)
        if knobs.panels * group_panel_bytes(found, knobs) > target.shared_bytes:
            knobs = replace(knobs, panels=1)
        while group_panel_bytes(found, knobs) > target.shared_bytes and knobs.rows > knobs.lanes:
            knobs = replace(knobs, rows=knobs.rows // 2)
        return Plan("matmul_groups", knobs)
    if contraction(group) is not None:
        return Plan("contraction_groups", knobs)
    reduces = any(c.over for c in group.computes)
    return Plan("norm_groups" if reduces else "elementwise_groups", knobs)


def _by_unit(group: Group, unit: MatrixUnit | None) -> Plan:
    """The unit for any number of rows: with fewer it would add in another order."""
    if unit is None:
        raise ScheduleError(f"{group.name} is for a matrix unit, and the target has none")
    knobs = float_unit_table().get(unit.shape)
    if knobs is None:
        raise ScheduleError(f"{group.name}: the table float_units has no row for {unit.shape}")
    most = bounds(group.outputs[0].shape[0])[1]
    if most is not None and most <= knobs.few.rows:
        return Plan("few_rows_units", replace(knobs.few, unit=unit))
    if knobs.kept is not None:
        return Plan("few_rows_units", replace(knobs.kept, unit=unit))
    assert knobs.many is not None, "each row of the table has one of them"
    return Plan("float_units", replace(knobs.many, unit=unit))


def _alone(group: Group, knobs: AloneKnobs) -> Plan:
    """Every thread its own tile of the output, sums in registers."""
    found = product(group)
    if found is not None:
        if most_rows(found) <= knobs.few_rows:
            return Plan("matvec", knobs.matvec)
        return Plan("skinny_matmul", knobs.matmul)
    if contraction(group) is not None:
        return Plan("contraction", knobs.contraction)
    if any(c.over for c in group.computes):
        return Plan("norm", knobs.norm)
    flat = GroupKnobs(1, knobs.threads, 1, 1, 1, 1, 1, 1)  # threads alone matter to the rule
    return Plan("elementwise_groups", flat)


def _of_product(write: Callable[[Product, Any], Schedule]) -> Callable[[Group, Any], Schedule]:
    """A rule for products, as one for Groups."""

    def written(group: Group, knobs: Any) -> Schedule:
        found = product(group)
        if found is None:
            raise ScheduleError(f"{group.name} is no matrix product with a weight stage")
        return write(found, knobs)

    return written


def _tokens(knobs: MatmulKnobs | GroupKnobs) -> int:
    return knobs.tokens


def _rows(knobs: UnitKnobs) -> int:
    return knobs.rows * knobs.down


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "matvec": Rule(MatvecKnobs, _of_product(matvec), MatvecKnobs.SPACE),
        "matvec_pairs": Rule(MatvecKnobs, _of_product(matvec), MatvecKnobs.SPACE, in_pairs),
        "skinny_matmul": Rule(
            MatmulKnobs, _of_product(skinny_matmul), MatmulKnobs.SPACE, tile=_tokens
        ),
        "skinny_matmul_pairs": Rule(
            MatmulKnobs, _of_product(skinny_matmul), MatmulKnobs.SPACE, in_pairs, _tokens
        ),
        "skinny_matmul_tiles": Rule(
            MatmulKnobs, _of_product(skinny_tiles), MatmulKnobs.SPACE, tile=_tokens
        ),
        "matmul": Rule(MatmulKnobs, _of_product(matmul), MatmulKnobs.SPACE, signed, _tokens),
        "matmul_pairs": Rule(
            MatmulKnobs, _of_product(matmul), MatmulKnobs.SPACE, in_pairs, _tokens
        ),
        "matmul_tiles": Rule(
            MatmulKnobs, _of_product(matmul_tiles), MatmulKnobs.SPACE, tile=_tokens
        ),
        "contraction": Rule(ContractionKnobs, contract, {}),
        "norm": Rule(NormKnobs, norm, NormKnobs.SPACE),
        "elementwise": Rule(ElementwiseKnobs, elementwise, ElementwiseKnobs.SPACE),
        "matvec_groups": Rule(GroupKnobs, _of_product(matvec_groups), MATVEC_SPACE),
        "matmul_groups": Rule(GroupKnobs, _of_product(matmul_groups), MATMUL_SPACE, tile=_tokens),
        # Not tuned: plans of units have the target's in them, and tuned plans are numbers alone.
        "matmul_units": Rule(UnitKnobs, matmul_units, {}, in_digits, _rows),
        "float_units": Rule(UnitKnobs, matmul_units, {}, tile=_rows),
        "few_rows_units": Rule(
            FewRowsKnobs, few_rows_units, {}, with_kept, lambda knobs: knobs.rows
        ),
        "contraction_groups": Rule(GroupKnobs, contraction_groups, FLAT_SPACE),
        "norm_groups": Rule(GroupKnobs, norm_groups, FLAT_SPACE),
        "elementwise_groups": Rule(GroupKnobs, elementwise_groups, FLAT_SPACE),
    }
)


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


@cache
def unit_table() -> dict[str, UnitKnobs]:
    """The rows of the table of matrix units, by their shape."""
    text = (files("sterna.schedule") / "tables" / "matrix_units.json").read_text(encoding="utf-8")
    return msgspec.json.decode(text, type=dict[str, UnitKnobs])


@cache
def float_unit_table() -> dict[str, FloatUnitKnobs]:
    """The rows of the table of matrix units that make sums of floats, by their shape."""
    text = (files("sterna.schedule") / "tables" / "float_units.json").read_text(encoding="utf-8")
    return msgspec.json.decode(text, type=dict[str, FloatUnitKnobs])


@cache
def alone_table(name: str) -> AloneKnobs:
    """A schedule table of targets whose threads work alone."""
    text = (files("sterna.schedule") / "tables" / f"{name}.json").read_text(encoding="utf-8")
    return msgspec.json.decode(text, type=AloneKnobs)
