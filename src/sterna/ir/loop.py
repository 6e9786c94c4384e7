"""In which order, where: loops over scalar statements, what schedules produce and codegen prints.

    stmt := For(var, extent, body, kind) | Store(buffer, index, value) | Let(var, value, body)
          | If(cond, then, orelse) | Alloc(buffer, body) | Seq(stmts) | Sync
          | Prefetch(place)

A program is scalar throughout: a VECTOR, UNROLL or MATRIX loop says how the renderer may execute
it, not what it means, so the interpreter runs every loop as a loop. Turns of a PARALLEL loop are
independent and may run anywhere in any order. On targets with work groups such a turn is a group,
and the turns of a THREAD loop in it are the group's threads, side by side: they are independent
too, and all are done before what follows the loop begins. So a program with threads needs no
barrier to have a meaning; renderers insert them (Sync) where threads touch each other's memory.
"""

from __future__ import annotations

from enum import Enum

from sterna.ir.expr import Buffer, Expr, ExprLike, Load, Var, node, wrap


class ForKind(Enum):
    """How a loop runs. PARALLEL: over threads or work groups; VECTOR: as one SIMD operation;
    THREAD: over the threads of a work group; MATRIX: with the loops in it, the part of one thread
    in what a subgroup's matrix unit does at once."""

    SERIAL = "serial"
    PARALLEL = "parallel"
    VECTOR = "vector"
    UNROLL = "unroll"
    THREAD = "thread"
    MATRIX = "matrix"


class Stmt:
    """Base of all statements."""

    __slots__ = ()


@node
class For(Stmt):
    """Run body for var in 0..extent."""

    var: Var
    extent: Expr
    body: Stmt
    kind: ForKind = ForKind.SERIAL


@node
class Store(Stmt):
    buffer: Buffer
    index: tuple[Expr, ...]
    value: Expr


@node
class Let(Stmt):
    """Bind var to value (evaluated once) in body."""

    var: Var
    value: Expr
    body: Stmt


@node
class If(Stmt):
    cond: Expr
    then: Stmt
    orelse: Stmt | None = None


@node
class Alloc(Stmt):
    """`buffer` lives while body runs; its contents start undefined."""

    buffer: Buffer
    body: Stmt


@node
class Seq(Stmt):
    stmts: tuple[Stmt, ...]


@node
class Prefetch(Stmt):
    """`place` is read soon. Changes nothing; what no cache helps leaves it out."""

    place: Load


@node
class Sync(Stmt):
    """All threads of a group arrive before any goes on; stands between THREAD loops."""


@node
class PrimFunc:
    """A kernel: buffers in `params` order, symbolic `dims` as integers, one body.

    A body whose outermost statements are PARALLEL loops is launched over threads, one fork-join
    for each.
    """

    name: str
    params: tuple[Buffer, ...]
    dims: tuple[Var, ...]
    body: Stmt


def store(buffer: Buffer, index: ExprLike | tuple[ExprLike, ...], value: ExprLike) -> Store:
    """A Store with numbers wrapped."""
    parts = index if isinstance(index, tuple) else (index,)
    return Store(buffer, tuple(wrap(i) for i in parts), wrap(value, buffer.dtype))


def seq(*stmts: Stmt) -> Stmt:
    """Statements one after another; nested sequences are flattened."""
    flat: list[Stmt] = []
    for stmt in stmts:
        flat.extend(stmt.stmts if isinstance(stmt, Seq) else (stmt,))
    return flat[0] if len(flat) == 1 else Seq(tuple(flat))
