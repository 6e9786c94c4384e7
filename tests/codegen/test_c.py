"""Rendered kernels do what the interpreter does, to the bit; what C cannot do is refused."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
from kernel_library import KernelLibrary
from random_kernels import N, arrays, kernel

from sterna.base.dtype import BF16, F16, F32, F64, I64
from sterna.base.errors import CodegenError
from sterna.base.sizes import evaluate
from sterna.codegen.c import name, render
from sterna.ir.evaluate import evaluate_primfunc
from sterna.ir.expr import Binary, Buffer, Cast, Expr, Var, wrap
from sterna.ir.loop import Alloc, For, ForKind, PrimFunc, Stmt, Store, Sync, seq
from sterna.ir.printer import to_text

TESTS = Path(__file__).resolve().parents[1]
BATCH = 40


@pytest.mark.parametrize("seed", range(2))
def test_random_kernels_agree_with_the_interpreter(seed: int) -> None:
    draw = Random(seed)
    funcs = [kernel(draw, f"k{i}") for i in range(BATCH)]
    library = KernelLibrary(funcs)
    for func in funcs:
        for n in (1, 16, 31):
            expected, found = arrays(func, n, n), arrays(func, n, n)
            evaluate_primfunc(func, expected, {N: n})
            library.run(func.name, found, {N: n})
            out = func.params[-1]
            same = found[out].tobytes() == expected[out].tobytes()
            assert same, f"{to_text(func)}\n{found[out]}\n{expected[out]}"


def test_the_random_kernels_reach_what_they_should() -> None:
    draw = Random(0)
    text = "\n".join(render(kernel(draw, f"k{i}")).text for i in range(2 * BATCH))
    wanted = [f"splat_f32x{lanes}" for lanes in (4, 8, 16)]
    wanted += ["floor_div(", "floor_modx", "choose_", "f32_from_bf16x", "f16_from_f32x", "fma_f32x"]
    wanted += ["thread_scratch", "_Alignas", "kept_0", "min_i32x", "max_u32x", "lane_numbers", "? "]
    assert [w for w in wanted if w not in text] == []


def loop(extent: int, body: Stmt, var: Var, kind: ForKind = ForKind.SERIAL) -> For:
    return For(var, wrap(extent), body, kind)


LANE = Var("i", lo=0, hi=7)
X, Y = Buffer("x", F32, (wrap(8),)), Buffer("y", F32, (wrap(8),))


def run_one(func: PrimFunc, **given: np.ndarray) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    KernelLibrary([func]).run(func.name, {p: given[p.name] for p in func.params})
    return given


def test_phases_and_their_items() -> None:
    n = Var("n", lo=1)
    a, b = Buffer("a", F32, (n,)), Buffer("b", F32, (n * 2,))
    one, two = Var("i", lo=0), Var("i", lo=0)
    first = For(one, n, Store(a, (one,), wrap(2.0)), ForKind.PARALLEL)
    second = For(two, n * 2, Store(b, (two,), a[two // 2]), ForKind.PARALLEL)
    last = Store(b, (wrap(0),), wrap(7.0))
    source = render(PrimFunc("f", (a, b), (n,), seq(first, second, last)))
    assert source.phases == ("f_0", "f_1", "f_2")
    assert source.items == ("n", "n * 2", "1")
    assert source.counts == ("n", "(n * 2)", "1")
    assert "struct f_args { Pool *pool; f32 *a_; f32 *b; i64 n; };" in source.text


def test_items_are_a_formula_whatever_c_makes_of_it() -> None:
    n, i = Var("n", lo=1), Var("i", lo=0)
    y = Buffer("y", F32, ((n + 3) // 4,))
    source = render(
        PrimFunc("f", (y,), (n,), For(i, (n + 3) // 4, Store(y, (i,), wrap(1.0)), ForKind.PARALLEL))
    )
    assert [evaluate(items, {"n": 5}) for items in source.items] == [2]
    assert source.counts != source.items  # a shift, which the formulas do not know


def test_scratch_memory_is_shared_by_what_is_not_alive_together() -> None:
    big = [Buffer(name, F32, (wrap(1000),), "scratch") for name in ("p", "q", "r")]

    def use(buffer: Buffer) -> Stmt:
        return loop(8, Store(buffer, (LANE,), X[LANE]), LANE)

    p, q, r = big
    body = seq(Alloc(p, Alloc(q, seq(use(p), use(q)))), Alloc(r, use(r)))
    wrapped = For(Var("w", lo=0), wrap(4), body, ForKind.PARALLEL)
    source = render(PrimFunc("f", (X,), (), wrapped))
    assert 2 * 4000 <= source.scratch_bytes < 3 * 4000
    assert source.scratch_bytes % 64 == 0


def test_large_arrays_stay_off_the_stack() -> None:
    local = Buffer("t", F32, (wrap(5000),), "local")
    body = Alloc(local, loop(8, Store(local, (LANE,), X[LANE]), LANE))
    source = render(PrimFunc("f", (X,), (), body))
    assert source.scratch_bytes >= 20000
    assert "_Alignas" not in source.text


def test_names_that_c_has_taken() -> None:
    func = PrimFunc(
        "for", (Buffer("7.ünder", F32, (wrap(8),)), Buffer("int", F32, (wrap(8),))), (), Sync()
    )
    x, y = func.params
    int_, begin = Var("int", lo=0, hi=7), Var("begin", lo=0, hi=7)
    body = seq(
        loop(8, Store(y, (int_,), x[int_]), int_),
        loop(8, Store(y, (begin,), y[begin] + 1.0), begin),
    )
    found = {x: np.arange(8, dtype=np.float32), y: np.zeros(8, np.float32)}
    renamed = PrimFunc("for", func.params, (), body)
    KernelLibrary([renamed]).run("for", found)
    assert found[y].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [name(t) for t in ("a.b", "", "9x", "while")] == ["a_b", "_", "_9x", "while_"]


def test_special_constants() -> None:
    values = [float("inf"), float("-inf"), float("nan"), -0.0, 1e-45, 3.4028235e38, 0.1, -2.5e-8]
    body = seq(*(Store(Y, (wrap(i),), wrap(v)) for i, v in enumerate(values)))
    found = run_one(PrimFunc("f", (Y,), (), body), y=np.zeros(8, np.float32))["y"]
    assert found.tobytes() == np.array(values, np.float32).tobytes()


def test_a_scatter_and_a_gather() -> None:
    wide = Buffer("wide", F32, (wrap(32),))
    body = seq(
        loop(8, Store(wide, (LANE * 3 + 1,), X[wrap(7) - LANE] * 2.0), LANE, ForKind.VECTOR),
        loop(
            8, Store(Y, (LANE,), wide[LANE * 3 + 1] + wide[LANE // 2 * 6 + 1]), LANE, ForKind.VECTOR
        ),
    )
    x = np.arange(8, dtype=np.float32)
    given = {"wide": np.zeros(32, np.float32), "x": x, "y": np.zeros(8, np.float32)}
    y = run_one(PrimFunc("f", (X, Y, wide), (), body), **given)["y"]
    turned = x[::-1] * 2
    assert y.tolist() == (turned + turned[np.arange(8) // 2 * 2]).tolist()


def vector(value: Expr, out: Buffer = Y) -> Stmt:
    return loop(8, Store(out, (LANE,), value), LANE, ForKind.VECTOR)


HALF = Buffer("half", F16, (wrap(8),))
WIDE = Buffer("wide", I64, (wrap(8),))
M = Var("m", lo=1)
REFUSED = {
    "no direct conversion": vector(Cast(BF16, HALF[LANE]), HALF),
    "convert first": loop(8, Store(HALF, (LANE,), HALF[LANE] + HALF[LANE]), LANE),
    "f64": loop(8, Store(Buffer("x", F64, (wrap(8),)), (LANE,), wrap(1.0, F64)), LANE),
    "'//' of f32": loop(8, Store(Y, (LANE,), Binary("//", X[LANE], X[LANE])), LANE),
    "8 lanes of i64": vector(WIDE[LANE], WIDE),
    "power of two": loop(6, Store(Y, (LANE,), X[LANE]), LANE, ForKind.VECTOR),
    "known at compile time": For(LANE, M, Store(Y, (LANE,), X[LANE]), ForKind.UNROLL),
    "not outermost": loop(8, loop(8, Store(Y, (LANE,), X[LANE]), LANE, ForKind.PARALLEL), Var("j")),
    "Sync": Sync(),
    "not bound": Store(Y, (wrap(0),), X[Var("lost")]),
    "not known": Store(Y, (wrap(0),), Buffer("lost", F32, (wrap(8),))[0]),
    "stores to one element": loop(8, Store(Y, (wrap(3),), X[LANE]), LANE, ForKind.VECTOR),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_c_cannot_do_is_refused(reason: str) -> None:
    body = REFUSED[reason]
    dims = (M,) if reason == "known at compile time" else ()
    params = (X, Y, HALF, WIDE)
    with pytest.raises(CodegenError, match=reason):
        render(PrimFunc("f", params, dims, body))
