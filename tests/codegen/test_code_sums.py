"""Sums of codes: zeros and powers of two leave the codes, and the numbers stay what they were."""

from __future__ import annotations

import numpy as np
import pytest

from sterna.base.dtype import F32, I32, U32
from sterna.codegen.write_out import write_out
from sterna.ir.expr import Binary, Buffer, Intrin, Var, cast, fma, wrap
from sterna.ir.interpret import evaluate_primfunc
from sterna.ir.loop import Alloc, For, ForKind, PrimFunc, Stmt, seq, store
from sterna.ir.rewrite import visit

ROWS, WORDS = 4, 9


def product(bits: int, zero: float, tokens: int) -> tuple[PrimFunc, dict[Buffer, np.ndarray]]:
    """Rows of packed codes less their zero times x, and random arrays for it."""
    many = 32 // bits
    x = Buffer("x", F32, (wrap(tokens), wrap(WORDS * many)))
    w = Buffer("w", U32, (wrap(WORDS), wrap(ROWS)))
    y = Buffer("y", F32, (wrap(tokens), wrap(ROWS)))
    total = Buffer("total", F32, (wrap(tokens), wrap(ROWS)), "register")
    m, r, k, c = (Var(name, I32, 0) for name in ("m", "r", "k", "c"))
    code = cast(F32, (w[k, r] >> cast(U32, c * bits)) & ((1 << bits) - 1)) - zero
    add: Stmt = store(total, (m, r), fma(x[m, k * many + c], code, total[m, r]))
    for var, extent in ((c, many), (m, tokens), (r, ROWS)):
        add = For(var, wrap(extent), add, ForKind.UNROLL)

    def each(inner: Stmt) -> Stmt:
        return For(m, wrap(tokens), For(r, wrap(ROWS), inner))

    sums = seq(each(store(total, (m, r), 0.0)), For(k, wrap(WORDS), add))
    body = Alloc(total, seq(sums, each(store(y, (m, r), total[m, r]))))
    draw = np.random.default_rng(0)
    arrays = {
        x: draw.standard_normal((tokens, WORDS * many)).astype(np.float32),
        w: draw.integers(0, 2**32, (WORDS, ROWS), dtype=np.uint32),
        y: np.full((tokens, ROWS), np.nan, np.float32),
    }
    return PrimFunc("product", (x, w, y), (), body), arrays


def results(func: PrimFunc, arrays: dict[Buffer, np.ndarray]) -> np.ndarray:
    copies = {buffer: array.copy() for buffer, array in arrays.items()}
    evaluate_primfunc(func, copies, {})
    return copies[func.params[-1]]


def written(func: PrimFunc) -> PrimFunc:
    return PrimFunc(func.name, func.params, (), write_out(func.body))


@pytest.mark.parametrize(("bits", "zero"), [(2, 1.0), (4, 0.0), (4, 7.0), (8, 127.0)])
def test_sums_are_close_and_a_row_of_many_has_the_bits_of_one(bits: int, zero: float) -> None:
    func, arrays = product(bits, zero, 3)
    plain, new = results(func, arrays), results(written(func), arrays)
    assert np.abs(new - plain).max() <= 1e-5 * np.abs(plain).max()
    single, few = product(bits, zero, 1)
    x, w, y = single.params
    for row in range(3):
        few[x], few[w] = arrays[func.params[0]][row : row + 1], arrays[func.params[1]]
        assert np.array_equal(results(written(single), few)[0], new[row])
    assert np.isnan(few[y]).all(), "copies were computed"


def test_codes_are_converted_and_nothing_else() -> None:
    func, _ = product(4, 7.0, 1)
    made = [n for n in visit(written(func).body) if isinstance(n, Intrin) and n.name == "fma"]
    assert len(made) == ROWS * 8
    assert not any(isinstance(n.args[1], Binary) for n in made)
