"""Structural equality and digests: names of what is bound do not matter, everything else does."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from random_programs import expressions, groups, kernels, modules

from sterna.base.dtype import F16, F32, I32, U32
from sterna.ir.compute import MAX, SUM, Compute, Group, axis
from sterna.ir.equal import digest, equal
from sterna.ir.expr import Binary, Buffer, Const, Expr, Var, cast, wrap
from sterna.ir.graph import Binding, Function, IRModule, TensorType, Value, call
from sterna.ir.loop import Alloc, For, ForKind, If, Let, PrimFunc, Seq, Stmt, seq, store
from sterna.ir.rewrite import substitute

LAWS = settings(derandomize=True, max_examples=50, deadline=None)
X = Var("x")


@LAWS
@given(expressions(), kernels(), groups(), modules())
def test_everything_equals_itself(drawn, kernel, group, module) -> None:
    for node in (drawn[0], kernel, group, module):
        assert equal(node, node)
        assert len(digest(node)) == 64


@LAWS
@given(kernels(), kernels())
def test_equal_if_and_only_if_digests_are(a: PrimFunc, b: PrimFunc) -> None:
    assert equal(a, b) == (digest(a) == digest(b))


def kernel(
    names: str = "nxiav",
    kind: ForKind = ForKind.SERIAL,
    hi: int = 9,
    size: int = 8,
    scope: str = "register",
    dtype=F32,
) -> PrimFunc:
    n, x, i, a, v = names
    dim = Var(n, lo=1, hi=hi)
    buffer, var, bound = Buffer(x, dtype, (dim,)), Var(i), Var(v)
    own = Buffer(a, F32, (wrap(size),), scope)
    body = Let(bound, var * 2, store(buffer, var, cast(dtype, own[bound])))
    return PrimFunc(f"f{n}", (buffer,), (dim,), Alloc(own, For(var, dim, body, kind)))


def test_names_of_bound_things_do_not_matter() -> None:
    assert equal(kernel(), kernel("pqrst"))
    assert digest(kernel()) == digest(kernel("pqrst"))


@pytest.mark.parametrize(
    "change",
    [
        {"kind": ForKind.VECTOR},
        {"hi": 10},
        {"size": 9},
        {"scope": "local"},
        {"dtype": F16},
    ],
    ids=str,
)
def test_everything_else_matters(change: dict) -> None:
    assert not equal(kernel(), kernel(**change))
    assert digest(kernel()) != digest(kernel(**change))


def test_free_variables_are_compared_by_name() -> None:
    assert equal(X + 1, Var("x") + 1)
    assert not equal(X + 1, Var("y") + 1)
    assert not equal(X + 1, Var("x", lo=0) + 1)
    assert not equal(X + Var("x"), X + X)
    assert equal(X + Var("x"), Var("x") + Var("x"))


def test_sharing_does_not_show() -> None:
    shared = X * 3
    assert equal(Binary("+", shared, shared), Binary("+", X * 3, X * 3))
    deep: Expr = X
    for _ in range(200):
        deep = Binary("+", deep, deep)  # 2**200 nodes as a tree
    assert equal(deep, substitute(deep, {X: Var("x")}))


def test_constants_differ_by_type_and_sign() -> None:
    forms = [Const(1, I32), Const(1, U32), Const(1.0, F32), Const(0.0, F32), Const(-0.0, F32)]
    assert len({digest(form) for form in forms}) == len(forms)


def test_operand_order_matters() -> None:
    assert not equal(X - 1, wrap(1) - X)


def test_a_rebound_variable_is_a_new_one() -> None:
    out, i, j = Buffer("o", F32, (wrap(8),)), Var("i"), Var("j")

    def loops(first: Var, second: Var) -> Stmt:
        return Seq(
            (
                For(first, wrap(4), store(out, first, 1.0)),
                For(second, wrap(4), store(out, second, 1.0)),
            )
        )

    assert equal(loops(i, i), loops(i, j))
    crossed = For(i, wrap(4), For(j, wrap(4), store(out, i, 1.0)))
    assert not equal(crossed, For(i, wrap(4), For(j, wrap(4), store(out, j, 1.0))))


def test_sequences_are_flat() -> None:
    out = Buffer("o", F32, (wrap(8),))
    a, b, c = (store(out, k, 1.0) for k in range(3))
    assert equal(Seq((Seq((a, b)), c)), seq(a, b, c))
    assert equal(Seq((a,)), a)
    assert not equal(seq(a, b), seq(b, a))


def test_else_of_nothing_is_no_else() -> None:
    out = Buffer("o", F32, (wrap(8),))
    then = store(out, 0, 1.0)
    assert not equal(If(wrap(1) > X, then), If(wrap(1) > X, then, Seq(())))


def group(combine=SUM, out_name: str = "y", outputs: int = 1, start: float | None = None) -> Group:
    x = Buffer("x", F32, (wrap(4), wrap(8)))
    i, k = axis("i", 4), axis("k", 8)
    y = Buffer(out_name, F32, (wrap(4),))
    begun = None if start is None else x[i.var, 0] * start
    total = Compute(y, (i,), x[i.var, k.var], (k,), combine, begun)
    j = axis("j", 4)
    z = Compute(Buffer("z", F32, (wrap(4),)), (j,), y[j.var] * 2.0)
    return Group("g", (x,), (z.out, y)[:outputs], (total, z))


def test_groups() -> None:
    assert equal(group(), group(out_name="other"))
    assert not equal(group(), group(MAX))
    assert not equal(group(), group(outputs=2))
    assert equal(group(start=2.0), group(start=2.0))
    assert not equal(group(), group(start=2.0))
    assert not equal(group(start=3.0), group(start=2.0))


def function(weight: str = "w", param: str = "x", **attrs) -> Function:
    kind = TensorType((Var("n", lo=1, hi=4),), F32)
    x, w, y = Value(param, kind), Value(weight, kind), Value("y", kind)
    return Function("f", (x,), (w,), (Binding((y,), call("mul", x, w, **attrs)),), (y,))


def test_functions_and_modules() -> None:
    assert equal(function(), function(param="renamed"))
    assert not equal(function(), function(weight="v"))
    assert not equal(function(axis=1), function(axis=True))
    assert not equal(function(axis=1), function(axis=1.0))
    one = IRModule({"f": function()}, "f", ())
    assert equal(one, IRModule({"f": function()}, "f", ()))
    assert not equal(one, IRModule({"g": function()}, "g", ()))
    assert not equal(one, IRModule({"f": function()}, "f", (), fused={"a": ("b", "c")}))


def test_digest_is_the_same_in_another_process() -> None:
    code = "from test_equal import digest, kernel; print(digest(kernel()))"
    paths = [path for path in sys.path if path]
    printed = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout.strip() == digest(kernel())
