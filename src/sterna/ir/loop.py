"""In which order, where: loops over scalar statements, what schedules produce and codegen prints.

    stmt := For(var, extent, body, kind) | Store(buffer, index, value) | Let(var, value, body)
          | If(cond, then, orelse) | Alloc(buffer, body) | Seq(stmts) | Sync

A program is scalar throughout: a VECTOR or UNROLL loop says how the renderer may execute it, not
what it means, so the interpreter runs every loop as a loop. Work items of a PARALLEL loop are
independent and may run on any thread; a Sync separates work items of one group (GPUs).
"""

from __future__ import annotations

from enum import Enum

from sterna.ir.expr import Buffer, Expr, ExprLike, Var, node, wrap


class ForKind(Enum):
    """How a loop runs. PARALLEL: over threads; VECTOR: as one SIMD operation."""

    SERIAL = "serial"
    PARALLEL = "parallel"
    VECTOR = "vector"
    UNROLL = "unroll"


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
class Sync(Stmt):
    """All work items of a group arrive before any goes on."""


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
