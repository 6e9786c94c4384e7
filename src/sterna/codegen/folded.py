"""Additions to one register, one after another, as one nested expression.

In: stores that follow each other. Out: fewer of equal meaning: where a value reads a register that
a store shortly before wrote, and nobody else looks at it in between, that store's value stands in
its place. The operations and their order stay, so every bit does; what is saved is a store and a
load for each, which compilers that keep arrays in memory, under a mask, do not save themselves.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field

from sterna.ir.expr import Buffer, Expr, const_value
from sterna.ir.loop import Store
from sterna.ir.rewrite import loads, replace_loads

DEEPEST = 32  # values inside each other: parsers have limits

Place = tuple[Buffer, tuple[int, ...] | None]  # None: somewhere in it


def folded(run: Sequence[Store], registers: Set[Buffer]) -> list[Store]:
    """The stores with what accumulates in a register folded."""
    waiting = _Waiting()
    for store in run:
        place = _place(store.buffer, store.index)
        reads = [p for e in (*store.index, store.value) for p in _read(e)]
        mine = waiting.stores.get(place)
        once = reads.count(place) == 1 and not any(_read(i) for i in store.index)
        new, depth, below = store, 1, frozenset(_read(store.value))
        if mine is not None and once and (store.buffer, None) not in reads:
            depth = waiting.depths[mine] + 1
        if mine is not None and depth > 1:
            new = Store(store.buffer, store.index, _inside(store.value, place, waiting.done[mine]))
            waiting.done[mine] = None
            reads.remove(place)
            below = below - {place} | waiting.reads[mine]
        for read in reads:
            waiting.looked_at(read)
        waiting.written(place)
        keeps = place[1] is not None and store.buffer in registers
        waiting.add(new, place if keeps else None, depth, below)
    return [store for store in waiting.done if store is not None]


@dataclass(slots=True)
class _Waiting:
    """Stores so far, None for those folded away, and which of them may still be."""

    done: list[Store | None] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    reads: list[frozenset[Place]] = field(default_factory=list)  # of their values
    stores: dict[Place, int] = field(default_factory=dict)

    def add(self, store: Store, place: Place | None, depth: int, reads: frozenset[Place]) -> None:
        if place is not None:
            self.stores.pop(place, None)
            if depth < DEEPEST:
                self.stores[place] = len(self.done)
        self.done.append(store)
        self.depths.append(depth)
        self.reads.append(reads)

    def looked_at(self, read: Place) -> None:
        """Someone reads there: what was stored has to be there."""
        for place in [p for p in self.stores if _touch(p, read)]:
            del self.stores[place]

    def written(self, target: Place) -> None:
        """A value that reads there cannot be computed later any more."""
        for place, at in list(self.stores.items()):
            if place != target and _among(target, self.reads[at]):
                del self.stores[place]
        if target[1] is None:
            self.looked_at(target)


def _inside(value: Expr, place: Place, before: Store | None) -> Expr:
    assert before is not None
    stored = before.value
    return replace_loads(value, lambda n: stored if _place(n.buffer, n.index) == place else None)


def _place(buffer: Buffer, index: tuple[Expr, ...]) -> Place:
    numbers = [const_value(i) for i in index]
    known = tuple(int(n) for n in numbers if n is not None)
    return buffer, known if len(known) == len(numbers) else None


def _read(e: Expr) -> list[Place]:
    return [_place(n.buffer, n.index) for n in loads(e)]


def _among(place: Place, read: frozenset[Place]) -> bool:
    """Whether any of them touches the place."""
    if place[1] is None:
        return any(_touch(place, r) for r in read)
    return place in read or (place[0], None) in read


def _touch(a: Place, b: Place) -> bool:
    return a[0] is b[0] and (a[1] is None or b[1] is None or a[1] == b[1])
