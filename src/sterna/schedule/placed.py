"""Stages where a Schedule has put them: loops, regions, and what each computes in terms of them.

In: a Group, its computes after inlining, and steps. Out: of every stage its loops, the region of it
that is wanted, where that is kept, and the value of an element, as an expression in loop variables.
It emits no statement: `apply` does.
"""

from __future__ import annotations

from sterna.base.errors import ScheduleError
from sterna.ir.compute import Combine, Compute, Group
from sterna.ir.expr import Buffer, Expr, Load, Var, const_value, wrap
from sterna.ir.loop import ForKind
from sterna.ir.rewrite import N, free_vars, loads, replace_loads, substitute
from sterna.ir.simplify import simplify
from sterna.schedule.cached import Cached, cached, clamped, from_registers
from sterna.schedule.region import span, union
from sterna.schedule.stage import Loop, Stage, loop_var, transform
from sterna.schedule.steps import At, CacheRead, DoubleBuffer, Pad, Schedule, Step, Tensorize
from sterna.schedule.whole import check_exact


class Placed:
    """All stages of a group with their loops."""

    def __init__(self, group: Group, computes: list[Compute], schedule: Schedule) -> None:
        self.group = group
        self.stages: dict[str, Stage] = {}
        self.owner: dict[Buffer, Stage] = {}
        self.computes = computes
        for compute in reversed(computes):
            steps = [s for s in schedule if s.stage == compute.name]
            self._place(compute, steps)

    def roots(self) -> list[Stage]:
        return [self.stages[c.name] for c in self.computes if self.stages[c.name].at is None]

    # placing

    def _place(self, compute: Compute, steps: list[Step]) -> None:
        stage = Stage(compute)
        at = next((s for s in steps if isinstance(s, At)), None)
        stage.at = at
        if at is None:
            if compute.over:
                raise ScheduleError(
                    f"stage {compute.name!r} is a reduction and must be placed with at()"
                )
            if compute.out not in self.group.outputs:
                raise ScheduleError(
                    f"stage {compute.name!r} is not an output: inline it or place it with at()"
                )
            region = [(wrap(0), a.extent) for a in compute.axes]
        else:
            if (at.scope == "global") != (compute.out in self.group.outputs):
                raise ScheduleError(f"{at}: outputs, and only they, are kept in global memory")
            region = self._region(compute, at)
        for axis, (base, extent) in zip(compute.axes, region, strict=True):
            self._add_loop(stage, axis.var, base, extent, reduces=False)
        for axis in compute.over:
            self._add_loop(stage, axis.var, wrap(0), axis.extent, reduces=True)
        if at is not None:
            shape = _padded(stage, region, steps)
            stored = Buffer(compute.name.replace(".", "_"), compute.out.dtype, shape, at.scope)
            stage.buffer = None if at.scope == "global" else stored
        self._double(stage, next((s for s in steps if isinstance(s, DoubleBuffer)), None))
        self.stages[compute.name] = stage
        self.owner[compute.out] = stage
        for step in steps:
            transform(stage, step)
            if isinstance(step, Tensorize):
                check_exact(step, compute, self.computes)

    def _double(self, stage: Stage, step: DoubleBuffer | None) -> None:
        """Two regions of the stage, one for each other turn of its loop."""
        if step is None:
            return
        at, one = stage.at, stage.buffer
        if at is None or one is None or one.scope != "shared" or stage.compute.over:
            raise ScheduleError(f"{step}: only what is no sum and kept in shared memory")
        stage.turn = self.stages[at.of].loop(at.axis).var
        stage.buffer = Buffer(one.name, one.dtype, (wrap(2), *one.shape), one.scope)

    def _add_loop(
        self, stage: Stage, axis: Var, base: Expr, extent: Expr, *, reduces: bool
    ) -> None:
        loop = Loop(loop_var(axis.name, extent), extent, reduces)
        stage.loops.append(loop)
        stage.base[axis] = base
        stage.local[axis] = loop.var

    def _region(self, compute: Compute, at: At) -> list[tuple[Expr, Expr]]:
        """(first, extent) along each axis that readers need inside the attach point."""
        anchor = self.stages.get(at.of)
        if anchor is None:
            raise ScheduleError(f"{at}: stage {at.of!r} is not a later stage")
        fixed = self._outer_vars(anchor, at.axis)
        found: list[tuple[Expr, Expr]] | None = None
        for reader in self.stages.values():
            for load in (load for value in reader.compute.values for load in loads(value)):
                if load.buffer is not compute.out:
                    continue
                if not self._inside(reader, at):
                    raise ScheduleError(f"{at}: stage {reader.name!r} reads it outside that loop")
                if self._begins_outside(reader, compute, at):
                    raise ScheduleError(f"{at}: stage {reader.name!r} begins outside that loop")
                values = {axis: reader.index(axis) for axis in reader.local}
                values = self._known_parts(reader, values, fixed)
                need = [
                    span(substitute(i, values), fixed, self._loops_of(reader), at)
                    for i in load.index
                ]
                if at.scope == "global":
                    need = self._whole_output(compute, need, at)
                found = need if found is None else union(found, need, at)
        if found is None and at.scope == "global":
            found = self._whole_output(compute, self._alongside(compute, anchor, fixed), at)
        if found is None:
            raise ScheduleError(f"{at}: nothing reads stage {compute.name!r}")
        return found

    def _alongside(
        self, compute: Compute, anchor: Stage, fixed: set[Var]
    ) -> list[tuple[Expr, Expr]]:
        """The region of an output that no stage reads: its first axes follow the anchor's."""
        region = [(wrap(0), axis.extent) for axis in compute.axes]
        pairs = zip(compute.axes, anchor.compute.axes, strict=False)
        for i, (own, other) in enumerate(pairs):
            index = simplify(anchor.index(other.var))
            same = const_value(simplify(own.extent - other.extent)) == 0
            if not same or not free_vars(index) <= fixed:
                break
            region[i] = (index, wrap(1))
        return region

    def _whole_output(
        self, compute: Compute, region: list[tuple[Expr, Expr]], at: At
    ) -> list[tuple[Expr, Expr]]:
        """The region, cut to the tensor; all iterations together must cover the tensor."""
        around = self._loops_of(self.stages[at.of])
        result = []
        for axis, (base, extent) in zip(compute.axes, region, strict=True):
            everything = (
                const_value(base) == 0 and const_value(simplify(extent < axis.extent)) is False
            )
            loop = around.get(base) if isinstance(base, Var) else None
            each = loop is not None and const_value(simplify(loop.extent - axis.extent)) == 0
            if not everything and not (each and const_value(extent) == 1):
                raise ScheduleError(
                    f"{at}: its readers there do not need all of axis {axis.name!r}"
                )
            result.append((base, axis.extent if everything else extent))
        return result

    def _loops_of(self, stage: Stage) -> dict[Var, Loop]:
        """Every loop around a stage's body, own and enclosing, and those that they were before."""
        own = {loop.var: loop for loop in stage.loops}
        own |= {var: loop for var, (loop, _) in stage.parts.items()}
        return own if stage.at is None else own | self._loops_of(self.stages[stage.at.of])

    def _outer_vars(self, anchor: Stage, axis: str) -> set[Var]:
        """Loop variables fixed at the attach point."""
        anchor.loop(axis)
        result: set[Var] = set()
        if anchor.at is not None:
            result |= self._outer_vars(self.stages[anchor.at.of], anchor.at.axis)
        for loop in anchor.loops:
            result.add(loop.var)
            if loop.name == axis:
                break
        inside = {loop.var for loop in anchor.loops} - result
        return result | {v for v, e in anchor.values().items() if not free_vars(e) & inside}

    def _known_parts(
        self, stage: Stage, values: dict[Var, Expr], fixed: set[Var]
    ) -> dict[Var, Expr]:
        """The indices in loops that are wholly fixed or wholly run; others as they are counted."""
        mixed: dict[Var, Expr] = {}
        while True:
            for var, e in stage.values().items():
                if var not in fixed and free_vars(e) & fixed:
                    mixed[var] = e
            if stage.at is None:
                return {axis: substitute(e, mixed) for axis, e in values.items()}
            stage = self.stages[stage.at.of]

    def exact(self, node: N) -> N:
        """Loops that were fused as what they are in the present ones."""
        values: dict[Var, Expr] = {}
        for stage in self.stages.values():
            values |= stage.values()
        return substitute(node, values)

    def _inside(self, reader: Stage, at: At) -> bool:
        """Whether the reader is computed in that loop, by itself or with what it is placed in."""
        axis: str | None = None  # the anchor's loop that it is placed in; None: it is the anchor
        while reader.name != at.of:
            if reader.at is None:
                return False
            axis, reader = reader.at.axis, self.stages[reader.at.of]
        names = [loop.name for loop in reader.loops]
        return axis is None or names.index(axis) >= names.index(at.axis)

    def _begins_outside(self, reader: Stage, compute: Compute, at: At) -> bool:
        """Whether the reader's start reads the stage, but stands before the loop it is made in."""
        start = reader.compute.start
        if start is None or reader.name != at.of:
            return False
        names = [loop.name for loop in reader.loops]
        first = next(i for i, loop in enumerate(reader.loops) if loop.reduces)
        read = any(load.buffer is compute.out for load in loads(start))
        return read and names.index(at.axis) >= first

    # values

    def _local_index(self, stage: Stage) -> tuple[Expr, ...]:
        """Where in a region of it an element of the stage lies."""
        return tuple(stage.local[a.var] for a in stage.compute.axes)

    def _kept_at(self, stage: Stage) -> tuple[Expr, ...]:
        """Where in its buffer this turn's element of the stage lies."""
        return _half(stage, self._local_index(stage))

    def _value(self, stage: Stage) -> Expr:
        """The body with axes as loop variables and attached stages read from their regions."""
        body = self._in_loops(stage, stage.compute.body)
        for step in stage.reads:
            body = from_registers(body, self._read(stage, step, body))
        return body

    def _start(self, stage: Stage, combine: Combine) -> Expr:
        """What the sums of a stage begin with, as `_value` has the body."""
        start = stage.compute.start
        if start is None:
            return wrap(combine.identity, stage.compute.out.dtype)
        if any(loop.kind is ForKind.MATRIX for loop in stage.loops):
            raise ScheduleError(f"stage {stage.name!r} has a start; a matrix unit's sums have none")
        return self._in_loops(stage, start)

    def _in_loops(self, stage: Stage, value: Expr) -> Expr:
        exact = {axis: stage.index(axis) for axis in stage.local}

        def from_region(load: Load) -> Expr | None:
            source = self.owner.get(load.buffer)
            if source is None or source.buffer is None:
                return None
            parts = zip(load.index, source.compute.axes, strict=True)
            index = (simplify(substitute(i, exact) - source.base[a.var]) for i, a in parts)
            return Load(source.buffer, _half(source, tuple(index)))

        value = replace_loads(value, from_region)
        return substitute(value, {axis: self._clamped(stage, axis) for axis in stage.local})

    def _read(self, stage: Stage, step: CacheRead, value: Expr) -> Cached:
        """What the loops inside the step's loop read of an input; `value` is what they compute."""
        if step in stage.cached:
            return stage.cached[step]
        over = {loop.var for loop in stage.loops if loop.reduces}
        unsafe = [i for i, _ in stage.guards if stage.at is None or free_vars(i) & over]
        if unsafe or any(loop.kind is ForKind.VECTOR for loop in stage.loops):
            raise ScheduleError(f"{step}: loops of the stage may leave the tensor")
        fixed, around = self._outer_vars(stage, step.axis), self._loops_of(stage)
        found: list[tuple[Expr, Expr]] | None = None
        source = next((n.buffer for n in loads(value) if n.buffer.name == step.buffer), None)
        if source is None or source not in self.group.inputs:
            raise ScheduleError(f"{step}: the stage does not read an input {step.buffer!r}")
        for load in loads(value):
            if load.buffer is source:
                region = [span(i, fixed, around, step) for i in load.index]
                found = region if found is None else union(found, region, step)
        assert found is not None
        stage.cached[step] = cached(step, source, found)
        return stage.cached[step]

    def _whole_loop(self, stage: Stage, index: Expr, extent: Expr) -> bool:
        """Whether the index is a loop that runs exactly over the axis, whatever its size."""
        loop = self._loops_of(stage).get(index) if isinstance(index, Var) else None
        return loop is not None and const_value(simplify(loop.extent - extent)) == 0

    def _clamped(self, stage: Stage, axis: Var) -> Expr:
        """The index of an axis, kept inside the tensor where a split may leave it."""
        index = stage.index(axis)
        if stage.at is None or axis in {a.var for a in stage.compute.over}:
            return index
        vectorized = {loop.var for loop in stage.loops if loop.kind is ForKind.VECTOR}
        extent = next(a.extent for a in stage.compute.axes if a.var is axis)
        once = {v: wrap(0) for v, o in self._loops_of(stage).items() if const_value(o.extent) == 1}
        inside = simplify(index < extent)
        if self._whole_loop(stage, simplify(substitute(index, once)), extent):
            return index
        run = free_vars(self.exact(stage.local[axis]))
        if run & vectorized or const_value(inside) is True:
            return index
        return clamped(simplify(index), extent, {s.lanes for s in stage.reads})


def _half(stage: Stage, index: tuple[Expr, ...]) -> tuple[Expr, ...]:
    """The index in a region, behind which region of two it is in this turn."""
    return index if stage.turn is None else (stage.turn % 2, *index)


def _padded(stage: Stage, region: list[tuple[Expr, Expr]], steps: list[Step]) -> tuple[Expr, ...]:
    """The extents of a stage's storage."""
    more = {s.axis: s.by for s in steps if isinstance(s, Pad)}
    names = [axis.name for axis in stage.compute.axes]
    if unknown := more.keys() - set(names):
        raise ScheduleError(f"stage {stage.name!r} has no axis {unknown.pop()!r} to pad")
    return tuple(extent + more.get(n, 0) for n, (_, extent) in zip(names, region, strict=True))
