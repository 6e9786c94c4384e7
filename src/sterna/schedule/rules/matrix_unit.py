"""The schedule of a product for targets with a matrix unit: prompts.

In: a Group in digits (`schedule.whole`), or of floats whose sums are the unit's. Out: steps. A
group of threads unpacks, a scale group of k at a time, rows of x and of the weight into 16-bit
floats that its threads share; each of its subgroups multiplies a tile of them with the unit, and
every thread scales and adds up what it keeps of the tile. Which element a thread keeps is told by
the unit's bits, and so by splits of the axes: loops over bits of the thread's number are thread
loops, the others are the thread's own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sterna.base.errors import ScheduleError
from sterna.base.target import MatrixUnit
from sterna.ir.compute import Axis, Compute, Group
from sterna.ir.expr import const_value
from sterna.schedule.cached import together
from sterna.schedule.rules.packing import period
from sterna.schedule.steps import (
    At,
    CacheRead,
    Fuse,
    Pad,
    Parallel,
    Reorder,
    Schedule,
    Split,
    Step,
    Tensorize,
    Thread,
    Unroll,
)
from sterna.schedule.whole import Digits, digits_of

_LANES = 4  # of 32 bits, which every target with a unit reads at once
_OCTET = 8  # steps of k that are stored together: 16 bytes
PAD = 8  # 16-bit floats behind each row: rows begin four banks apart, and at multiples of 16 bytes


@dataclass(frozen=True, slots=True)
class UnitKnobs:
    """A subgroup's tile, `rows` of x by `columns` of the weight; `down` x `across` subgroups.

    Where groups of k are long these are halved, until what is unpacked of one takes no more than
    `shared` bytes; at last the rows of a unit that has several sizes.
    """

    rows: int
    columns: int
    down: int
    across: int
    shared: int
    unit: MatrixUnit | None = None  # the target's; a table has none


@dataclass(frozen=True, slots=True)
class _Loops:
    """The loops that an axis of a tile becomes, by kind; lanes and own with their highest bit."""

    subgroup: str
    tile: str
    lanes: tuple[tuple[int, str], ...]
    own: tuple[tuple[int, str], ...]


def matmul_units(group: Group, knobs: UnitKnobs) -> Schedule:
    """groups of (rows of weight, tile of x) { scale groups { unpack; multiply; scale; add } }."""
    unit, found = knobs.unit, digits_of(group)
    if unit is None or knobs.rows % unit.rows or knobs.columns % unit.columns:
        raise ScheduleError(f"{group.name}: tiles of {knobs} do not suit a unit of {unit}")
    knobs = _with_room(found, knobs, unit)
    size = int(const_value(found.sums[0].over[0].extent) or 0)
    tile, unit = (knobs.rows, knobs.columns), unit.fitted(knobs.rows, size)
    out, total = found.out, found.total
    m, n = (axis.name for axis in out.axes)
    steps: list[Step] = [
        Split(out.name, n, f"{n}_block", f"{n}_all", knobs.columns * knobs.across),
        Split(out.name, m, f"{m}_block", f"{m}_all", knobs.rows * knobs.down),
        *in_tiles(out, f"{m}_all", f"{n}_all", (f"{n}_block", f"{m}_block"), (), tile, unit),
        *by_elements(f"{m}_all", f"{n}_all", out, unit),
        Fuse(out.name, f"{n}_block", f"{m}_block", "group"),
        Parallel(out.name, "group"),
        At(total.name, out.name, "group", "register"),
    ]
    m, n = (axis.name for axis in total.axes)
    g = total.over[0].name
    steps += [*in_tiles(total, m, n, (g,), (), tile, unit), *by_elements(m, n, total, unit)]
    threads, beside = unit.lanes * knobs.down * knobs.across, knobs.columns * knobs.across
    for stage in found.digits:
        steps += [At(stage.name, total.name, g, "shared"), *unpacked_x(stage, size, threads, unit)]
    steps.append(At(found.weight.name, total.name, g, "shared"))
    steps += unpacked_weight(found.weight, size, beside, threads, unit)
    for stage in found.sums:
        steps += [At(stage.name, total.name, g, "register"), *multiplied(stage, tile, unit)]
    return tuple(steps)


def _with_room(found: Digits, knobs: UnitKnobs, unit: MatrixUnit) -> UnitKnobs:
    """Fewer subgroups in a group, on the side that takes more, where they share too much."""
    row = 2 * (int(const_value(found.sums[0].over[0].extent) or 0) + PAD)
    while knobs.down * knobs.across > 1 or (unit.most_rows and knobs.rows > unit.rows):
        x = row * len(found.digits) * knobs.rows * knobs.down
        weight = row * knobs.columns * knobs.across
        if x + weight <= knobs.shared:
            break
        if knobs.down * knobs.across == 1:
            knobs = replace(knobs, rows=knobs.rows // 2)
        elif knobs.down > 1 and (x >= weight or knobs.across == 1):
            knobs = replace(knobs, down=knobs.down // 2)
        else:
            knobs = replace(knobs, across=knobs.across // 2)
    return knobs


def multiplied(stage: Compute, tile: tuple[int, int], unit: MatrixUnit) -> list[Step]:
    """A subgroup's tile of sums over its third axis, by the unit."""
    (m, n, g), i = (axis.name for axis in stage.axes), stage.over[0].name
    step, inside = f"{i}_step", f"{i}_inside"
    return [
        Split(stage.name, i, step, inside, unit.depth),
        *in_tiles(stage, m, n, (g,), (step, inside), tile, unit),
        Unroll(stage.name, step),
        *at_once(m, n, stage, unit),
    ]


def at_once(m: str, n: str, stage: Compute, unit: MatrixUnit) -> list[Step]:
    """All that a thread keeps of a unit's tile is one part in what its subgroup does."""
    first, *others = _own(m, n, unit)
    return [Tensorize(stage.name, first), *(Unroll(stage.name, name) for name in others)]


def by_elements(m: str, n: str, stage: Compute, unit: MatrixUnit) -> list[Step]:
    """A thread works at each element by itself that it keeps of a unit's tile."""
    return [Unroll(stage.name, name) for name in _own(m, n, unit)]


def in_tiles(
    stage: Compute, m: str, n: str, outer: tuple[str, ...], depth: tuple[str, ...],
    tile: tuple[int, int], unit: MatrixUnit,
) -> list[Step]:  # fmt: skip
    """outer { threads { step of depth { tiles { own elements { rest of depth } } } } }.

    What is done with own elements, `at_once` or `by_elements` says.
    """
    rows, columns = _axis(m, unit.row_bits), _axis(n, unit.column_bits)
    lanes = [name for _, name in sorted((*rows.lanes, *columns.lanes), reverse=True)]
    own, threads = _own(m, n, unit), (rows.subgroup, columns.subgroup, *lanes)
    tiles = (rows.tile, columns.tile)
    steps: list[Step] = [
        *_split(stage, m, unit.row_bits, tile[0]),
        *_split(stage, n, unit.column_bits, tile[1]),
        Reorder(stage.name, (*outer, *threads, *depth[:1], *tiles, *own, *depth[1:])),
        *(Thread(stage.name, name) for name in threads),
    ]
    return steps + [Unroll(stage.name, name) for name in tiles]


def _own(m: str, n: str, unit: MatrixUnit) -> tuple[str, ...]:
    """The loops over what a thread keeps of a unit's tile, the highest bit outermost."""
    found = (*_axis(m, unit.row_bits).own, *_axis(n, unit.column_bits).own)
    return tuple(name for _, name in sorted(found, reverse=True))


def _runs(bits: str) -> list[list[str]]:
    """Neighbouring bits of one number together: "s1 l4 l3" is s1 and l4 l3."""
    runs: list[list[str]] = []
    for bit in bits.split():
        follows = runs and f"{bit[0]}{int(bit[1:]) + 1}" == runs[-1][-1]
        if follows:
            runs[-1].append(bit)
        else:
            runs.append([bit])
    return runs


def _axis(axis: str, bits: str) -> _Loops:
    lanes: list[tuple[int, str]] = []
    own: list[tuple[int, str]] = []
    for run in _runs(bits):
        (lanes if run[0][0] == "l" else own).append((int(run[0][1:]), f"{axis}_{run[0]}"))
    return _Loops(f"{axis}_subgroup", f"{axis}_tile", tuple(lanes), tuple(own))


def _split(stage: Compute, axis: str, bits: str, size: int) -> list[Step]:
    """An axis of a tile: subgroups of `size`, tiles of the unit, and its bits, highest first."""
    names, runs = _axis(axis, bits), _runs(bits)
    left = len(bits.split())
    rest = f"{axis}_unit" if len(runs) > 1 else f"{axis}_{runs[0][0]}"
    steps: list[Step] = [
        Split(stage.name, axis, names.subgroup, f"{axis}_rest", size),
        Split(stage.name, f"{axis}_rest", names.tile, rest, 1 << left),
    ]
    for i, run in enumerate(runs[:-1]):
        left -= len(run)
        inner = f"{axis}_{runs[-1][0]}" if i == len(runs) - 2 else f"{rest}_"
        steps.append(Split(stage.name, rest, f"{axis}_{run[0]}", inner, 1 << left))
        rest = inner
    return steps


def _padding(unit: MatrixUnit) -> int:
    """Behind each row; octets of a row are apart as they are."""
    return 0 if unit.octets else PAD


def unpacked_weight(
    stage: Compute, size: int, rows: int, threads: int, unit: MatrixUnit
) -> list[Step]:
    """All threads fill `rows` rows of `size` along k: neighbours, as the weight lies, along n.

    A thread has whole words of up to `_LANES` rows that it reads at once, and stores octets of k.
    """
    row, k = stage.axes
    codes = max(period(stage, axis=1), _OCTET)
    share, inputs = _share(size, rows, threads, 1), tuple[str, ...]()
    for each in (_LANES, 2) if _filled(k, size) else ():
        tried = _share(size, rows, threads, each)
        read = together(stage, row, rows, each)
        if read and tried.steps % codes == 0:
            share, inputs = tried, read
            break
    codes = codes if share.steps % codes == 0 else share.steps
    turn, thread, lane = (f"{row.name}_{part}" for part in ("turn", "thread", "lane"))
    return [
        Pad(stage.name, k.name, _padding(unit)),
        Split(stage.name, k.name, f"{k.name}_thread", f"{k.name}_own", share.steps),
        Split(stage.name, f"{k.name}_own", f"{k.name}_turn", f"{k.name}_code", codes),
        Split(stage.name, row.name, turn, f"{row.name}_own", share.beside * share.rows),
        Split(stage.name, f"{row.name}_own", thread, lane, share.rows),
        Reorder(
            stage.name,
            (f"{k.name}_thread", thread, turn, f"{k.name}_turn", f"{k.name}_code", lane),
        ),
        Thread(stage.name, f"{k.name}_thread"),
        Thread(stage.name, thread),
        Unroll(stage.name, f"{k.name}_code"),
        Unroll(stage.name, lane),
        *(CacheRead(stage.name, f"{k.name}_turn", name, share.rows) for name in inputs),
    ]


@dataclass(frozen=True, slots=True)
class _Share:
    """A thread's part of what is unpacked: `rows` side by side, `steps` of k; `beside` threads."""

    rows: int
    steps: int
    beside: int


def _share(size: int, rows: int, threads: int, each: int) -> _Share:
    beside = max(1, min(rows // each, threads))
    return _Share(each, size // max(1, min(threads // beside, size)), beside)


def _filled(k: Axis, size: int) -> bool:
    """Whether k ends where blocks of it end, so that all threads have whole vectors."""
    return int(const_value(k.extent) or 1) % size == 0


def unpacked_x(stage: Compute, size: int, threads: int, unit: MatrixUnit) -> list[Step]:
    """All threads fill rows of `size` along k: neighbours along k, `_LANES` elements each."""
    row, k = (axis.name for axis in stage.axes)
    lanes = _LANES if size % _LANES == 0 else 1
    beside = min(size // lanes, threads)
    inputs = together(stage, stage.axes[1], size, lanes) if _filled(stage.axes[1], size) else ()
    return [
        Pad(stage.name, k, _padding(unit)),
        Split(stage.name, k, f"{k}_turn", f"{k}_own", beside * lanes),
        Split(stage.name, f"{k}_own", f"{k}_thread", f"{k}_lane", lanes),
        Split(stage.name, row, f"{row}_turn", f"{row}_thread", threads // beside),
        Reorder(
            stage.name, (f"{row}_thread", f"{k}_thread", f"{row}_turn", f"{k}_turn", f"{k}_lane")
        ),
        Thread(stage.name, f"{row}_thread"),
        Thread(stage.name, f"{k}_thread"),
        Unroll(stage.name, f"{k}_lane"),
        *(CacheRead(stage.name, f"{k}_turn", name, lanes) for name in inputs),
    ]
