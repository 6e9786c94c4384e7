"""A kernel whose threads sum in halves what neighbours keep, for tests of swaps."""

from __future__ import annotations

from collections.abc import Callable

from sterna.base.dtype import F32
from sterna.ir.expr import Binary, Buffer, Expr, Var, wrap
from sterna.ir.loop import Alloc, ForKind, If, PrimFunc, Stmt, seq, store
from sterna.kernels.build import loop, parallel

ROWS, SLOTS = 5, 16
X = Buffer("x", F32, (wrap(3), wrap(ROWS), wrap(SLOTS)))
OUT = Buffer("out", F32, (wrap(3), wrap(ROWS), wrap(SLOTS)))
THREAD = ForKind.THREAD


def away(t: Expr, distance: int) -> Expr:
    return Binary("^", t, wrap(distance))


Body = Callable[[Expr, Expr], Stmt]


def slots(body: Body) -> Stmt:
    """body(row, slot) in threads, by blocks of 4 rows, the last of which is not full."""

    def block(b: Var) -> Stmt:
        def thread(r: Var) -> Stmt:
            row = b * 4 + r
            return loop("t", SLOTS, lambda t: If(row < ROWS, body(row, t)), THREAD)

        return loop("r", 4, thread, THREAD)

    return loop("b", 2, block)


def folding(name: str) -> PrimFunc:
    """out[g, r, t] = the sum of 3 * x[g, r, :], in halves."""
    lanes = [Buffer(f"lanes_{k}", F32, (wrap(ROWS), wrap(SLOTS)), "shared") for k in range(4)]

    def group(g: Var) -> Stmt:
        def fold(k: int) -> Stmt:
            def one(r: Expr, t: Expr) -> Stmt:
                total = lanes[k][r, t] + lanes[k][r, away(t, 8 >> k)]
                return store(lanes[k + 1], (r, t), total) if k < 3 else store(OUT, (g, r, t), total)

            return slots(one)

        start = slots(lambda r, t: store(lanes[0], (r, t), X[g, r, t] * 3.0))
        body = seq(start, *map(fold, range(4)))
        for buffer in lanes:
            body = Alloc(buffer, body)
        return body

    return PrimFunc(name, (X, OUT), (), parallel("g", 3, group))
