"""Loops written out: the same numbers, registers by number, and memory read once."""

from __future__ import annotations

import numpy as np
import pytest

from sterna.base.dtype import F32, I32, U32
from sterna.codegen.write_out import FEW, write_out
from sterna.ir.expr import Buffer, Load, Var, cast, fma, wrap
from sterna.ir.interpret import evaluate_primfunc
from sterna.ir.loop import Alloc, For, ForKind, Let, PrimFunc, Stmt, seq, store
from sterna.ir.rewrite import visit

ROWS, CODES = 4, 7  # fewer than a turn: these keep what is their own
W = Buffer("w", U32, (wrap(3), wrap(ROWS)))
X = Buffer("x", F32, (wrap(3 * CODES),))
Y = Buffer("y", F32, (wrap(ROWS),))


def dot(rows: int = ROWS, kind: ForKind = ForKind.UNROLL) -> Stmt:
    """Rows of packed codes times x, with a sum for each row in a register."""
    total = Buffer("total", F32, (wrap(rows),), "register")
    i, r, k, c = (Var(name, I32, 0) for name in ("i", "r", "k", "c"))
    code = cast(F32, (W[k, r % ROWS] >> cast(U32, c * 4)) & 15)
    add = store(total, r, fma(X[k * CODES + c], code, total[r]))
    each = For(c, wrap(CODES), For(r, wrap(rows), add, kind), kind)
    return Alloc(
        total,
        seq(
            For(i, wrap(rows), store(total, i, 0.0)),
            For(k, wrap(3), each),
            For(r, wrap(ROWS), store(Y, r, total[r])),
        ),
    )


def results(body: Stmt) -> np.ndarray:
    draw = np.random.default_rng(0)
    arrays = {
        W: draw.integers(0, 2**32, (3, ROWS), dtype=np.uint32),
        X: draw.standard_normal(3 * CODES).astype(np.float32),
        Y: np.full(ROWS, np.nan, np.float32),
    }
    evaluate_primfunc(PrimFunc("dot", (W, X, Y), (), body), arrays, {})
    return arrays[Y]


def test_numbers_stay_the_same() -> None:
    assert np.array_equal(results(write_out(dot())), results(dot()))


def test_words_are_read_once_and_registers_have_numbers() -> None:
    body = write_out(dot())
    named = [n.value for n in visit(body) if isinstance(n, Let)]
    assert sum(isinstance(v, Load) and v.buffer is W for v in named) == ROWS
    assert sum(isinstance(v, Load) and v.buffer is X for v in named) == CODES
    loads = [n for n in visit(body) if isinstance(n, Load)]
    assert sum(n.buffer in (W, X) for n in loads) == ROWS + CODES
    assert [n.var.name for n in visit(body) if isinstance(n, For)] == ["k"]


def test_what_the_program_writes_is_read_each_time() -> None:
    again = seq(store(X, 0, X[1] + 1.0), store(X, 1, X[1] * 2.0), store(Y, 0, X[1]))
    assert not any(isinstance(n, Let) for n in visit(write_out(again)))


@pytest.mark.parametrize(("rows", "written"), [(FEW, True), (FEW + 1, False)])
def test_long_loops_stay_loops(rows: int, written: bool) -> None:
    total = Buffer("total", F32, (wrap(rows),), "register")
    i = Var("i", I32, 0)
    body = write_out(Alloc(total, For(i, wrap(rows), store(total, i, 0.0))))
    assert any(isinstance(n, For) for n in visit(body)) is not written
