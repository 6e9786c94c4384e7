"""Decide ahead of time where every intermediate tensor lies: one arena, offsets known at compile.

Each value lives from the launch that makes it to the last that reads it; values that are never
alive together share memory. Sizes are taken at the upper bounds of the dims, so nothing grows
at run time. What a repeat carries from one layer to the next is one place, written in turn.
Placement is first fit over values sorted by size (Pisarchyk and Lee 2020, arXiv:2001.03288).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sterna.base.errors import CompileError
from sterna.ir.expr import Buffer
from sterna.ir.graph import Binding, Function, Value
from sterna.ir.simplify import bounds

ALIGN = 64
SLACK = 256  # readable bytes after every tensor, for the tails of vector loops

Place = Value | Buffer  # an intermediate tensor, or a kernel's workspace


@dataclass(frozen=True, slots=True)
class Use:
    """One launch: what it reads, writes, and changes in place (result -> argument)."""

    reads: tuple[Place, ...]
    writes: tuple[Place, ...]
    aliases: Mapping[Value, Value]


@dataclass(frozen=True, slots=True)
class Run:
    """`function` run `count` times with arguments and results as in `binding`."""

    binding: Binding
    function: Function
    uses: tuple[Use, ...]


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Where places lie. `storage` maps every place to the one that stands for its memory."""

    storage: Mapping[Place, Place]
    offsets: Mapping[Place, int]
    total: int

    def home(self, place: Place) -> Place:
        return self.storage.get(place, place)


def plan_memory(
    timeline: Sequence[Use | Run], fixed: Sequence[Value], align: int = ALIGN
) -> MemoryPlan:
    """Offsets, multiples of `align`, for all places of an entry point but the `fixed` ones.

    Those are its inputs, its outputs and the cache.

    Raises CompileError where a value is read after its memory was given to another: an argument
    changed in place, or carried through a repeat.
    """
    _check_spent(timeline)
    planner = _Planner()
    for item in timeline:
        planner.unite(item)
    for item in timeline:
        planner.live(item)
    outside = {planner.find(v) for v in fixed}
    spans = {p: s for p, s in planner.spans.items() if p not in outside}
    offsets, total = _first_fit(spans, align)
    storage = {p: planner.find(p) for p in planner.parent}
    return MemoryPlan(storage, offsets, total)


@dataclass(slots=True)
class _Planner:
    parent: dict[Place, Place] = field(default_factory=dict)
    spans: dict[Place, tuple[int, int]] = field(default_factory=dict)
    now: int = 0

    def find(self, place: Place) -> Place:
        while place in self.parent and self.parent[place] is not place:
            place = self.parent[place]
        return place

    def _same(self, a: Place, b: Place) -> None:
        """a lies where b does."""
        self.parent.setdefault(b, b)
        root_a, root_b = self.find(a), self.find(b)
        self.parent[root_a] = root_b

    def unite(self, item: Use | Run) -> None:
        if isinstance(item, Use):
            for result, argument in item.aliases.items():
                self._same(result, argument)
            return
        for use in item.uses:
            self.unite(use)
        function, binding = item.function, item.binding
        for inner, outer in zip(function.params, binding.call.args, strict=True):
            self._same(inner, outer)
        for carried, result in zip(function.params, function.results, strict=False):
            _check_carried(item, carried, result)
            self._same(result, carried)
        for outer, result in zip(binding.outs, function.results, strict=True):
            self._same(outer, result)

    def live(self, item: Use | Run) -> None:
        if isinstance(item, Use):
            for place in (*item.reads, *item.writes):
                self._touch(place, self.now, self.now)
            self.now += 1
            return
        first = self.now
        for use in item.uses:
            self.live(use)
        for outer in item.binding.call.args:
            self._touch(outer, first, self.now - 1)

    def _touch(self, place: Place, lo: int, hi: int) -> None:
        root = self.find(place)
        a, b = self.spans.get(root, (lo, hi))
        self.spans[root] = (min(a, lo), max(b, hi))


def _check_spent(timeline: Sequence[Use | Run]) -> None:
    spent: set[Place] = set()
    for item in timeline:
        if isinstance(item, Use):
            read, changed = item.reads, tuple(item.aliases.values())
        else:
            _check_spent(item.uses)
            read, changed = item.binding.call.args, _carried(item)
        for place in read:
            if place in spent or (place in changed and read.count(place) > 1):
                raise CompileError(
                    f"{place.name} is read after its memory was given to another value; "
                    "what is changed in place or carried through a repeat must be read no more"
                )
        spent.update(changed)


def _carried(run: Run) -> tuple[Value, ...]:
    """Arguments whose memory a repeat writes: those that every layer gives anew."""
    triples = zip(run.binding.call.args, run.function.params, run.function.results, strict=False)
    return tuple(outer for outer, param, result in triples if result is not param)


def _check_carried(run: Run, param: Value, result: Value) -> None:
    """A layer's result may take its input's place once that was read for the last time."""
    if result is not param and result in run.function.params:
        raise CompileError(
            f"{run.function.name} gives its input {result.name} on as {param.name}; "
            "a carried value must keep its place"
        )
    written = [i for i, use in enumerate(run.uses) if result in use.writes]
    read = [i for i, use in enumerate(run.uses) if param in use.reads]
    if written and read and max(read) >= min(written):
        raise CompileError(
            f"{run.function.name} reads its input {param.name} while it writes its result; "
            "carried values must be read before the last kernel of a layer"
        )


def nbytes(place: Place) -> int:
    """Bytes of a place at the upper bounds of its dims."""
    size = place.dtype.bytes
    for dim in place.shape:
        hi = bounds(dim)[1]
        if hi is None:
            raise CompileError(f"{place.name} has a dim without upper bound")
        size *= int(hi)
    return size


def _first_fit(spans: Mapping[Place, tuple[int, int]], align: int) -> tuple[dict[Place, int], int]:
    placed: list[tuple[int, int, tuple[int, int]]] = []  # offset, end, span
    offsets: dict[Place, int] = {}
    for place in sorted(spans, key=lambda p: (-nbytes(p), spans[p], p.name)):
        size = -(-(nbytes(place) + SLACK) // align) * align
        at = 0
        for lo, hi, span in sorted(placed):
            overlaps = span[0] <= spans[place][1] and spans[place][0] <= span[1]
            if overlaps and at < hi and lo < at + size:
                at = hi
        offsets[place] = at
        placed.append((at, at + size, spans[place]))
    return offsets, max((hi for _, hi, _ in placed), default=0)
