"""The schedule of a product in floats that a matrix unit makes, for few rows of x: decode, verify.

In: a Group whose block sums are kept (`schedule.whole.with_kept`). Out: steps. A work group has all
rows of x, in tiles of the unit that they do not fill, and few rows of the weight, so each byte of a
weight is read once, and many groups read at a time. Blocks of k lie side by side in its subgroups,
with the instruction, the steps and the order that prompts have; their sums are added up in order by
threads for whom they were kept.

Prompts take it too where a unit is opaque: what it makes has to be kept before anyone reads it.
Each group has some of their rows then.
"""

from __future__ import annotations

from dataclasses import dataclass

from sterna.base.errors import ScheduleError
from sterna.base.target import MatrixUnit
from sterna.ir.bounds import bounds
from sterna.ir.compute import Compute, Group
from sterna.ir.expr import const_value
from sterna.schedule.rules.matrix_unit import (
    PAD,
    at_once,
    in_tiles,
    multiplied,
    unpacked_weight,
    unpacked_x,
)
from sterna.schedule.steps import (
    At,
    Fuse,
    Pad,
    Parallel,
    Reorder,
    Schedule,
    Skip,
    Split,
    Step,
    Thread,
)
from sterna.schedule.whole import digits_of, kept_of

_SUMS_PAD = 4  # kept sums in f32 behind each row: 16 bytes


@dataclass(frozen=True, slots=True)
class FewRowsKnobs:
    """Up to `rows` of x and `columns` of the weight a group, shared by `subgroups`.

    `depth` steps of k are unpacked at a time, fewer where that takes more than `shared` bytes.
    """

    rows: int
    columns: int
    subgroups: int
    depth: int
    shared: int
    unit: MatrixUnit | None = None  # the target's; a table has none


@dataclass(frozen=True, slots=True)
class _Tile:
    """What a group has at a time: `blocks` of `size` k, `slices` of them side by side."""

    rows: int
    columns: int
    size: int
    blocks: int
    slices: int
    across: int  # subgroups side by side along the columns

    def threads(self, unit: MatrixUnit) -> int:
        return unit.lanes * self.slices * self.across

    @property
    def own(self) -> tuple[int, int]:
        """A subgroup's part."""
        return self.rows, self.columns // self.across


def few_rows_units(group: Group, knobs: FewRowsKnobs) -> Schedule:
    """groups of rows of weight { blocks of k { unpack; multiply side by side; add in order } }."""
    unit, found = knobs.unit, digits_of(group)
    if unit is None or knobs.columns % unit.columns or len(found.sums) != 1:
        raise ScheduleError(f"{group.name}: {knobs} do not suit a unit of {unit}")
    out, total, (sums,), kept = found.out, found.total, found.sums, kept_of(group)
    tile = _tile(out, total, sums, knobs, unit)
    threads, unit = tile.threads(unit), unit.fitted(tile.rows, tile.size)
    steps: list[Step] = [*_by_elements(out, tile, threads, grouped=True)]
    steps += [Parallel(out.name, "group"), At(total.name, out.name, "group", "register")]
    b = total.over[0].name
    steps += [
        Split(total.name, b, f"{b}_chunk", f"{b}_inside", tile.blocks),
        *_by_elements(total, tile, threads, grouped=False),
    ]
    x, weight, chunk = found.digits[0], found.weight, f"{b}_chunk"
    depth = tile.size * tile.blocks
    steps += [
        At(x.name, total.name, chunk, "shared"),
        *unpacked_x(x, depth, threads, unit),
        Skip(x.name, f"{x.axes[0].name}_turn"),
        At(weight.name, total.name, chunk, "shared"),
        *unpacked_weight(weight, depth, tile.columns, threads, unit),
        At(kept.name, total.name, chunk, "shared"),
    ]
    b, m, n = (axis.name for axis in kept.axes)
    turn, slice_ = f"{b}_turn", f"{b}_slice"
    steps += [
        Pad(kept.name, n, _SUMS_PAD),
        Split(kept.name, b, turn, slice_, tile.slices),
        *in_tiles(kept, m, n, (turn, slice_), (), tile.own, unit),
        *at_once(m, n, kept, unit),
        Thread(kept.name, slice_),
        At(sums.name, kept.name, turn, "register"),
        *multiplied(sums, tile.own, unit),
        Thread(sums.name, sums.axes[2].name),
    ]
    return tuple(steps)


def _tile(
    out: Compute, total: Compute, sums: Compute, knobs: FewRowsKnobs, unit: MatrixUnit
) -> _Tile:
    most = bounds(out.axes[0].extent)[1]
    rows = -(-int(min(most or knobs.rows, knobs.rows)) // unit.rows) * unit.rows
    size = int(const_value(sums.over[0].extent) or 0)
    there = int(const_value(total.over[0].extent) or 1)
    blocks = _power_of_two(max(1, min(knobs.depth // size, there)))
    while blocks > 1 and _shared(rows, knobs.columns, size, blocks) > knobs.shared:
        blocks //= 2
    slices = min(blocks, knobs.subgroups)
    across = max(1, min(knobs.subgroups // slices, knobs.columns // unit.columns))
    return _Tile(rows, knobs.columns, size, blocks, slices, across)


def _power_of_two(most: int) -> int:
    return 1 << (most.bit_length() - 1)


def _shared(rows: int, columns: int, size: int, blocks: int) -> int:
    """Bytes: operands in 16 bits and blocks of sums in f32, rows of both padded."""
    operands, sums = (rows + columns) * (size * blocks + PAD), rows * (columns + _SUMS_PAD) * blocks
    return 2 * operands + 4 * sums


def _by_elements(stage: Compute, tile: _Tile, threads: int, *, grouped: bool) -> list[Step]:
    """Threads side by side along the columns, and along rows where there are more of them."""
    m, n = (axis.name for axis in stage.axes)
    steps: list[Step] = []
    inside, along = m, n
    if grouped:
        inside, along = f"{m}_inside", f"{n}_thread"
        steps += [
            Split(stage.name, n, f"{n}_block", along, tile.columns),
            Split(stage.name, m, f"{m}_block", inside, tile.rows),
        ]
    beside = max(1, min(tile.rows, threads // tile.columns))
    thread, turn = f"{m}_thread", f"{m}_turn"
    steps.append(Split(stage.name, inside, turn, thread, beside))
    if grouped:
        steps += [
            Reorder(stage.name, (f"{n}_block", f"{m}_block", thread, along, turn)),
            Fuse(stage.name, f"{n}_block", f"{m}_block", "group"),
        ]
    else:
        b = stage.over[0].name
        steps.append(Reorder(stage.name, (f"{b}_chunk", thread, along, turn, f"{b}_inside")))
    return [*steps, Thread(stage.name, thread), Thread(stage.name, along)]
