"""What accumulates in a register is one expression: the same bits, nothing seen is lost."""

from __future__ import annotations

import numpy as np
import pytest

from sterna.base.dtype import F32, I32
from sterna.codegen.folded import DEEPEST, folded
from sterna.ir.expr import Buffer, Var, fma, wrap
from sterna.ir.interpret import evaluate_primfunc
from sterna.ir.loop import Alloc, For, PrimFunc, Stmt, Store, seq, store

X = Buffer("x", F32, (wrap(64),))
Y = Buffer("y", F32, (wrap(4),))
ACC = Buffer("acc", F32, (wrap(4),), "register")
OTHER = Buffer("other", F32, (wrap(4),), "register")
ZERO = Var("zero", I32, 0)


def add(to: int, k: int) -> Stmt:
    return store(ACC, to, fma(X[k], X[k + 1], ACC[to]))


def results(stores: list[Store]) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal(64).astype(np.float32)
    arrays = {X: x, Y: np.full(4, np.nan, np.float32)}
    zeros = [store(b, i, 0.0) for b in (ACC, OTHER) for i in range(4)]
    ends = [store(Y, i, ACC[i] + OTHER[i] * 3.0) for i in range(4)]
    body = For(ZERO, wrap(1), Alloc(ACC, Alloc(OTHER, seq(*zeros, *stores, *ends))))
    evaluate_primfunc(PrimFunc("f", (X, Y), (), body), arrays, {})
    return np.concatenate([arrays[X], arrays[Y]])


def checked(*stmts: Stmt) -> list[Store]:
    """The stores folded, with the same numbers in memory at the end."""
    stores = [s for s in stmts if isinstance(s, Store)]
    new = folded(stores, {ACC, OTHER})
    assert np.array_equal(results(new), results(stores))
    return new


def test_sums_side_by_side_become_one_store_each() -> None:
    assert len(checked(*(add(i, 2 * k) for k in range(8) for i in range(4)))) == 4


def test_no_value_is_deeper_than_parsers_bear() -> None:
    assert len(checked(*(add(0, k) for k in range(DEEPEST + 1)))) == 2


@pytest.mark.parametrize(
    "between",
    [
        store(OTHER, 0, ACC[0]),
        store(OTHER, 0, ACC[ZERO]),  # who knows which
        store(Y, 0, ACC[0] * 2.0),
        store(X, 0, 5.0),  # the sum so far reads it
        store(ACC, ZERO, 5.0),
    ],
)
def test_what_is_seen_or_changes_in_between_stays(between: Stmt) -> None:
    assert len(checked(add(0, 0), between, add(0, 4))) == 3


def test_a_register_read_by_a_sum_is_read_before_it_changes() -> None:
    first = store(ACC, 0, fma(OTHER[1], X[1], ACC[0]))
    assert len(checked(store(OTHER, 1, X[3]), first, store(OTHER, 1, 7.0), add(0, 4))) == 4


def test_a_value_used_twice_is_computed_once() -> None:
    assert len(checked(add(0, 0), store(ACC, 0, ACC[0] * ACC[0]))) == 2
