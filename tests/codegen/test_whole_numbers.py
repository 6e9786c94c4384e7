"""Without slow operations on whole numbers: codes keep every bit, indices their values."""

from __future__ import annotations

import numpy as np
import pytest

from sterna.base.dtype import F32, I32, U32
from sterna.codegen.whole_numbers import by_masks, hoisted
from sterna.ir.expr import Binary, Buffer, Expr, Var, cast, wrap
from sterna.ir.interpret import evaluate_primfunc
from sterna.ir.loop import For, ForKind, Let, PrimFunc, Stmt, store
from sterna.ir.rewrite import visit

WORDS = 4096
W = Buffer("w", U32, (wrap(WORDS),))
Y = Buffer("y", F32, (wrap(WORDS),))
AT = Var("i", I32, 0, WORDS - 1)


def shifts(stmt: Stmt) -> int:
    return sum(isinstance(n, Binary) and n.op == ">>" for n in visit(stmt))


def codes(code: Expr) -> Stmt:
    return For(AT, wrap(WORDS), store(Y, AT, cast(F32, code)))


def results(body: Stmt) -> np.ndarray:
    words = np.random.default_rng(0).integers(0, 2**32, WORDS, dtype=np.uint32)
    arrays = {W: words, Y: np.full(WORDS, np.nan, np.float32)}
    evaluate_primfunc(PrimFunc("f", (W, Y), (), body), arrays, {})
    return arrays[Y].view(np.uint32)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_every_code_of_a_word_has_the_same_bits(bits: int, signed: bool) -> None:
    for shift in range(bits, 32 - bits + 1, bits):
        code = (W[AT] >> shift) & ((1 << bits) - 1)
        plain = codes(cast(I32, code) if signed else code)
        assert shifts(by_masks(plain)) == 0
        assert np.array_equal(results(by_masks(plain)), results(plain))


def test_the_uppermost_code_needs_no_mask_to_be_known() -> None:
    plain = codes(W[AT] >> 28)
    assert shifts(by_masks(plain)) == 0
    assert np.array_equal(results(by_masks(plain)), results(plain))


@pytest.mark.parametrize("code", [(W[AT] >> 4) & 5, W[AT] >> 4, (W[AT] >> cast(U32, AT % 8)) & 15])
def test_what_is_no_short_code_at_a_known_place_stays(code: Expr) -> None:
    assert by_masks(plain := codes(code)) is plain


def test_an_index_is_divided_outside_the_loops_that_do_not_change_it() -> None:
    g, k = Var("g", I32, 0, 7), Var("k", I32, 0, 15)
    index = (AT // 16) * 16 + (AT % 16 + g * 0) + k // 16
    inner = For(g, wrap(8), For(k, wrap(16), store(Y, AT, cast(F32, W[index]))))
    body = For(AT, wrap(WORDS), inner, ForKind.PARALLEL)
    new = hoisted(body)
    named = [n.value for n in visit(new) if isinstance(n, Let)]
    assert {e.op for e in named if isinstance(e, Binary)} == {"//", "%"}
    assert isinstance(new, For)
    assert isinstance(new.body, Let)
    rest = [n for n in visit(new) if isinstance(n, Binary) and n.op in ("//", "%")]
    assert len(rest) == 3  # the two that have names, and that of the loop's own number
    assert np.array_equal(results(new), results(body))


def test_an_index_from_memory_is_read_where_it_was() -> None:
    k = Var("k", I32, 0, 15)
    at = cast(I32, W[AT]) // 16
    body = For(AT, wrap(WORDS), For(k, wrap(16), store(Y, AT, cast(F32, at * 0 + k))))
    assert not any(isinstance(n, Let) for n in visit(hoisted(body)))
