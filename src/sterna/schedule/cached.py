"""What a loop reads of an input, in registers: the step `CacheRead`, and when it can be.

In: a load's indices, and the loops that run meanwhile. Out: a buffer of registers for the region,
the statement that fills it, and the value that reads it there. A vector's elements are the turns of
a VECTOR loop that copies neighbours in memory; a renderer makes one load of it where its language
has such, and copies them one by one where not. That a vector begins at a multiple of its length
follows from the indices here, whatever a loop's turn is, or the step is refused.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from sterna.base.dtype import I32
from sterna.base.errors import ScheduleError
from sterna.ir.compute import Axis, Compute
from sterna.ir.expr import Buffer, Expr, Load, Var, const_value, minimum, wrap
from sterna.ir.loop import For, ForKind, Stmt, Store
from sterna.ir.rewrite import free_vars, loads, replace_loads, substitute
from sterna.ir.simplify import Simplifier, simplify
from sterna.schedule.steps import CacheRead

_MOST = 64  # elements: more would not stay in registers


@dataclass(frozen=True, slots=True)
class Cached:
    """The region of `source` from `first` on is in `own`, read in vectors of `lanes`."""

    source: Buffer
    own: Buffer
    first: tuple[Expr, ...]
    lanes: int


def cached(step: CacheRead, source: Buffer, region: list[tuple[Expr, Expr]]) -> Cached:
    """The registers for a region; ScheduleError where it is no row of whole vectors."""
    extents = tuple(const_value(extent) for _, extent in region)
    size = 1
    for extent in extents:
        size *= int(extent or _MOST + 1)
    if size > _MOST:
        raise ScheduleError(f"{step}: what is read is no number of elements up to {_MOST}")
    first = tuple(begin for begin, _ in region)
    if int(extents[-1] or 0) % step.lanes or not begins_whole(source, first, step.lanes):
        raise ScheduleError(f"{step}: what is read does not consist of whole vectors")
    shape = tuple(wrap(int(extent or 0)) for extent in extents)
    own = Buffer(f"{source.name}_read", source.dtype, shape, "register")
    return Cached(source, own, first, step.lanes)


def begins_whole(buffer: Buffer, index: tuple[Expr, ...], lanes: int) -> bool:
    """Whether an element's number in its buffer is surely a multiple of `lanes`."""
    row = const_value(buffer.shape[-1])
    if row is None or int(row) % lanes:
        return False
    simplifier = Simplifier()
    _, rest = simplifier.sum(simplifier.expr(index[-1])).split(lanes)
    return not rest.terms and rest.constant == 0


def side_by_side(load: Load, var: Var, lanes: int) -> bool:
    """Whether `lanes` turns of an index, from a multiple of it on, read a whole vector."""
    vector, lane = Var("vector", I32, 0, _last(var, lanes)), Var("lane", I32, 0, lanes - 1)
    values: dict[Var, Expr] = {var: vector * lanes + lane}
    index = [simplify(substitute(i, values)) for i in load.index]
    simplifier = Simplifier()
    along = simplifier.sum(simplifier.expr(index[-1])).terms.get(lane, 0)
    if along != 1 or any(lane in free_vars(i) for i in index[:-1]):
        return False
    begin = tuple(substitute(i, {lane: wrap(0)}) for i in index)
    return begins_whole(load.buffer, begin, lanes)


def together(stage: Compute, axis: Axis, size: int, lanes: int) -> tuple[str, ...]:
    """The inputs of a stage without sums, if each of its loads reads `lanes` turns of an axis so.

    `size` turns are made together. None of them where one load of an input would not.
    """
    there, read = int(const_value(axis.extent) or 1), list(loads(stage.body))
    names = tuple({load.buffer.name: None for load in read})
    whole = lanes > 1 and there % lanes == 0 and size % lanes == 0 and len(names) == len(read)
    return names if whole and all(side_by_side(n, axis.var, lanes) for n in read) else ()


def _last(var: Var, lanes: int) -> int | None:
    return None if var.hi is None else var.hi // lanes


def clamped(index: Expr, extent: Expr, lanes: Set[int]) -> Expr:
    """The index, or the last; of vectors the last whole one, where the extent ends with one."""
    size = const_value(extent)
    for each in lanes:
        simplifier = Simplifier()
        vector, lane = simplifier.sum(simplifier.expr(index)).split(each)
        inside = simplifier.build(lane, I32)
        if size is not None and int(size) % each == 0 and _is_lane(inside, each):
            return minimum(simplifier.build(vector, I32), int(size) // each - 1) * each + inside
    return minimum(index, extent - 1)


def _is_lane(e: Expr, lanes: int) -> bool:
    return isinstance(e, Var) and e.lo == 0 and e.hi == lanes - 1


def filled(read: Cached) -> Stmt:
    """Reads the region, a vector after another."""
    lane = Var("lane", I32, 0, read.lanes - 1)
    *outer, row = read.own.shape
    vectors = int(const_value(row) or 0) // read.lanes
    sizes = [*(int(const_value(e) or 0) for e in outer), vectors]
    turns = [Var(f"read_{i}", I32, 0, size - 1) for i, size in enumerate(sizes)]
    at: list[Expr] = [var if size > 1 else wrap(0) for var, size in zip(turns, sizes, strict=True)]
    at[-1] = at[-1] * read.lanes + lane
    there = tuple(simplify(b + i) for b, i in zip(read.first, at, strict=True))
    stmt: Stmt = Store(read.own, tuple(at), Load(read.source, there))
    stmt = For(lane, wrap(read.lanes), stmt, ForKind.VECTOR)
    for var, size in reversed(list(zip(turns, sizes, strict=True))):
        stmt = For(var, wrap(size), stmt, ForKind.UNROLL) if size > 1 else stmt
    return stmt


def from_registers(value: Expr, read: Cached) -> Expr:
    """The value with its loads of the source from where they are kept."""

    def kept(load: Load) -> Expr | None:
        if load.buffer is not read.source:
            return None
        parts = zip(load.index, read.first, strict=True)
        return Load(read.own, tuple(simplify(i - begin) for i, begin in parts))

    return replace_loads(value, kept)
