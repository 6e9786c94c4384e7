"""Every rule of the IR has a program that breaks it; valid programs of every kind pass."""

import numpy as np
import pytest
from hypothesis import given, settings
from random_programs import groups, kernels, modules

from sterna.base.dtype import BOOL, F16, F32, I8, U32
from sterna.base.errors import InvalidIR
from sterna.ir.compute import SUM, Axis, Combine, Compute, Group, axis
from sterna.ir.expr import (
    Binary,
    Buffer,
    Cast,
    Const,
    Expr,
    Intrin,
    Load,
    Select,
    Unary,
    Var,
    fma,
    wrap,
)
from sterna.ir.graph import Binding, Call, Function, IRModule, TensorType, Value, call
from sterna.ir.loop import Alloc, For, ForKind, If, Let, PrimFunc, Seq, Stmt, Store, Sync, store
from sterna.ir.parser import parse_module
from sterna.ir.verify import verify, verify_function, verify_group, verify_primfunc

N = Var("n", lo=1, hi=8)
X = Buffer("x", F32, (N, wrap(4)))
K, V = Var("k"), Var("v")
LOST = Buffer("lost", F32, (wrap(4),))
START = axis("k", 4)
LAWS = settings(derandomize=True, max_examples=50, deadline=None)


def kernel(body: Stmt) -> PrimFunc:
    return PrimFunc("f", (X,), (N,), body)


def value_stored(value: Expr) -> Stmt:
    return store(X, (0, 0), value)


def test_a_valid_kernel_passes() -> None:
    acc = Buffer("acc", F32, (wrap(4),), "register")
    step = store(acc, K, fma(X[0, K], X[0, K], acc[K]))
    body = Seq((For(K, wrap(4), step), Let(V, K_FREE, store(X, (0, V), acc[V])), Sync()))
    loops = For(K, wrap(4), Seq(()))
    verify_primfunc(kernel(Seq((Alloc(acc, body), loops, loops))))


K_FREE = wrap(2)


@LAWS
@given(kernels())
def test_random_kernels_pass(func: PrimFunc) -> None:
    names = [buffer.name for buffer in func.params]
    if len(set(names)) == len(names):
        verify_primfunc(func)


@LAWS
@given(groups())
def test_random_groups_pass(group: Group) -> None:
    names = [b.name for b in (*group.inputs, *(c.out for c in group.computes))]
    if len(set(names)) == len(names):
        verify_group(group)


@LAWS
@given(modules())
def test_random_modules_pass(module: IRModule) -> None:
    module = IRModule(module.functions, module.entry, module.dims)
    verify(module)


BROKEN: list[tuple[Stmt, str]] = [
    (store(X, (K, 0), 1.0), "variable k is used where it is not bound"),
    (Seq((For(K, wrap(4), Seq(())), store(X, (K, 0), 1.0))), "variable k is used where"),
    (Let(V, V + 1, Seq(())), "variable v is used where"),
    (For(K, wrap(4), For(K, wrap(4), Seq(()))), "k is bound twice"),
    (For(N, wrap(4), Seq(())), "n is bound twice"),
    (For(Var("k", F32), wrap(4), Seq(())), "loop variable k must be an integer"),
    (For(K, N, Seq(()), ForKind.THREAD), "thread loop k must have a number of turns"),
    (For(K, wrap(4), Sync(), ForKind.THREAD), "a sync stands inside a thread loop"),
    (
        For(K, wrap(4), For(Var("p"), wrap(2), Seq(()), ForKind.PARALLEL), ForKind.THREAD),
        "parallel loop p stands inside a thread loop",
    ),
    (For(K, Const(4.0, F32), Seq(())), "the extent of loop k must be integers, not f32"),
    (For(Var("k", lo=3, hi=1), wrap(4), Seq(())), r"k has bounds 3\.\.1"),
    (store(LOST, 0, 1.0), r"buffer lost is used where it is not known, in: lost\[0\] = 1.0"),
    (value_stored(LOST[0]), "buffer lost is used where it is not known"),
    (store(X, 0, 1.0), "x has 2 dimensions, not 1"),
    (Store(X, (wrap(0), wrap(0)), wrap(1)), "i32 is stored to a buffer of f32"),
    (Store(X, (wrap(0), wrap(0.5)), wrap(1.0)), "indices of x must be integers"),
    (Let(Var("v", F16), wrap(1.0), Seq(())), "v is f16, its value f32"),
    (If(wrap(1), Seq(())), "a condition must be bool, not i32"),
    (Alloc(Buffer("b", F32, (), "global"), Seq(())), "b is allocated, and so cannot be global"),
    (Alloc(Buffer("b", F32, (), "heap"), Seq(())), "in scope 'heap'; known: global"),
    (Alloc(Buffer("b", F32, (K,), "local"), Seq(())), "variable k is used"),
    (Alloc(Buffer("b", F32, (wrap(1.0),), "local"), Seq(())), "the shape of b must be integers"),
    (value_stored(Binary("+", wrap(1.0), wrap(1))), "operands differ in type: f32, i32"),
    (value_stored(Binary("**", wrap(1.0), wrap(1.0))), r"'\*\*' is not a binary operator"),
    (value_stored(Binary("&", wrap(1.0), wrap(1.0))), "'&' does not apply to f32"),
    (value_stored(Binary("and", wrap(1.0), wrap(1.0))), "'and' does not apply to f32"),
    (value_stored(Cast(F32, Binary("+", wrap(True), wrap(True)))), r"'\+' does not apply to bool"),
    (value_stored(Cast(F32, Binary("/", wrap(1), wrap(2)))), "'/' divides floats, and i32"),
    (value_stored(Unary("sinh", wrap(1.0))), "'sinh' is not a unary operator"),
    (value_stored(Cast(F32, Unary("exp", wrap(1)))), "'exp' does not apply to i32"),
    (value_stored(Unary("invert", wrap(1.0))), "'invert' does not apply to f32"),
    (value_stored(Cast(F32, Unary("not", wrap(1)))), "'not' does not apply to i32"),
    (value_stored(Select(wrap(1), wrap(1.0), wrap(2.0))), "a condition must be bool, not i32"),
    (value_stored(Select(wrap(True), wrap(1.0), wrap(2))), "operands differ in type: f32, i32"),
    (value_stored(Intrin("dot", (wrap(1.0),))), "'dot' is not an intrinsic; known: fma"),
    (value_stored(Intrin("fma", (wrap(1.0),))), "fma takes 3 arguments, not 1"),
    (value_stored(Const(1, F32)), "the constant 1 is not of type f32"),
    (value_stored(Cast(F32, Const(300, I8))), "the constant 300 is out of the range of i8"),
    (value_stored(Cast(F32, Const(True, U32))), "the constant True is not of type u32"),
    (Stmt(), "Stmt is not a statement"),
    (value_stored(Cast(F32, Expr())), "Expr is not an expression"),
]


@pytest.mark.parametrize(("body", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_kernels_that_break_a_rule(body: Stmt, message: str) -> None:
    with pytest.raises(InvalidIR, match=f"kernel f: .*{message}"):
        verify_primfunc(kernel(body))


def test_headers_of_kernels() -> None:
    with pytest.raises(InvalidIR, match="variable n is used where it is not bound"):
        verify_primfunc(PrimFunc("f", (X,), (), Seq(())))
    with pytest.raises(InvalidIR, match="dim n must be an integer"):
        verify_primfunc(PrimFunc("f", (), (Var("n", F32),), Seq(())))
    with pytest.raises(InvalidIR, match="two parameters are called x"):
        verify_primfunc(PrimFunc("f", (X, Buffer("x", F32, ())), (N,), Seq(())))
    with pytest.raises(InvalidIR, match="x is bound twice"):
        verify_primfunc(PrimFunc("f", (X, X), (N,), Seq(())))


def total(**changes) -> Compute:
    n, k = axis("n", N), axis("k", 4)
    parts = {"body": X[n.var, k.var], "over": (k,), "combine": SUM, "axes": (n,)} | changes
    return Compute(
        Buffer("y", F32, (N,)),
        **{k: parts[k] for k in ("axes", "body", "over", "combine", "start") if k in parts},
    )


def group(*computes: Compute, outputs: tuple[Buffer, ...] | None = None) -> Group:
    outs = tuple(c.out for c in computes) if outputs is None else outputs
    return Group("g", (X,), outs, computes)


def test_a_valid_group_passes() -> None:
    first = total()
    i = axis("i", N)
    second = Compute(Buffer("z", F32, (N,)), (i,), first.out[i.var] * 2.0)
    verify_group(group(first, second))
    j, k = axis("j", N), axis("k", 4)
    started = Compute(Buffer("w", F32, (N,)), (j,), X[j.var, k.var], (k,), SUM, first.out[j.var])
    verify_group(group(first, started))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"combine": None}, "compute y needs both reduction axes and a combine"),
        ({"over": ()}, "compute y needs both"),
        ({"axes": ()}, "compute y has 0 axes for 1 dimensions"),
        ({"body": wrap(1)}, "compute y is f32, its body i32"),
        ({"body": LOST[0]}, "buffer lost is used where it is not known"),
        ({"combine": Combine("mean", 0.0)}, "combines by 'mean', no operator"),
        ({"over": (), "combine": None, "body": X[0, 0], "start": wrap(1.0)}, "has a start, but"),
        ({"start": wrap(1)}, "compute y is f32, its start i32"),
        ({"start": LOST[0]}, "buffer lost is used where it is not known"),
        ({"start": X[0, START.var], "over": (START,)}, "variable k is used where it is not bound"),
        ({"axes": (Axis(Var("a", F32), N),)}, "axis a must be an integer"),
        ({"axes": (Axis(Var("a"), wrap(1.5)),)}, "the extents of compute y must be integers"),
    ],
)
def test_groups_that_break_a_rule(change: dict, message: str) -> None:
    with pytest.raises(InvalidIR, match=f"group g: .*{message}"):
        verify_group(group(total(**change)))


def test_groups_read_only_what_stands_before() -> None:
    later = total()
    i = axis("i", N)
    early = Compute(Buffer("z", F32, (N,)), (i,), later.out[i.var])
    with pytest.raises(InvalidIR, match="buffer y is used where it is not known"):
        verify_group(group(early, later))
    with pytest.raises(InvalidIR, match="output lost is computed by none"):
        verify_group(group(total(), outputs=(LOST,)))
    with pytest.raises(InvalidIR, match="two buffers are called y"):
        verify_group(group(total(), total()))


def test_an_axis_does_not_outlive_its_compute() -> None:
    first = total()
    i = axis("i", N)
    leaking = Compute(Buffer("z", F32, (N,)), (i,), first.out[first.axes[0].var])
    with pytest.raises(InvalidIR, match="variable n is used where it is not bound"):
        verify_group(group(first, leaking))


TYPE = TensorType((N,), F32)


def function(*bindings: Binding, results: tuple[Value, ...] = (), name: str = "f") -> Function:
    return Function(name, (Value("x", TYPE),), (), bindings, results)


def test_functions_that_break_a_rule() -> None:
    y = Value("y", TYPE)
    binding = Binding((y,), call("relu"))
    with pytest.raises(InvalidIR, match="function f: y is defined twice"):
        verify_function(function(binding, binding))
    with pytest.raises(InvalidIR, match="relu uses y, which is not defined yet"):
        verify_function(function(Binding((), call("relu", y)), binding))
    with pytest.raises(InvalidIR, match="result y is defined nowhere"):
        verify_function(function(results=(y,)))
    with pytest.raises(InvalidIR, match="two attributes of relu are called a"):
        verify_function(function(Binding((), Call("relu", (), (("a", 1), ("a", 2))))))
    with pytest.raises(InvalidIR, match="variable n is used where it is not bound"):
        verify_function(function(), dims=())
    weights = (Value("w", TYPE), Value("w", TYPE))
    with pytest.raises(InvalidIR, match="two weights are called w"):
        verify_function(Function("f", (), weights, (), ()))


def test_infer_is_compared_with_the_binding() -> None:
    y = Value("y", TensorType((N + 1,), F32))
    func = function(Binding((y,), call("pad")), results=(y,))
    verify_function(func, infer=lambda call: [TensorType((1 + N,), F32)])
    with pytest.raises(InvalidIR, match=r"pad gives f32\[n\], y is f32\[n \+ 1\]"):
        verify_function(func, infer=lambda call: [TYPE])
    with pytest.raises(InvalidIR, match="pad gives 2 tensors, not 1"):
        verify_function(func, infer=lambda call: [TYPE, TYPE])


MODULE = """\
n = dim(1, 8)
constant('freq', (2,), [1.0, 2.0])

@function
def layer(x: f32[n]):
    w = weight('layers.{i}.w', f32[4])
    y: f32[n] = scale(x, w)
    return y

@function
def forward(x: f32[n]):
    f = weight('freq', f32[2])
    y: f32[n] = layer(x, repeat=3)
    return y

entry('forward')
"""


def test_a_valid_module_passes() -> None:
    verify(parse_module(MODULE))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "entry('forward')",
            "entry('main')",
            "its entry 'main' is no function of it",
        ),
        ("layer(x, repeat=3)", "layer(x, x)", "function forward: layer takes 1 tensors, not 2"),
        ("layer(x, repeat=3)", "layer(f)", r"layer takes f32\[n\], freq is f32\[2\]"),
        (
            "y: f32[n] = layer(x, r",
            "y: f16[n] = layer(x, r",
            r"layer gives f32\[n\], y is f16\[n\]",
        ),
        ("scale(x, w)", "layer(x)", r"function layer: it calls itself \(layer -> layer\)"),
        ("scale(x, w)", "forward(x)", r"it calls itself \(layer -> forward -> layer\)"),
        ("f32[2]", "f32[3]", r"constant freq has shape \(2,\), and is read as f32\[3\]"),
    ],
)
def test_modules_that_break_a_rule(old: str, new: str, message: str) -> None:
    assert old in MODULE
    with pytest.raises(InvalidIR, match=message):
        verify(parse_module(MODULE.replace(old, new)))


def test_dims_of_a_module_are_distinct_and_names_agree() -> None:
    with pytest.raises(InvalidIR, match="two dims are called n"):
        verify(IRModule({"f": function()}, "f", (N, Var("n"))))
    with pytest.raises(InvalidIR, match="function f is entered as g"):
        verify(IRModule({"g": function()}, "g", (N,)))
    verify(IRModule({"f": function()}, "f", (N,), {"c": np.zeros(3, np.float32)}))


def test_bool_is_a_type_like_others() -> None:
    flags = Buffer("b", BOOL, (wrap(4),))
    same = Binary("==", flags[0], Load(flags, (wrap(1),)))
    verify_primfunc(PrimFunc("f", (flags,), (), store(flags, 0, same)))
