"""Where Compute and Schedule meet: Group + Schedule -> PrimFunc.

Stages are placed consumers first: a stage attached inside a reader's loop (`At`) computes the
region that the reader needs there, found from the reader's index expressions. Reductions keep
their order, so every schedule of a Group gives the same bits. Indices that a split may push past
an axis are guarded where values are stored; where they are only read they are clamped, except
along a vectorized axis, whose buffers have readable slack after their end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sterna.base.dtype import DType
from sterna.base.errors import ScheduleError
from sterna.ir.compute import Compute, Group, combine_step
from sterna.ir.expr import Buffer, Expr, Load, const_value, logical_and, logical_or, wrap
from sterna.ir.loop import Alloc, For, ForKind, If, Prefetch, PrimFunc, Stmt, Store, seq
from sterna.ir.rewrite import free_vars, loads, replace_loads, substitute
from sterna.ir.simplify import Simplifier, simplify, simplify_stmt
from sterna.schedule.cached import filled
from sterna.schedule.placed import Placed
from sterna.schedule.stage import Loop, Stage
from sterna.schedule.steps import LINE_BYTES, Ahead, Inline, Schedule


def apply(group: Group, schedule: Schedule) -> PrimFunc:
    """The loop program of `group` under `schedule`; ScheduleError where a step cannot be."""
    names = {c.name for c in group.computes}
    for step in schedule:
        if step.stage not in names:
            raise ScheduleError(f"{step}: no stage {step.stage!r}; there are {sorted(names)}")
    computes = _inline(group, schedule)
    placed = _Emission(group, computes, schedule)
    body = simplify_stmt(placed.exact(seq(*(placed.emit(s) for s in placed.roots()))))
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

    return compute.rewritten(lambda value: replace_loads(value, body_at))


class _Emission(Placed):
    """The statements of placed stages."""

    def __init__(self, group: Group, computes: list[Compute], schedule: Schedule) -> None:
        super().__init__(group, computes, schedule)
        self.conditions = Simplifier()  # one, so that equal conditions are one object
        self.decided: dict[Expr, bool] = {}  # of versions, by the statements around

    def emit(self, stage: Stage) -> Stmt:
        """The loops of a stage with everything attached inside them."""
        first = next((i for i, loop in enumerate(stage.loops) if loop.reduces), None)
        if first is None:
            return self._nest(stage, 0, self._leaf(stage))
        return self._nest(stage, 0, self._versions(stage, first), stop=first)

    def _versions(self, stage: Stage, first: int) -> Stmt:
        """The sums, or both versions; what was decided around a stage is not asked inside again."""
        if stage.version is None:
            return self._sums(stage, first)
        one = stage.first_turn()
        second = self.conditions.expr(self._second(stage, stage.version))
        if second in self.decided:
            return self._sums(stage if self.decided[second] else one, first)
        made = []
        for kept, there in ((stage, True), (one, False)):
            self.decided[second] = there
            made.append(self._sums(kept, first))
        del self.decided[second]
        return If(second, *made)

    def _sums(self, stage: Stage, first: int) -> Stmt:
        """The loops from the first that adds up on, with the sums' beginning."""
        spatial = [loop for loop in stage.loops[first:] if not loop.reduces]
        alone = all(loop.kind is not ForKind.MATRIX for loop in spatial)
        if alone and stage.buffer is not None and stage.buffer.scope == "shared":
            return self._private_sum(stage, first)
        return seq(self._init(stage, spatial), self._nest(stage, first, self._leaf(stage)))

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
        for read in [stage.cached[s] for s in stage.reads if s.axis == loop.name]:
            body = Alloc(read.own, seq(filled(read), body))
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
                first = substitute(self.exact(self.emit(attached)), {loop.var: wrap(0)})
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
        done = replace(attached, reads=[], ahead=[])  # nothing is read to store it
        store = self._nest(done, 0, self._guarded(attached, out, reduces=True))
        more = following[loop.var] < loop.extent
        ahead = substitute(self.exact(ahead), following)
        return Alloc(own, seq(If(more, ahead), body, If(more, store)))

    def _held(self, stage: Stage, memory: Buffer, level: int) -> Stmt:
        """The loops from `level` on, with their sums in registers: read, added to, stored."""
        if stage.guards:
            raise ScheduleError(f"hold({stage.name}, {stage.held}): a guard stands inside the loop")
        inner = [loop for loop in stage.loops[level:] if not loop.reduces]
        own, index = self._registers(stage, inner, f"{memory.name}_held", memory.dtype)
        there = self._local_index(stage)
        read = Store(own, index, Load(memory, there))
        stored = Store(memory, there, Load(own, index))
        combine = stage.compute.combine
        assert combine is not None, "only sums are held"
        step = Store(own, index, combine_step(combine, Load(own, index), self._value(stage)))
        body = self._loop(stage, level, self._nest(stage, level + 1, step))
        return Alloc(own, seq(_each(inner, read), body, _each(inner, stored)))

    def _second(self, stage: Stage, name: str) -> Expr:
        """Whether the first elements of a loop's second turn are the tensor's."""
        loop = stage.loop(name)
        begin = {inner.var: wrap(0) for inner in stage.loops[stage.loops.index(loop) + 1 :]}
        there = wrap(const_value(loop.extent) != 1)
        for axis in stage.compute.axes:
            index = self.exact(stage.index(axis.var))
            if loop.var in free_vars(index):
                second = substitute(index, begin | {loop.var: wrap(1)})
                there = logical_and(there, simplify(second) < axis.extent)
        return there

    def _skipped(self, stage: Stage, level: int, body: Stmt) -> Stmt:
        """`body`, if the first elements of this turn of the loop are the tensor's."""
        loop = stage.loops[level]
        begin = {inner.var: wrap(0) for inner in stage.loops[level + 1 :]}
        for axis in stage.compute.axes:
            local = simplify(substitute(self.exact(stage.local[axis.var]), begin))
            if loop.var in free_vars(local):
                first = simplify(substitute(self.exact(stage.index(axis.var)), begin))
                body = If(logical_or(local < 1, first < axis.extent), body)
        return body

    def _asked(self, stage: Stage, step: Ahead) -> list[Stmt]:
        """Prefetches of one turn: the first element of each cache line that it reads."""
        outer = stage.loop(step.axis)
        source = self.stages.get(step.buffer)
        name = source.buffer.name if source is not None and source.buffer else step.buffer
        read = loads(self.exact(self._value(stage)))
        found = next((n for n in read if n.buffer.name == name), None)
        if found is None:
            raise ScheduleError(f"{step}: the stage does not read {step.buffer!r}")
        line = LINE_BYTES // found.dtype.bytes
        places = stage.lines(outer, found, line)
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
        start = Store(buffer, self._local_index(stage), self._start(stage, combine))
        stmt = self._guarded(stage, start, reduces=False)
        return _each(spatial, stmt)

    def _private_sum(self, stage: Stage, first: int) -> Stmt:
        """What one turn sums, in registers, and only then stored where others see it."""
        shared, combine = stage.buffer, stage.compute.combine
        if shared is None or combine is None:
            raise ScheduleError(f"reduction {stage.name!r} has no place to accumulate in")
        inner = [loop for loop in stage.loops[first:] if not loop.reduces]
        own, index = self._registers(stage, inner, f"{shared.name}_sum", shared.dtype)
        start = Store(own, index, self._start(stage, combine))
        step = combine_step(combine, Load(own, index), self._value(stage))
        update = self._guarded(stage, Store(own, index, step), reduces=True)
        there = Store(shared, self._local_index(stage), Load(own, index))
        keep = self._guarded(stage, there, reduces=False)
        sums = self._nest(stage, first, update)
        return Alloc(own, seq(_each(inner, start), sums, _each(inner, keep)))

    def _registers(
        self, stage: Stage, inner: list[Loop], title: str, dtype: DType
    ) -> tuple[Buffer, tuple[Expr, ...]]:
        """A buffer for the elements that these loops reach, and where one of them lies in it."""
        tile = stage.tile(inner)
        last = {loop.var: loop.extent - 1 for loop in inner}
        shape = [simplify(substitute(i, last) + 1) for i in tile.values()]
        if any(const_value(extent) is None for extent in shape):
            raise ScheduleError(f"a tile of {stage.name!r} has no known size")
        return Buffer(title, dtype, tuple(shape), "register"), tuple(tile.values())

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
        guards = [(self.exact(index), bound) for index, bound in stage.guards]
        for index, bound in sorted(guards, key=lambda g: bool(free_vars(g[0]) & lanes)):
            if reduces or not (free_vars(index) & over):
                stmt = If(index < bound, stmt)
        return stmt


def _each(loops: list[Loop], stmt: Stmt) -> Stmt:
    """The statement for every element of some loops that add nothing up."""
    for loop in reversed(loops):
        stmt = For(loop.var, loop.extent, stmt, loop.kind)
    return stmt
