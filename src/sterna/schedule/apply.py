"""Where Compute and Schedule meet: Group + Schedule -> PrimFunc.

Stages are placed consumers first: a stage attached inside a reader's loop (`At`) computes the
region that the reader needs there, found from the reader's index expressions. Reductions keep
their order, so every schedule of a Group gives the same bits. Indices that a split may push past
an axis are guarded where values are stored; where they are only read they are clamped, except
along a vectorized axis, whose buffers have readable slack after their end.
"""

from __future__ import annotations

from collections.abc import Mapping

from sterna.base.errors import ScheduleError
from sterna.ir.compute import Compute, Group, combine_step
from sterna.ir.expr import (
    Buffer,
    Expr,
    Load,
    Var,
    const_value,
    logical_or,
    minimum,
    wrap,
)
from sterna.ir.loop import Alloc, For, ForKind, If, Prefetch, PrimFunc, Stmt, Store, seq
from sterna.ir.rewrite import free_vars, loads, replace_loads, substitute
from sterna.ir.simplify import simplify, simplify_stmt
from sterna.schedule.region import span, union
from sterna.schedule.stage import Loop, Stage, loop_var, transform
from sterna.schedule.steps import (
    LINE_BYTES,
    Ahead,
    At,
    DoubleBuffer,
    Inline,
    Pad,
    Schedule,
    Step,
    Tensorize,
)
from sterna.schedule.whole import check_exact


def apply(group: Group, schedule: Schedule) -> PrimFunc:
    """The loop program of `group` under `schedule`; ScheduleError where a step cannot be."""
    names = {c.name for c in group.computes}
    for step in schedule:
        if step.stage not in names:
            raise ScheduleError(f"{step}: no stage {step.stage!r}; there are {sorted(names)}")
    computes = _inline(group, schedule)
    placed = _Placed(group, computes, schedule)
    body = simplify_stmt(seq(*(placed.emit(s) for s in placed.roots())))
    params = (*group.inputs, *group.outputs)
    bound = {v for p in params for d in p.shape for v in free_vars(d)}
    dims = sorted(free_vars(body) | bound, key=lambda v: v.name)
    return PrimFunc(group.name, params, tuple(dims), body)


def _inline(group: Group, schedule: Schedule) -> list[Compute]:
    """Substitute inlined stages into their readers, in order."""
    wanted = {step.stage for step in schedule if isinstance(step, Inline)}
    bodies: dict[Buffer, Compute] = {}
    result: list[Compute] = []
    for compute in group.computes:
        new = inline_into(compute, bodies)
        if compute.name in wanted:
            if compute.over or compute.out in group.outputs:
                raise ScheduleError(
                    f"stage {compute.name!r} is a reduction or an output: cannot be inlined"
                )
            bodies[new.out] = new
        else:
            result.append(new)
    return result


def inline_into(compute: Compute, producers: Mapping[Buffer, Compute]) -> Compute:
    """Replace loads of the producers' outputs by their bodies."""
    if not producers:
        return compute

    def body_at(load: Load) -> Expr | None:
        producer = producers.get(load.buffer)
        if producer is None:
            return None
        values = {a.var: i for a, i in zip(producer.axes, load.index, strict=True)}
        return substitute(producer.body, values)

    body = replace_loads(compute.body, body_at)
    return Compute(compute.out, compute.axes, body, compute.over, compute.combine)


class _Placed:
    """All stages of a group with their loops, and the emission of statements."""

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
            for load in loads(reader.compute.body):
                if load.buffer is not compute.out:
                    continue
                if not self._inside(reader, at):
                    raise ScheduleError(f"{at}: stage {reader.name!r} reads it outside that loop")
                values = {axis: reader.index(axis) for axis in reader.local}
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
        """Every loop around a stage's body, own and enclosing."""
        own = {loop.var: loop for loop in stage.loops}
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
                return result
        return result

    def _inside(self, reader: Stage, at: At) -> bool:
        while reader.name != at.of:
            if reader.at is None:
                return False
            reader = self.stages[reader.at.of]
        return True

    # emission

    def emit(self, stage: Stage) -> Stmt:
        """The loops of a stage with everything attached inside them."""
        first = next((i for i, loop in enumerate(stage.loops) if loop.reduces), None)
        if first is None:
            return self._nest(stage, 0, self._leaf(stage))
        spatial = [loop for loop in stage.loops[first:] if not loop.reduces]
        if not spatial and stage.buffer is not None and stage.buffer.scope == "shared":
            return self._nest(stage, 0, self._private_sum(stage, first), stop=first)
        start = self._init(stage, spatial)
        update = self._nest(stage, first, self._leaf(stage))
        return self._nest(stage, 0, seq(start, update), stop=first)

    def _nest(self, stage: Stage, level: int, leaf: Stmt, stop: int | None = None) -> Stmt:
        if level == (len(stage.loops) if stop is None else stop):
            return leaf
        loop = stage.loops[level]
        if stage.held == loop.name and stage.buffer is not None:
            return self._held(stage, stage.buffer, level)
        return self._loop(stage, level, self._nest(stage, level + 1, leaf, stop))

    def _loop(self, stage: Stage, level: int, body: Stmt) -> Stmt:
        """One loop around `body`, with what belongs into its turns and before it."""
        loop = stage.loops[level]
        body = self._attached(stage, loop, body)
        for step in stage.skips:
            if step.axis == loop.name:
                body = self._skipped(stage, level, body)
        body = seq(
            *(p for a in stage.ahead if a.axis == loop.name for p in self._asked(stage, a)), body
        )
        return self._begun(stage, loop, For(loop.var, loop.extent, body, loop.kind))

    def _begun(self, stage: Stage, loop: Loop, stmt: Stmt) -> Stmt:
        """The loop behind the first regions of what is made a turn ahead."""
        for attached in reversed(self._here(stage, loop)):
            buffer = attached.buffer
            if attached.turn is not None and buffer is not None:
                first = substitute(self.emit(attached), {loop.var: wrap(0)})
                stmt = Alloc(buffer, seq(first, stmt))
        return stmt

    def _turned(self, attached: Stage, loop: Loop, body: Stmt) -> Stmt:
        """A turn that makes the next one's region: into registers before, out of them behind."""
        if any(s.at is not None and s.at.of == attached.name for s in self.stages.values()):
            raise ScheduleError(f"{attached.name!r} is made a turn ahead: no stage can be in it")
        if loop.kind is not ForKind.SERIAL:
            raise ScheduleError(
                f"{attached.name!r} is made a turn ahead, and no turn of {loop.name!r} is next"
            )
        for load in loads(attached.compute.body):
            source = self.owner.get(load.buffer)
            if source is not None and source.at is not None and source.at.axis == loop.name:
                raise ScheduleError(
                    f"{attached.name!r} is made a turn ahead of {source.name!r}, which it reads"
                )
        two = attached.buffer
        assert two is not None
        own = Buffer(f"{two.name}_next", two.dtype, two.shape[1:], "register")
        index, following = self._local_index(attached), {loop.var: loop.var + 1}
        kept = Store(own, index, self._value(attached))
        ahead = self._nest(attached, 0, self._guarded(attached, kept, reduces=True))
        out = Store(two, (following[loop.var] % 2, *index), Load(own, index))
        store = self._nest(attached, 0, self._guarded(attached, out, reduces=True))
        more = following[loop.var] < loop.extent
        ahead = substitute(ahead, following)
        return Alloc(own, seq(If(more, ahead), body, If(more, store)))

    def _held(self, stage: Stage, memory: Buffer, level: int) -> Stmt:
        """The loops from `level` on, with their sums in registers: read, added to, stored."""
        if stage.guards:
            raise ScheduleError(f"hold({stage.name}, {stage.held}): a guard stands inside the loop")
        inner = [loop for loop in stage.loops[level:] if not loop.reduces]
        tile = stage.tile(inner)
        last = {loop.var: loop.extent - 1 for loop in inner}
        shape = tuple(simplify(substitute(i, last) + 1) for i in tile.values())
        if any(const_value(extent) is None for extent in shape):
            raise ScheduleError(f"{stage.held!r} of {stage.name!r} holds no tile of known size")
        own = Buffer(f"{memory.name}_held", memory.dtype, shape, "register")
        index, there = tuple(tile.values()), self._local_index(stage)
        read = Store(own, index, Load(memory, there))
        stored = Store(memory, there, Load(own, index))
        combine = stage.compute.combine
        assert combine is not None, "only sums are held"
        step = Store(own, index, combine_step(combine, Load(own, index), self._value(stage)))
        body = self._loop(stage, level, self._nest(stage, level + 1, step))
        return Alloc(own, seq(_each(inner, read), body, _each(inner, stored)))

    def _skipped(self, stage: Stage, level: int, body: Stmt) -> Stmt:
        """`body`, if the first elements of this turn of the loop are the tensor's."""
        loop = stage.loops[level]
        begin = {inner.var: wrap(0) for inner in stage.loops[level + 1 :]}
        for axis in stage.compute.axes:
            if loop.var in free_vars(stage.local[axis.var]):
                first = simplify(substitute(stage.index(axis.var), begin))
                body = If(logical_or(loop.var < 1, first < axis.extent), body)
        return body

    def _asked(self, stage: Stage, step: Ahead) -> list[Stmt]:
        """Prefetches of one turn: the first element of each cache line that it reads."""
        outer = stage.loop(step.axis)
        source = self.stages.get(step.buffer)
        name = source.buffer.name if source is not None and source.buffer else step.buffer
        found = next((n for n in loads(self._value(stage)) if n.buffer.name == name), None)
        if found is None:
            raise ScheduleError(f"{step}: the stage does not read {step.buffer!r}")
        line = LINE_BYTES // found.dtype.bytes
        places = stage.lines(outer, found.index, line)
        later = {outer.var: outer.var + step.turns}
        return [
            Prefetch(Load(found.buffer, tuple(simplify(substitute(i, later)) for i in place)))
            for place in places
        ]

    def _attached(self, stage: Stage, loop: Loop, body: Stmt) -> Stmt:
        here = self._here(stage, loop)
        body = seq(*(self.emit(s) for s in here if s.turn is None), body)
        for attached in reversed(here):
            if attached.turn is not None:
                body = self._turned(attached, loop, body)
            elif attached.buffer is not None:
                body = Alloc(attached.buffer, body)
        return body

    def _here(self, stage: Stage, loop: Loop) -> list[Stage]:
        """The stages that are computed inside a loop of another."""
        found = (self.stages[c.name] for c in self.computes)
        return [
            s for s in found
            if s.at is not None and s.at.of == stage.name and s.at.axis == loop.name
        ]  # fmt: skip

    def _init(self, stage: Stage, spatial: list[Loop]) -> Stmt:
        combine, buffer = stage.compute.combine, stage.buffer
        if combine is None or buffer is None:
            raise ScheduleError(f"reduction {stage.name!r} cannot accumulate in global memory")
        start = Store(buffer, self._local_index(stage), wrap(combine.identity, buffer.dtype))
        stmt = self._guarded(stage, start, reduces=False)
        return _each(spatial, stmt)

    def _private_sum(self, stage: Stage, first: int) -> Stmt:
        """One element summed in a register, and only then stored where others see it."""
        shared = stage.buffer
        if shared is None or stage.compute.combine is None:
            raise ScheduleError(f"reduction {stage.name!r} has no place to accumulate in")
        own = Buffer(f"{shared.name}_sum", shared.dtype, (wrap(1),), "register")
        start = Store(own, (wrap(0),), wrap(stage.compute.combine.identity, shared.dtype))
        step = combine_step(stage.compute.combine, own[0], self._value(stage))
        update = self._guarded(stage, Store(own, (wrap(0),), step), reduces=True)
        keep = self._guarded(stage, Store(shared, self._local_index(stage), own[0]), reduces=False)
        return Alloc(own, seq(start, self._nest(stage, first, update), keep))

    def _leaf(self, stage: Stage) -> Stmt:
        compute = stage.compute
        body = self._value(stage)
        if stage.buffer is None:
            index = tuple(stage.index(a.var) for a in compute.axes)
            return self._guarded(stage, Store(compute.out, index, body), reduces=False)
        index = self._kept_at(stage)
        if compute.combine is not None:
            body = combine_step(compute.combine, Load(stage.buffer, index), body)
        return self._guarded(stage, Store(stage.buffer, index, body), reduces=True)

    def _guarded(self, stage: Stage, stmt: Stmt, *, reduces: bool) -> Stmt:
        """`stmt` under the guards that concern it: reduction guards only where `reduces`."""
        over = {loop.var for loop in stage.loops if loop.reduces}
        lanes = {loop.var for loop in stage.loops if loop.kind is ForKind.VECTOR}
        # A guard on the lane stands outermost, where the renderer can test all lanes at once.
        for index, bound in sorted(stage.guards, key=lambda g: bool(free_vars(g[0]) & lanes)):
            if reduces or not (free_vars(index) & over):
                stmt = If(index < bound, stmt)
        return stmt

    def _local_index(self, stage: Stage) -> tuple[Expr, ...]:
        """Where in a region of it an element of the stage lies."""
        return tuple(stage.local[a.var] for a in stage.compute.axes)

    def _kept_at(self, stage: Stage) -> tuple[Expr, ...]:
        """Where in its buffer this turn's element of the stage lies."""
        return _half(stage, self._local_index(stage))

    def _value(self, stage: Stage) -> Expr:
        """The body with axes as loop variables and attached stages read from their regions."""
        exact = {axis: stage.index(axis) for axis in stage.local}

        def from_region(load: Load) -> Expr | None:
            source = self.owner.get(load.buffer)
            if source is None or source.buffer is None:
                return None
            parts = zip(load.index, source.compute.axes, strict=True)
            index = (simplify(substitute(i, exact) - source.base[a.var]) for i, a in parts)
            return Load(source.buffer, _half(source, tuple(index)))

        body = replace_loads(stage.compute.body, from_region)
        return substitute(body, {axis: self._clamped(stage, axis) for axis in stage.local})

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
        inside = simplify(index < extent)
        if self._whole_loop(stage, simplify(index), extent):
            return index
        if free_vars(stage.local[axis]) & vectorized or const_value(inside) is True:
            return index
        return minimum(index, extent - 1)


def _half(stage: Stage, index: tuple[Expr, ...]) -> tuple[Expr, ...]:
    """The index in a region, behind which region of two it is in this turn."""
    return index if stage.turn is None else (stage.turn % 2, *index)


def _each(loops: list[Loop], stmt: Stmt) -> Stmt:
    """The statement for every element of some loops that add nothing up."""
    for loop in reversed(loops):
        # A unit multiplies; it does not set to zero.
        kind = ForKind.UNROLL if loop.kind is ForKind.MATRIX else loop.kind
        stmt = For(loop.var, loop.extent, stmt, kind)
    return stmt


def _padded(stage: Stage, region: list[tuple[Expr, Expr]], steps: list[Step]) -> tuple[Expr, ...]:
    """The extents of a stage's storage."""
    more = {s.axis: s.by for s in steps if isinstance(s, Pad)}
    names = [axis.name for axis in stage.compute.axes]
    if unknown := more.keys() - set(names):
        raise ScheduleError(f"stage {stage.name!r} has no axis {unknown.pop()!r} to pad")
    return tuple(extent + more.get(n, 0) for n, (_, extent) in zip(names, region, strict=True))
