"""A stage of a Group while its loops are arranged: the steps that concern one stage alone.

In: a Compute, the region of it that is wanted, and steps. Out: its loops in order, and where each
axis of the Compute lies in them. It knows neither other stages nor statements: `apply` does.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import product

from sterna.base.dtype import I32
from sterna.base.errors import ScheduleError
from sterna.ir.compute import Compute
from sterna.ir.expr import Buffer, Const, Expr, Load, Var, ceil_div, const_value, row_major, wrap
from sterna.ir.loop import ForKind
from sterna.ir.rewrite import free_vars, substitute
from sterna.ir.simplify import Simplifier, simplify
from sterna.schedule.cached import Cached
from sterna.schedule.steps import (
    Ahead,
    At,
    CacheRead,
    DoubleBuffer,
    Fuse,
    Hold,
    Inline,
    Pad,
    Parallel,
    Reorder,
    Skip,
    Split,
    Step,
    Tensorize,
    Thread,
    Unroll,
    Vectorize,
    Version,
)

_KINDS: dict[type[Step], ForKind] = {
    Parallel: ForKind.PARALLEL,
    Thread: ForKind.THREAD,
    Vectorize: ForKind.VECTOR,
    Unroll: ForKind.UNROLL,
    Tensorize: ForKind.MATRIX,
}


@dataclass(slots=True)
class Loop:
    var: Var
    extent: Expr
    reduces: bool
    kind: ForKind = ForKind.SERIAL

    @property
    def name(self) -> str:
        return self.var.name


@dataclass(slots=True)
class Stage:
    """A Compute being placed: its loops, and where its axes lie in them.

    Where loops were fused, indices are of the loops that were, whose ranges are known; `parts` has
    these loops and where in each of them a turn of the present loops is.
    """

    compute: Compute
    loops: list[Loop] = field(default_factory=list)
    base: dict[Var, Expr] = field(default_factory=dict)  # first index of the region
    local: dict[Var, Expr] = field(default_factory=dict)  # index within the region
    guards: list[tuple[Expr, Expr]] = field(default_factory=list)  # index, bound
    parts: dict[Var, tuple[Loop, Expr]] = field(default_factory=dict)
    buffer: Buffer | None = None  # storage of an attached stage's region
    at: At | None = None
    turn: Var | None = None  # of the loop that the stage is made ahead in: two regions
    ahead: list[Ahead] = field(default_factory=list)
    reads: list[CacheRead] = field(default_factory=list)
    cached: dict[CacheRead, Cached] = field(default_factory=dict)
    skips: list[Skip] = field(default_factory=list)
    version: str | None = None  # the loop whose first turn has sums of its own
    held: str | None = None  # the loop whose sums are in registers

    @property
    def name(self) -> str:
        return self.compute.name

    def loop(self, name: str) -> Loop:
        for loop in self.loops:
            if loop.name == name:
                return loop
        have = ", ".join(loop.name for loop in self.loops)
        raise ScheduleError(f"stage {self.name!r} has no loop {name!r}; it has {have}")

    def tile(self, loops: list[Loop]) -> dict[Var, Expr]:
        """Where the elements that these loops reach lie among themselves, by axis."""
        outside = {o.var: wrap(0) for o in self.loops if o not in loops}
        exact = self.values()
        return {
            a.var: simplify(substitute(substitute(self.local[a.var], exact), outside))
            for a in self.compute.axes
        }

    def lines(self, outer: Loop, read: Load, size: int) -> list[tuple[Expr, ...]]:
        """Where in a buffer each line of `size` elements begins that one turn of `outer` reads.

        `read` is how. Loops inside that add up are at their first turn, unless they are written
        out. Lines are told apart by where they lie in memory.
        """
        inner = self.loops[self.loops.index(outer) + 1 :]
        used = {v for i in read.index for v in free_vars(i)}
        turns = []
        for loop in inner:
            asked = not loop.reduces or loop.kind is ForKind.UNROLL
            count = const_value(loop.extent) if loop.var in used and asked else None
            turns.append(range(0, int(count or 1), size if loop.kind is ForKind.VECTOR else 1))
        simplifier = Simplifier()  # one, so that equal expressions are one object
        places: dict[Expr, tuple[Expr, ...]] = {}
        for turn in product(*turns):
            at = {loop.var: wrap(i) for loop, i in zip(inner, turn, strict=True)}
            place = tuple(simplifier.expr(substitute(i, at)) for i in read.index)
            line = simplifier.expr(row_major(read.buffer.shape, place) // size)
            places.setdefault(line, place)
        return list(places.values())

    def index(self, axis: Var) -> Expr:
        return self.base[axis] + self.local[axis]

    def first_turn(self) -> Stage:
        """The stage with one turn of the loop of its `version`."""
        assert self.version is not None
        all_turns = self.loop(self.version)
        one = replace(all_turns, var=loop_var(self.version, wrap(1)), extent=wrap(1))
        first: dict[Var, Expr] = {all_turns.var: one.var}
        return replace(
            self,
            loops=[one if loop is all_turns else loop for loop in self.loops],
            local={axis: substitute(e, first) for axis, e in self.local.items()},
            guards=[(substitute(i, first), bound) for i, bound in self.guards],
            cached={},
            version=None,
        )

    def values(self) -> dict[Var, Expr]:
        """What the loops that were fused are in the present ones."""
        return {var: value for var, (_, value) in self.parts.items()}


def loop_var(name: str, extent: Expr) -> Var:
    size = const_value(extent)
    hi = size if size is not None else extent.hi if isinstance(extent, Var) else None
    return Var(name, I32, 0, None if hi is None else int(hi) - 1)


def transform(stage: Stage, step: Step) -> None:
    match step:
        case Split():
            _split(stage, step)
        case Fuse():
            _fuse(stage, step)
        case Reorder():
            _reorder(stage, step)
        case Parallel() | Thread() | Vectorize() | Unroll() | Tensorize():
            _annotate(stage, step)
        case At() | Inline() | Pad() | DoubleBuffer():
            pass  # taken into account when the stage was placed
        case Ahead():
            stage.loop(step.axis)
            stage.ahead.append(step)
        case CacheRead():
            stage.loop(step.axis)
            stage.reads.append(step)
        case Skip():
            if stage.loop(step.axis).reduces:
                raise ScheduleError(f"{step}: a sum has no turn too many")
            stage.skips.append(step)
        case Version():
            loop = stage.loop(step.axis)
            outer = stage.loops[: stage.loops.index(loop)]
            if loop.reduces or not any(o.reduces for o in outer):
                raise ScheduleError(f"{step}: only a loop inside a sum's, which adds nothing up")
            stage.version = step.axis
        case Hold():
            if not stage.loop(step.axis).reduces or stage.buffer is None:
                raise ScheduleError(f"{step}: only a sum that is kept is held, by a loop of it")
            stage.held = step.axis
        case _:
            raise ScheduleError(f"{step}: unknown step")


def _split(stage: Stage, step: Split) -> None:
    loop = stage.loop(step.axis)
    if step.factor < 1:
        raise ScheduleError(f"{step}: the factor must be positive")
    outer_extent = simplify(ceil_div(loop.extent, step.factor))
    outer = Loop(loop_var(step.outer, outer_extent), outer_extent, loop.reduces)
    inner = Loop(loop_var(step.inner, wrap(step.factor)), wrap(step.factor), loop.reduces)
    at = stage.loops.index(loop)
    stage.loops[at : at + 1] = [outer, inner]
    whole = outer.var * step.factor + inner.var
    _replace(stage, {loop.var: whole})
    if const_value(simplify(loop.extent % step.factor)) != 0:
        stage.guards.append((whole, loop.extent))
        _forget_parts(stage, outer.var)


def _fuse(stage: Stage, step: Fuse) -> None:
    a, b = stage.loop(step.a), stage.loop(step.b)
    at = stage.loops.index(a)
    if stage.loops[at + 1 : at + 2] != [b] or a.reduces != b.reduces:
        raise ScheduleError(f"{step}: the loops must be neighbours of one kind")
    extent = simplify(a.extent * b.extent)
    fused = Loop(loop_var(step.into, extent), extent, a.reduces)
    stage.loops[at : at + 2] = [fused]
    new = {a.var: fused.var // b.extent, b.var: fused.var % b.extent}
    _in_parts(stage, new)
    stage.parts |= {a.var: (a, new[a.var]), b.var: (b, new[b.var])}


def _reorder(stage: Stage, step: Reorder) -> None:
    chosen = [stage.loop(name) for name in step.axes]
    if len(set(step.axes)) != len(step.axes):
        raise ScheduleError(f"{step}: a loop is named twice")
    places = sorted(stage.loops.index(loop) for loop in chosen)
    before = [loop.name for loop in stage.loops if loop.reduces]
    for place, loop in zip(places, chosen, strict=True):
        stage.loops[place] = loop
    if [loop.name for loop in stage.loops if loop.reduces] != before:
        raise ScheduleError(f"{step}: the order of a reduction is part of its meaning")


def _annotate(stage: Stage, step: Parallel | Thread | Vectorize | Unroll | Tensorize) -> None:
    loop = stage.loop(step.axis)
    if loop.kind is not ForKind.SERIAL:
        raise ScheduleError(f"{step}: the loop is {loop.kind.value} already")
    if isinstance(step, Parallel):
        outermost = stage.loops[0] is loop and stage.at is None and not loop.reduces
        if not outermost:
            raise ScheduleError(f"{step}: only the outermost loop of an output runs in parallel")
    elif not isinstance(loop.extent, Const):
        raise ScheduleError(f"{step}: the extent {loop.extent!r} is not a number")
    if isinstance(step, Thread) and loop.reduces:
        raise ScheduleError(f"{step}: threads share items, never a sum")
    if isinstance(step, Vectorize) and (stage.loops[-1] is not loop or loop.reduces):
        raise ScheduleError(f"{step}: only the innermost loop that is no reduction is vectorized")
    loop.kind = _KINDS[type(step)]


def _in_parts(stage: Stage, values: dict[Var, Expr]) -> None:
    stage.parts = {
        var: (loop, substitute(value, values)) for var, (loop, value) in stage.parts.items()
    }


def _forget_parts(stage: Stage, turn: Var) -> None:
    """Loops that were fused leave their ranges where a turn of what they became may be too many."""
    left = {v: e for v, e in stage.values().items() if turn in free_vars(e)}
    stage.parts = {v: part for v, part in stage.parts.items() if v not in left}
    _replace(stage, left)


def _replace(stage: Stage, values: dict[Var, Expr]) -> None:
    _in_parts(stage, values)
    stage.local = {axis: substitute(e, values) for axis, e in stage.local.items()}
    stage.guards = [(substitute(i, values), bound) for i, bound in stage.guards]
