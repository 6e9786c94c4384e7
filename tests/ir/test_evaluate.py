"""The oracle itself, against numpy written by hand and Python integers."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from random_nodes import environments, exact, integers, words

from sterna.base.dtype import BF16, BOOL, F16, F32, I8, I32, U8, U32
from sterna.base.errors import InvalidIR
from sterna.ir.compute import MAX, SUM, Compute, Group, axis, elementwise
from sterna.ir.evaluate import (
    evaluate_compute,
    evaluate_expr,
    evaluate_group,
    evaluate_primfunc,
)
from sterna.ir.expr import (
    INTRINSICS,
    UNARY,
    Binary,
    Buffer,
    Cast,
    Const,
    Expr,
    Load,
    Select,
    Unary,
    Var,
    cast,
    fma,
    pair4,
    wrap,
)
from sterna.ir.loop import Alloc, For, ForKind, If, Let, PrimFunc, Seq, Sync, seq, store

LAWS = settings(derandomize=True, max_examples=120, deadline=None)
RNG = np.random.default_rng(0)
N, T, K = Var("n", lo=1, hi=64), Var("i", lo=0), Var("k", lo=0)


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, dtype=np.float32)


def buffer(name: str, *shape: int | Expr, dtype=F32) -> Buffer:
    return Buffer(name, dtype, tuple(wrap(extent) for extent in shape))


@LAWS
@given(words(), environments())
def test_words_wrap_as_in_python(expr: Expr, env: dict[Var, int]) -> None:
    assert int(evaluate_expr(expr, env)) == exact(expr, env)


@LAWS
@given(integers(6), environments())
def test_scalars_and_arrays_agree(expr: Expr, env: dict[Var, int]) -> None:
    many = {var: np.array([value, value]) for var, value in env.items()}
    value = evaluate_expr(expr, env)
    assert value.dtype == np.int32
    np.testing.assert_array_equal(np.broadcast_to(evaluate_expr(expr, many), 2), [value] * 2)


def test_indices_divide_toward_minus_infinity() -> None:
    assert evaluate_expr(K // 4, {K: -1}) == -1
    assert evaluate_expr(K % 4, {K: -1}) == 3


@pytest.mark.parametrize("op", sorted(set(UNARY) - {"not", "invert"}))
@pytest.mark.parametrize("dtype", [F32, F16, BF16])
def test_unary_operators_keep_their_dtype(op: str, dtype) -> None:
    value = evaluate_expr(Unary(op, Const(0.5, dtype)), {})
    assert value.dtype == dtype.numpy
    expected = UNARY[op].numpy(np.float64(0.5))
    assert float(value) == pytest.approx(float(expected), rel=8e-3 if dtype == BF16 else 1e-3)


def test_fma_rounds_once() -> None:
    tiny = 2.0**-13
    a, b, c = (Const(v, F32) for v in (1.0 + tiny, 1.0 - tiny, -1.0))
    assert evaluate_expr(fma(a, b, c), {}) == np.float32(-(tiny**2))
    assert evaluate_expr(a * b + c, {}) == 0.0


def test_casts_follow_numpy() -> None:
    assert evaluate_expr(Cast(U8, Const(300, I32)), {}) == 44
    assert evaluate_expr(Cast(I8, Const(200, U8)), {}) == -56
    assert evaluate_expr(Cast(I32, Const(-1.9, F32)), {}) == -1
    assert evaluate_expr(Cast(BF16, Const(1.01, F32)), {}).dtype == ml_dtypes.bfloat16
    assert evaluate_expr(Cast(F32, Const(True, BOOL)), {}) == 1.0


def test_shifts_of_words_are_logical() -> None:
    assert evaluate_expr(Const(0x80000000, U32) >> 31, {}) == 1
    word = buffer("w", 1, dtype=U32)
    loaded = evaluate_expr(word[0] >> 28 & 15, {}, {word: np.array([0xF0000000], np.uint32)})
    assert loaded == 15
    assert loaded.dtype == np.uint32


def test_both_sides_of_select_are_evaluated() -> None:
    x = buffer("x", 4)
    guarded = Select(Binary("<", K, Const(4, I32)), x[K], Const(0.0, F32))
    with pytest.raises(InvalidIR, match=r"x\[4\] lies outside its shape \[4\]"):
        evaluate_expr(guarded, {K: 4}, {x: f32(4)})


def test_a_variable_without_a_value_is_named() -> None:
    with pytest.raises(InvalidIR, match="variable k has no value"):
        evaluate_expr(K + 1, {})


def test_integer_division_by_zero_is_refused() -> None:
    with pytest.raises(InvalidIR, match="divided by zero"):
        evaluate_expr(Binary("//", Const(3, I32), K), {K: 0})


def test_quantized_matmul_compute() -> None:
    x, w, s = buffer("x", N, 32), buffer("w", 6, 4, dtype=U32), buffer("s", 6, 1)
    n, h, k = axis("n", N), axis("h", 6), axis("k", 32)
    code = cast(F32, w[h.var, k.var // 8] >> cast(U32, k.var % 8 * 4) & 15) - 7.0
    weight = code * s[h.var, k.var // 32]
    matmul = Compute(buffer("y", N, 6), (n, h), x[n.var, k.var] * weight, (k,), SUM)
    xs, scales = f32(5, 32), f32(6, 1)
    words = RNG.integers(0, 1 << 32, (6, 4), dtype=np.uint32)
    codes = (words[:, :, None] >> (4 * np.arange(8, dtype=np.uint32)) & 15).reshape(6, 32)
    expected = xs.astype(np.float64) @ ((codes - 7.0) * scales).T
    got = evaluate_compute(matmul, {x: xs, w: words, s: scales}, {N: 5})
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=1e-6)


def test_a_large_compute_is_cut_and_still_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sterna.ir.evaluate._AT_ONCE", 64)
    x = buffer("x", 7, 33)
    n, k = axis("n", 7), axis("k", 33)
    largest = Compute(buffer("m", 7), (n,), x[n.var, k.var], (k,), MAX)
    double = elementwise("d", F32, (7, 33), "n k", lambda n, k: x[n, k] * 2.0)
    values = f32(7, 33)
    np.testing.assert_array_equal(evaluate_compute(largest, {x: values}, {}), values.max(1))
    np.testing.assert_array_equal(evaluate_compute(double, {x: values}, {}), values * 2)


def test_integer_reductions_stay_integers() -> None:
    x = buffer("x", 5, dtype=I8)
    k = axis("k", 5)
    values = np.array([100, 100, 100, -3, 7], np.int8)
    body = cast(I32, x[k.var])
    total = Compute(Buffer("t", I32, ()), (), body, (k,), SUM)
    largest = Compute(Buffer("m", I32, ()), (), body, (k,), MAX)
    assert evaluate_compute(total, {x: values}, {}) == 304
    assert evaluate_compute(largest, {x: values}, {}) == 100


@pytest.mark.parametrize("most", [8, 1 << 22])
def test_a_reduction_begins_at_its_start(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sterna.ir.evaluate._AT_ONCE", most)
    x = buffer("x", 5, 9)
    n, k = axis("n", 5), axis("k", 9)
    values = f32(5, 9)
    start = x[n.var, 0] * 2.0
    total = Compute(buffer("t", 5), (n,), x[n.var, k.var], (k,), SUM, start)
    expected = (values.astype(np.float64).sum(1) + values[:, 0] * 2).astype(np.float32)
    assert np.array_equal(evaluate_compute(total, {x: values}, {}), expected)
    low = np.full((5, 9), -np.inf, np.float32)
    for start, found in ((wrap(-1e38), -1e38), (wrap(-np.inf), -np.inf)):
        top = Compute(buffer("m", 5), (n,), x[n.var, k.var], (k,), MAX, start)
        assert (evaluate_compute(top, {x: low}, {}) == np.float32(found)).all()
        assert (evaluate_compute(top, {x: values}, {}) == values.max(1)).all()


def test_whole_numbers_wrap_from_their_start_on() -> None:
    x = buffer("x", 3, dtype=I32)
    k = axis("k", 3)
    values = np.array([1, 2, -3], np.int32)
    for combine, start, expected in (
        (SUM, (1 << 31) - 1, (1 << 31) - 1),
        (SUM, -7, -7),
        (MAX, 2, 2),
        (MAX, 5, 5),
    ):
        out = Compute(Buffer("t", I32, ()), (), x[k.var], (k,), combine, wrap(start))
        assert evaluate_compute(out, {x: values}, {}) == expected
    values[0] = 4
    over = Compute(Buffer("t", I32, ()), (), x[k.var], (k,), SUM, wrap((1 << 31) - 1))
    assert evaluate_compute(over, {x: values}, {}) == -(1 << 31) + 2


@pytest.mark.parametrize("start", [None, 0, 7 << 16 | 0xFFFE, -(5 << 16) | 3])
def test_sums_of_pairs_do_not_carry(start: int | None) -> None:
    """As `combine_step` makes them, also where a half is negative and where it wraps."""
    x, w = (buffer(name, 40, dtype=I32) for name in "xw")
    k = axis("k", 40)
    a = np.full(40, -1, np.int32) * RNG.integers(1, 1 << 30, 40).astype(np.int32)
    b = RNG.integers(0, 0x7F7F7F7F, 40).astype(np.int32) & 0x7F7F7F7F
    begun = None if start is None else wrap(start)
    out = Compute(Buffer("t", I32, ()), (), pair4(x[k.var], w[k.var]), (k,), SUM, begun)
    expected = np.int32(start or 0)
    for one, two in zip(a, b, strict=True):
        expected = INTRINSICS["pair4_add"].numpy(one, two, expected)
    assert evaluate_compute(out, {x: a, w: b}, {}) == np.int64(expected).astype(np.int32)


def softmax_group() -> Group:
    x, out = buffer("x", N, 8), buffer("out", N, 8)
    n, k = axis("n", N), axis("k", 8)
    top = Compute(buffer("top", N), (n,), x[n.var, k.var], (k,), MAX)
    power = elementwise(
        "power", F32, (N, 8), "n k", lambda n, k: Unary("exp", x[n, k] - top.out[n])
    )
    total = Compute(buffer("total", N), (n,), power.out[n.var, k.var], (k,), SUM)
    a, b = axis("a", N), axis("b", 8)
    last = Compute(out, (a, b), power.out[a.var, b.var] / total.out[a.var])
    return Group("softmax", (x,), (out,), (top, power, total, last))


def test_group_runs_its_stages_in_order() -> None:
    values = f32(3, 8)
    got = evaluate_group(softmax_group(), {"x": values}, {N: 3})["out"]
    power = np.exp(values - values.max(1, keepdims=True))
    np.testing.assert_allclose(got, power / power.sum(1, keepdims=True), rtol=1e-6)


def test_group_refuses_a_missing_or_misshapen_input() -> None:
    with pytest.raises(InvalidIR, match="needs an array for buffer x"):
        evaluate_group(softmax_group(), {}, {N: 3})
    with pytest.raises(InvalidIR, match=r"takes x as f32\[3, 8\], not as float32\[3, 7\]"):
        evaluate_group(softmax_group(), {"x": f32(3, 7)}, {N: 3})


def matvec(kind: ForKind) -> PrimFunc:
    """y[n] = sum of x[k] * w[n, k], eight rows at once."""
    x, w, y = buffer("x", 12), buffer("w", 16, 12), buffer("y", 16)
    no, lane, k = Var("no", lo=0), Var("lane", lo=0), Var("k", lo=0)
    acc = Buffer("acc", F32, (wrap(8),), "register")
    init = For(lane, wrap(8), store(acc, lane, 0.0), kind)
    step = For(lane, wrap(8), store(acc, lane, fma(x[k], w[no * 8 + lane, k], acc[lane])), kind)
    write = For(lane, wrap(8), store(y, no * 8 + lane, acc[lane]), kind)
    body = Alloc(acc, seq(init, For(k, wrap(12), step), write))
    return PrimFunc("matvec", (x, w, y), (), For(no, wrap(2), body, ForKind.PARALLEL))


@pytest.mark.parametrize("kind", [ForKind.SERIAL, ForKind.VECTOR, ForKind.UNROLL])
def test_primfunc_matches_matmul(kind: ForKind) -> None:
    x, w, y = f32(12), f32(16, 12), np.zeros(16, np.float32)
    evaluate_primfunc(matvec(kind), {"x": x, "w": w, "y": y}, {})
    np.testing.assert_allclose(y, w @ x, rtol=1e-5, atol=1e-6)


def run(body, arrays: dict[Buffer, np.ndarray], dims: dict[Var, int] | None = None) -> None:
    dims = dims or {}
    evaluate_primfunc(PrimFunc("f", tuple(arrays), tuple(dims), body), arrays, dims)


@pytest.mark.parametrize("kind", list(ForKind))
def test_a_loop_that_carries_a_value_runs_in_order(kind: ForKind) -> None:
    x, y = buffer("x", 6), buffer("y", 1)
    values, total = f32(6), np.zeros(1, np.float32)
    run(For(T, wrap(6), store(y, 0, y[0] + x[T]), kind), {x: values, y: total})
    expected = np.float32(0)
    for value in values:
        expected += value
    assert total[0] == expected


def test_a_recurrence_along_the_vector_runs_in_order() -> None:
    x = buffer("x", 6)
    values = np.ones(6, np.float32)
    run(For(T, wrap(5), store(x, T + 1, x[T] * 2.0), ForKind.VECTOR), {x: values})
    np.testing.assert_array_equal(values, [1, 2, 4, 8, 16, 32])


def test_turns_that_overlap_through_an_inner_loop_run_in_order() -> None:
    x = buffer("x", 8, dtype=I32)
    values = np.zeros(8, np.int32)
    inner = For(K, wrap(3), store(x, T + K, T * 10 + K))
    run(For(T, wrap(5), inner, ForKind.VECTOR), {x: values})
    expected = [0] * 8
    for i in range(5):
        for k in range(3):
            expected[i + k] = i * 10 + k
    assert values.tolist() == expected


def test_let_if_and_symbolic_extent() -> None:
    x, v = buffer("x", N, dtype=I32), Var("v")
    values = np.zeros(9, np.int32)
    branch = If(Binary("<", v, Const(9, I32)), store(x, T, v), store(x, T, 0 - v))
    run(For(T, N, Let(v, T * T, branch)), {x: values}, {N: 9})
    assert values.tolist() == [0, 1, 4, -9, -16, -25, -36, -49, -64]


def test_fresh_memory_is_poison() -> None:
    x, y = buffer("x", 1), buffer("y", 1, dtype=U8)
    a, b = Buffer("a", F32, (wrap(1),), "register"), Buffer("b", U8, (wrap(1),), "register")
    values, codes = np.zeros(1, np.float32), np.zeros(1, np.uint8)
    run(Alloc(a, Alloc(b, seq(store(x, 0, a[0]), store(y, 0, b[0])))), {x: values, y: codes})
    assert np.isnan(values[0])
    assert codes[0] == 0x5A


def test_slack_may_be_read_and_is_nan() -> None:
    x, y = buffer("x", 4), buffer("y", 1)
    total = np.zeros(1, np.float32)
    run(store(y, 0, x[4 + 63]), {x: f32(4), y: total})
    assert np.isnan(total[0])
    with pytest.raises(InvalidIR, match=r"x\[68\] lies outside"):
        run(store(y, 0, x[4 + 64]), {x: f32(4), y: total})
    with pytest.raises(InvalidIR, match=r"x\[-1\] lies outside"):
        run(store(y, 0, x[-1]), {x: f32(4), y: total})


def test_a_vector_tail_reads_into_the_next_row() -> None:
    x, y = buffer("x", 2, 3), buffer("y", 8)
    values, out = np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros(8, np.float32)
    run(For(T, wrap(8), store(y, T, x[0, T]), ForKind.VECTOR), {x: values, y: out})
    np.testing.assert_array_equal(out, [0, 1, 2, 3, 4, 5, np.nan, np.nan])


@pytest.mark.parametrize("kind", [ForKind.SERIAL, ForKind.VECTOR])
def test_slack_is_never_stored_to(kind: ForKind) -> None:
    y = buffer("y", 4)
    out = np.zeros(4, np.float32)
    with pytest.raises(InvalidIR, match=r"y.* lies outside its shape"):
        run(For(T, wrap(8), store(y, T, 1.0), kind), {y: out})
    assert not out.any(), "a failed run leaves its arrays alone"


def test_arguments_are_checked() -> None:
    func = matvec(ForKind.SERIAL)
    with pytest.raises(InvalidIR, match="needs an array for buffer w"):
        evaluate_primfunc(func, {"x": f32(12)}, {})
    with pytest.raises(InvalidIR, match=r"takes x as f32\[12\], not as float64\[12\]"):
        evaluate_primfunc(func, {"x": np.zeros(12)}, {})
    with pytest.raises(InvalidIR, match="values for the dims n"):
        evaluate_primfunc(PrimFunc("f", (), (N,), Seq(())), {}, {})


def test_threads_are_done_before_what_follows() -> None:
    x, y = buffer("x", 8), buffer("y", 8)
    fill = For(T, wrap(8), store(x, T, cast(F32, T)), ForKind.THREAD)
    back = Var("u", lo=0, hi=7)
    turn = For(back, wrap(8), store(y, back, x[7 - back]), ForKind.THREAD)
    values, out = f32(8), f32(8)
    run(seq(fill, Sync(), turn), {x: values, y: out})
    np.testing.assert_array_equal(out, np.arange(8, dtype=np.float32)[::-1])


def test_gather_by_index() -> None:
    table, ids = buffer("table", 10, 4), buffer("ids", N, dtype=I32)
    rows = elementwise("rows", F32, (N, 4), "n k", lambda n, k: Load(table, (ids[n], k)))
    values, picked = f32(10, 4), np.array([3, 0, 9], np.int32)
    got = evaluate_compute(rows, {table: values, ids: picked}, {N: 3})
    np.testing.assert_array_equal(got, values[picked])
    with pytest.raises(InvalidIR, match=r"dimension 0 holds 0..9"):
        evaluate_compute(rows, {table: values, ids: picked + 1}, {N: 3})
