"""Printing and parsing: identity on random nodes, the shape of the text, and hostile text."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_programs import expressions, groups, kernels, modules

from sterna.base.dtype import BF16, BOOL, F32, I32, U32
from sterna.base.errors import InvalidIR
from sterna.ir.compute import Compute, Group, elementwise
from sterna.ir.equal import equal
from sterna.ir.expr import Binary, Buffer, Cast, Const, Expr, Unary, Var, cast, fma, wrap
from sterna.ir.graph import Function, IRModule
from sterna.ir.loop import Alloc, For, Let, PrimFunc, Seq, Stmt, store
from sterna.ir.parser import (
    parse_compute,
    parse_expr,
    parse_function,
    parse_group,
    parse_module,
    parse_primfunc,
    parse_stmt,
)
from sterna.ir.printer import to_text

LAWS = settings(derandomize=True, max_examples=80, deadline=None)


@LAWS
@given(expressions())
def test_expressions_round_trip(drawn: tuple[Expr, dict]) -> None:
    expr, scope = drawn
    text = to_text(expr)
    back = parse_expr(text, scope)
    assert equal(back, expr), text
    assert to_text(back) == text


@LAWS
@given(kernels())
def test_kernels_round_trip(kernel: PrimFunc) -> None:
    text = to_text(kernel)
    back = parse_primfunc(text)
    assert equal(back, kernel), text
    assert to_text(back) == text


@LAWS
@given(groups())
def test_groups_round_trip(group: Group) -> None:
    text = to_text(group)
    back = parse_group(text)
    assert equal(back, group), text
    assert to_text(back) == text


@LAWS
@given(modules())
def test_modules_round_trip(module: IRModule) -> None:
    text = to_text(module)
    back = parse_module(text)
    assert equal(back, module), text
    assert to_text(back) == text
    assert list(back.fused.items()) == list(module.fused.items())


KERNEL = """\
@kernel
def matvec(x: f32[n, 4096], w: u32[64, 512], out: f32[n], *, n: dim(1, 512)):
    for no in parallel(64):
        acc = alloc("register", f32, 8)
        for lane in vector(8):
            acc[lane] = 0.0
        for k in range(4096):
            code = w[no, k // 8] >> u32(k % 8 * 4) & 15
            acc[k % 8] = fma(x[n - 1, k], f32(code) - 7.0, acc[k % 8])
        if no < n:
            out[no] = acc[0]
        else:
            out[0] = max(acc[0], -acc[1])"""

GROUP = """\
@group
def norm(x: bf16[n, 64], *, n: dim(1, 512)):
    square[a:n]: f32 = sum(f32(x[a, k]) * f32(x[a, k]) for k in range(64))
    y[b:n, j:64]: bf16 = bf16(f32(x[b, j]) / sqrt(square[b] / 64.0))
    return y"""

FUNCTION = """\
@function
def layer(x: f32[n, 64], i: i32, *, n: dim(1, 512)):
    w0 = weight("layers.{i}.norm.weight", f32[64])
    h: f32[n, 64] = rms_norm(x, w0, eps=1e-05)
    a, b = outs(split(h, axis=1, sizes=(32, 32)), f32[n, 32], f32[n, 32])
    kv.append(a, b)
    return a, h"""


def normal(text: str) -> str:
    return text.replace("'", '"')


def test_kernel_text_is_fixed_point() -> None:
    assert to_text(parse_primfunc(KERNEL)) == KERNEL


def test_group_text_is_fixed_point() -> None:
    assert to_text(parse_group(GROUP)) == GROUP


def test_function_text_is_fixed_point() -> None:
    func = parse_function(FUNCTION)
    text = FUNCTION.replace("w0", "norm_weight")
    assert normal(to_text(func)) == text
    assert func.weights[0].name == "layers.{i}.norm.weight"
    assert func.bindings[0].call.attr("eps") == 1e-5


def test_module_text_holds_dims_constants_and_entry() -> None:
    text = (
        "n = dim(1, 512)\nconstant('freq', (2,), [1.0, 0.25])\nfused('qkv', 'q', 'k')\n\n"
        "@primitive\ndef f(x: f32[n]):\n    return x\n\nentry('f')\n"
    )
    module = parse_module(text)
    assert to_text(module) == text
    assert module.functions["f"].params[0].shape[0] is module.dims[0]
    assert module.functions["f"].primitive


def test_literals_take_the_type_of_what_they_meet() -> None:
    word, real = Var("w", U32), Var("r", BF16)
    scope = {"w": word, "r": real}
    assert to_text(word & 15) == "w & 15"
    assert to_text(Binary("&", word, Const(15, I32))) == "w & i32(15)"
    assert to_text(real * 1.5) == "r * 1.5"
    assert to_text(Binary("+", Const(1, U32), Const(2, U32))) == "u32(1) + u32(2)"
    assert to_text(Cast(U32, Const(2, I32))) == "cast(u32, 2)"
    assert to_text(cast(U32, Const(2, I32))) == "u32(2)"
    assert parse_expr("w & 15", scope).b.dtype == U32
    assert parse_expr("r < 1.5", scope).b.dtype == BF16
    assert parse_expr("True").dtype == BOOL
    assert parse_expr("7").dtype == I32
    assert parse_expr("7.0").dtype == F32


def test_signs_and_precedence() -> None:
    x = Var("x")
    assert to_text(Unary("neg", Const(5, I32))) == "neg(5)"
    assert to_text(-(x + 1)) == "-(x + 1)"
    assert to_text((x + 1) * 2 - (x - (x - 1))) == "(x + 1) * 2 - (x - (x - 1))"
    assert to_text(Binary("<", x < wrap(1), x < wrap(2))) == "(x < 1) < (x < 2)"
    assert to_text(x & 1 | x << 2) == "x & 1 | x << 2"


def test_a_let_that_ends_early_is_scoped() -> None:
    out, v = Buffer("out", I32, (wrap(2),)), Var("v")
    stmt = Seq((Let(v, wrap(3), store(out, 0, v)), store(out, 1, 5)))
    text = to_text(stmt)
    assert text == "with scope():\n    v = 3\n    out[0] = v\nout[1] = 5"
    assert equal(parse_stmt(text, {"out": out}), stmt)


def test_names_are_shared_only_when_they_do_not_overlap() -> None:
    out = Buffer("i", I32, (wrap(2),))
    loops = [For(Var("i"), wrap(2), For(Var("i"), wrap(2), store(out, 0, 1))) for _ in range(2)]
    assert to_text(Seq(tuple(loops))).count("for i_1 in range(2):\n    for i_2 in range(2):") == 2


def test_scopes_of_buffers_are_kept() -> None:
    shared = Buffer("s", F32, (wrap(4),), "shared")
    func = PrimFunc("f", (shared,), (), Alloc(Buffer("t", F32, (), "local"), store(shared, 0, 1.0)))
    text = to_text(func)
    assert 's: f32[4] @ "shared"' in text
    assert 't = alloc("local", f32)' in text
    assert parse_primfunc(text).params[0].scope == "shared"


def test_compute_text() -> None:
    x = Buffer("x", F32, (wrap(4),))
    double: Compute = elementwise("y", F32, (4,), "i", lambda i: fma(x[i], 2.0, x[i]))
    assert to_text(double) == "y[i:4]: f32 = fma(x[i], 2.0, x[i])"
    assert equal(parse_compute(to_text(double), {"x": x}), double)


@pytest.mark.parametrize(
    "value",
    [
        "sum((x[i, k] for k in range(8)), start=x[i, 0] * 2.0)",
        "max((x[i, k] for k in range(8)), start=-1.0)",
        "reduce('*', 1.0, (x[i, k] for k in range(8)), start=x[i, 1])",
    ],
)
def test_text_of_a_reduction_with_a_start(value: str) -> None:
    x = Buffer("x", F32, (wrap(4), wrap(8)))
    compute = parse_compute(f"y[i:4]: f32 = {value}", {"x": x})
    assert compute.start is not None
    assert to_text(compute) == f"y[i:4]: f32 = {value}"
    assert equal(parse_compute(to_text(compute), {"x": x}), compute)


@pytest.mark.parametrize("more", ["begin=1.0", "start=1.0, start_=1.0", "**x"])
def test_a_reduction_has_a_start_and_no_other_keyword(more: str) -> None:
    x = Buffer("x", F32, (wrap(4),))
    with pytest.raises(InvalidIR, match="line 1: sum takes 1"):
        parse_compute(f"y[()]: f32 = sum((x[k] for k in range(4)), {more})", {"x": x})


def test_what_is_no_reduction_has_no_start_to_print() -> None:
    x = Buffer("x", F32, (wrap(4),))
    double = elementwise("y", F32, (4,), "i", lambda i: x[i])
    with pytest.raises(InvalidIR, match="compute y needs both"):
        to_text(replace(double, start=wrap(0.0)))


def test_a_function_that_has_no_name_cannot_be_printed() -> None:
    with pytest.raises(InvalidIR, match="layer 0"):
        to_text(Function("layer 0", (), (), (), ()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("@kernel\ndef f(x: f32[4]):\n    y[0] = 1.0", "line 3: y is not defined here; known: x"),
        ("@kernel\ndef f(x: f32[4]):\n    x[0] = z", "line 3: z is not defined"),
        ("@kernel\ndef f(x: f32[4]):\n    x[0] = x", "line 3: x is no variable"),
        ("@kernel\ndef f(x: f16x[4]):\n    pass", "line 2: dtype 'f16x' is not known"),
        ("@kernel\ndef f(x):\n    pass", "line 2: parameter x needs a type"),
        ("@kernel\ndef f(x: f32[n]):\n    pass", "line 2: n is not defined"),
        ("@kernel\ndef f(*, n: f32):\n    pass", "line 2: n needs a declaration such as dim"),
        ("@kernel\ndef f(*, n: dim(1.5, 2)):\n    pass", "line 2: the bound '1.5'"),
        ("@kernel\ndef f(x: f32[4], x_=1):\n    pass", "line 2: parameters are plain names"),
        ("@kernel\ndef f(x: f32[4]):\n    import os", "line 3: 'import os' is not a statement"),
        ("@kernel\ndef f(x: f32[4]):\n    x[0] = open('a')", "line 3: open is not a function"),
        ("@kernel\ndef f(x: f32[4]):\n    x[0] = x.y", "line 3: 'x.y' is not an expression"),
        ("@kernel\ndef f(x: f32[4]):\n    while True:\n        pass", "line 3: .* not a statement"),
        ("@kernel\ndef f(x: f32[4]):\n    for i in x:\n        pass", "line 3: a loop runs over"),
        ("@kernel\ndef f(x: u8[4]):\n    x[0] = 256", "line 3: 256 is out of the range of u8"),
        ("@kernel\ndef f(x: f32[4]):\n    x = 1", "line 3: x is already defined"),
        ("@kernel\ndef f(x: f32[4]):\n    inf = 1", "line 3: inf is a literal"),
        ("@kernel\ndef f(x: f32[4]):\n    x[0] = 1.0 < 2.0 < 3.0", "line 3: .* comparisons"),
        ("@kernel\ndef f(x: f32[4]):\n    x[0] = 1.0 > 2.0", "line 3: .* comparisons"),
        ("@kernel\ndef f(x: f32[4]):\n    x[0] = fma(1.0)", "line 3: fma takes 3"),
        ("@kernel\ndef f(x: f32[4]):\n    x[0] = x[**{}]", "line 3: "),
        ("def f(): pass", "line 1: f is not under @kernel"),
        ("@kernel\ndef f():\n  pass\nf()", "line 1: one definition"),
        ("", "line 1: one definition"),
        ("@kernel\ndef f(", "line 2: "),
        ("\0", "line 1: "),
        ("@kernel\ndef f(x: f32[" + "(" * 500 + ")" * 500 + "]): pass", "line"),
        ("@kernel\ndef f(x: f32[" + "-" * 5000 + "1]): pass", "line"),
        ("@kernel\ndef f(x: f32[" + "1+" * 50000 + "1]): pass", "line"),
        ("@kernel\ndef f(x: f32[4]):\n    x[0] = " + "9" * 5000, "line"),
    ],
)
def test_hostile_kernels_name_their_line(text: str, message: str) -> None:
    with pytest.raises(InvalidIR, match=message):
        parse_primfunc(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n = 3\nentry('f')", "line 1: 'n = 3' does not belong"),
        ("n = dim(1, 2)\n", "names no entry"),
        (
            "constant('a', (2,), [1.0])\nentry('f')",
            r"line 1: 1 numbers do not fill the shape \[2\]",
        ),
        ("constant('a', (-2,), [1.0])\nentry('f')", "line 1: a constant is a shape"),
        ("constant('a', (2,), ['b'])\nentry('f')", "line 1: a constant is a shape"),
        ("fused(1)\nentry('f')", "line 1: '1' stands where a string"),
        ("@function\ndef f():\n    x = g()\n    return x", "line 3: a binding declares its types"),
        ("@function\ndef f():\n    x: f32 = g(y)\n    return x", "line 3: y is not defined"),
        ("@function\ndef f():\n    x: f32 = g(a=[1])\n    return x", "line 3: .* not an attribute"),
        ("@function\ndef f():\n    x: f32 = g(a=(1.5,))\n    return x", "tuples hold integers"),
        (
            "@function\ndef f():\n    x: f32 = 3\n    return x",
            "line 3: '3' stands where",
        ),
        ("@function\ndef f():\n    g()", "line 3: .* the final return"),
        (
            "@function\ndef f():\n    return\n@function\ndef f():\n    return",
            "line 5: f is",
        ),
    ],
)
def test_hostile_modules_name_their_line(text: str, message: str) -> None:
    with pytest.raises(InvalidIR, match=message):
        parse_module(text)


def parsed_or_refused(parse: Callable[[str], object], text: str) -> object:
    try:
        return parse(text)
    except InvalidIR as error:
        return str(error)


@LAWS
@given(st.sampled_from([KERNEL, GROUP, FUNCTION]), st.data())
def test_mutilated_text_parses_or_raises_invalid_ir(text: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(text)))
    size = data.draw(st.integers(0, 12))
    junk = data.draw(st.text("()[]:,=*+- \nfn1.\"'@#\\", max_size=4))
    broken = text[:at] + junk + text[at + size :]
    for parse in (parse_primfunc, parse_group, parse_function, parse_module, parse_stmt):
        node = parsed_or_refused(parse, broken)
        assert isinstance(node, str | PrimFunc | Group | Function | IRModule | Stmt)
        assert not isinstance(node, str) or node.startswith("line ")
