"""Values that neighbouring threads hand to each other in registers, where their loop asks for it.

In: the thread loops of a work group, and how many threads surely run together there. Out: the same
loops, in which a load of what the thread with another number keeps, `x[r, t ^ distance]`, is a
variable, and the Exchanges that give the variables their values before the loop's turns begin. What
was shared memory becomes each thread's own, without a barrier. The loop program stays what it is:
its meaning does not tell who hands a value to whom, so the bits are the same either way.

Only distances inside the number that the target promises are handed over, whatever more a device
has. Threads are taken to run together in the order of their numbers, as groups of one dimension do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sterna.base.dtype import F32
from sterna.ir.expr import Binary, Buffer, Expr, Load, Var, const_value
from sterna.ir.loop import Alloc, For, Let, Stmt, Store
from sterna.ir.rewrite import free_vars, rename_buffers, rewrite, visit

Nest = tuple[For, ...]  # thread loops directly inside each other


@dataclass(frozen=True, slots=True)
class Exchange:
    """`var` = the f32 at `index` of its own `buffer` in the thread at this distance.

    Distances are powers of two, differences of one bit between the numbers of two threads.
    """

    var: Var
    buffer: Buffer
    index: tuple[Expr, ...]
    distance: int


@dataclass(frozen=True, slots=True)
class Handed:
    """`body` with `own` instead of what was shared; `exchanges` by the first variable of a nest."""

    body: Stmt
    own: Buffer
    exchanges: dict[Var, tuple[Exchange, ...]]


def handed_over(body: Stmt, nests: Sequence[Nest], lanes: int) -> Iterator[Buffer]:
    """The shared buffers whose threads take values only from others within `lanes` of them."""
    for node in visit(body):
        if isinstance(node, Alloc) and _is_handed(node.buffer, nests, lanes):
            yield node.buffer


def in_registers(body: Stmt, nests: Sequence[Nest], buffer: Buffer) -> Handed:
    """The loops with `buffer` in registers; it is one of `handed_over`."""
    own = Buffer(buffer.name, buffer.dtype, buffer.shape, "register")
    given: dict[Var, tuple[Exchange, ...]] = {}
    new: dict[For, For] = {}
    for nest in nests:
        loop, asked = _without_loads(nest, buffer, own)
        if asked:
            new[nest[0]], given[nest[0].var] = loop, tuple(asked)

    def rule(stmt: Stmt) -> Stmt:
        return new.get(stmt, stmt) if isinstance(stmt, For) else stmt

    # Loops are looked up before anything below them changes, and only then is the buffer renamed.
    return Handed(rename_buffers(rewrite(body, stmt_rule=rule), {buffer: own}), own, given)


def _without_loads(nest: Nest, buffer: Buffer, own: Buffer) -> tuple[For, list[Exchange]]:
    thread = nest[-1].var
    asked: dict[tuple[tuple[Expr, ...], int], Exchange] = {}

    def rule(e: Expr) -> Expr:
        if not isinstance(e, Load) or e.buffer is not buffer:
            return e
        index, distance = _taken(e.index, thread) or (e.index, 0)
        if not distance:
            return e
        found = Exchange(Var(f"{buffer.name}_there", F32), own, index, distance)
        return asked.setdefault((index, distance), found).var

    body: Stmt = rewrite(nest[-1].body, rule)
    for loop in reversed(nest):
        body = For(loop.var, loop.extent, body, loop.kind)
    assert isinstance(body, For)
    return body, list(asked.values())


def _is_handed(buffer: Buffer, nests: Sequence[Nest], lanes: int) -> bool:
    """Whether threads touch their own place alone, but for loads at distances within `lanes`."""
    if buffer.scope != "shared" or buffer.dtype != F32:
        return False
    sizes, farthest = set[tuple[int, ...]](), 0
    for nest in nests:
        inside = list(visit(nest[-1].body))
        uses = [n for n in inside if isinstance(n, Load | Store) and n.buffer is buffer]
        if not uses:
            continue
        extents = tuple(int(const_value(loop.extent) or 0) for loop in nest)
        bound = {n.var for n in inside if isinstance(n, For | Let)}
        sizes.add(extents)
        stored = any(isinstance(n, Store) for n in uses)
        for use in uses:
            taken = _taken(use.index, nest[-1].var)
            if taken is None:
                return False
            index, distance = taken
            early = not distance or not any(free_vars(i) & bound for i in index)
            apart = not distance or (isinstance(use, Load) and not stored)
            if not (early and apart) or (distance and extents[-1] % (2 * distance)):
                return False
            farthest = max(farthest, distance)
    return len(sizes) == 1 and 0 < 2 * farthest <= lanes


def _taken(index: tuple[Expr, ...], thread: Var) -> tuple[tuple[Expr, ...], int] | None:
    """(the thread's own index, how far away the one is that keeps what is read); None: neither."""
    where = [d for d, e in enumerate(index) if thread in free_vars(e)]
    if len(where) != 1:
        return None
    at = index[where[0]]
    own = (*index[: where[0]], thread, *index[where[0] + 1 :])
    if at is thread:
        return own, 0
    if isinstance(at, Binary) and at.op == "^" and at.a is thread:
        distance = const_value(at.b)
        if distance is not None and distance > 0 and int(distance).bit_count() == 1:
            return own, int(distance)
    return None
