"""Random kernels, groups, functions and modules: valid in scope and type, without sense."""

import itertools
from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st

from sterna.base.dtype import BF16, BOOL, F16, F32, I32, I64, U8, U32, DType
from sterna.ir.compute import MAX, SUM, Axis, Combine, Compute, Group
from sterna.ir.expr import Binary, Buffer, Cast, Const, Expr, Intrin, Load, Select, Unary, Var
from sterna.ir.graph import Attr, Binding, Call, Function, IRModule, TensorType, Value
from sterna.ir.loop import Alloc, For, ForKind, If, Let, Prefetch, PrimFunc, Seq, Stmt, Store, Sync

FLOATS, INTS = (F32, F16, BF16), (I32, U32, U8, I64)
NAMES = ("x", "y", "i", "acc", "for", "weight.0", "inf", "f32", "max", "7", "ünder")
Draw = st.DrawFn


@dataclass(frozen=True)
class Known:
    """What is in force where a node is drawn."""

    vars: tuple[Var, ...] = ()
    buffers: tuple[Buffer, ...] = ()


def constant(draw: Draw, dtype: DType) -> Expr:
    if dtype == BOOL:
        return Const(draw(st.booleans()), BOOL)
    if dtype.is_float:
        value = draw(st.sampled_from([0.0, -0.0, 1.0, -1.5, 0.1, 1e-30, float("inf"), -np.inf]))
        return Const(float(value), dtype)
    value = draw(st.sampled_from([0, 1, 2, 7, 100]))
    return Const(-value if dtype.kind == "int" and draw(st.booleans()) else value, dtype)


def leaf(draw: Draw, dtype: DType, known: Known) -> Expr:
    fitting = [v for v in known.vars if v.dtype == dtype]
    buffers = [b for b in known.buffers if b.dtype == dtype and not b.shape]
    choices = ["const"] + ["var"] * 3 * bool(fitting) + ["load"] * bool(buffers)
    kind = draw(st.sampled_from(choices))
    if kind == "var":
        return draw(st.sampled_from(fitting))
    return Load(draw(st.sampled_from(buffers)), ()) if kind == "load" else constant(draw, dtype)


def typed(draw: Draw, dtype: DType, known: Known, depth: int) -> Expr:
    """An expression of the dtype asked for."""
    if depth == 0 or draw(st.integers(0, 4)) == 0:
        return leaf(draw, dtype, known)
    if dtype == BOOL:
        return truth(draw, known, depth - 1)

    def part(kind: DType = dtype) -> Expr:
        return typed(draw, kind, known, depth - 1)

    loadable = [b for b in known.buffers if b.dtype == dtype]
    kind = draw(st.sampled_from(["binary"] * 3 + ["unary", "select", "cast", "load", "intrin"]))
    if kind == "load" and loadable:
        buffer = draw(st.sampled_from(loadable))
        return Load(buffer, tuple(part(I32) for _ in buffer.shape))
    if kind == "cast":
        return Cast(dtype, part(draw(st.sampled_from([d for d in (*FLOATS, *INTS) if d != dtype]))))
    if kind == "select":
        return Select(part(BOOL), part(), part())
    if kind == "intrin" and dtype.is_float:
        return Intrin("fma", (part(), part(), part()))
    if kind == "unary":
        floats, ints = ["neg", "exp", "sqrt", "abs"], ["neg", "invert", "abs"]
        return Unary(draw(st.sampled_from(floats if dtype.is_float else ints)), part())
    both = ["+", "-", "*", "min", "max"]
    ops = [*both, "/"] if dtype.is_float else [*both, "//", "%", "&", "|", "^", "<<", ">>"]
    return Binary(draw(st.sampled_from(ops)), part(), part())


def truth(draw: Draw, known: Known, depth: int) -> Expr:
    kind = draw(st.sampled_from(["compare", "compare", "logic", "not"]))
    if kind == "compare":
        dtype = draw(st.sampled_from([F32, I32, U32]))
        sides = [typed(draw, dtype, known, depth) for _ in range(2)]
        return Binary(draw(st.sampled_from(["<", "<=", "==", "!="])), *sides)
    if kind == "not":
        return Unary("not", typed(draw, BOOL, known, depth))
    sides = [typed(draw, BOOL, known, depth) for _ in range(2)]
    return Binary(draw(st.sampled_from(["and", "or"])), *sides)


def index(draw: Draw, known: Known, depth: int = 2) -> Expr:
    return typed(draw, I32, known, depth)


def new_buffer(draw: Draw, known: Known, scope: str | None = None) -> Buffer:
    dims = [v for v in known.vars if v.dtype == I32]
    shape = draw(st.lists(st.sampled_from([Const(8, I32), Const(1, I32), *dims]), max_size=2))
    scope = scope or draw(st.sampled_from(["global", "shared"]))
    dtype = draw(st.sampled_from([*FLOATS, *INTS]))
    return Buffer(draw(st.sampled_from(NAMES)), dtype, tuple(shape), scope)


def statement(draw: Draw, known: Known, depth: int) -> Stmt:
    kinds = (
        ["store"]
        if depth == 0
        else ["store", "for", "let", "alloc", "if", "seq", "sync", "prefetch"]
    )
    kind = draw(st.sampled_from(kinds))
    if kind == "for":
        var = Var(draw(st.sampled_from(NAMES)), draw(st.sampled_from([I32, I32, I64])))
        body = statement(draw, replace(known, vars=(*known.vars, var)), depth - 1)
        kinds_of_loop = [kind for kind in ForKind if kind is not ForKind.THREAD]  # wants a number
        return For(var, index(draw, known), body, draw(st.sampled_from(kinds_of_loop)))
    if kind == "let":
        dtype = draw(st.sampled_from([I32, F32, U32, BF16]))
        var = Var(draw(st.sampled_from(NAMES)), dtype)
        body = statement(draw, replace(known, vars=(*known.vars, var)), depth - 1)
        return Let(var, typed(draw, dtype, known, 2), body)
    if kind == "alloc":
        buffer = new_buffer(draw, known, draw(st.sampled_from(["register", "local", "shared"])))
        inner = replace(known, buffers=(*known.buffers, buffer))
        return Alloc(buffer, statement(draw, inner, depth - 1))
    if kind == "if":
        orelse = statement(draw, known, depth - 1) if draw(st.booleans()) else None
        return If(typed(draw, BOOL, known, 2), statement(draw, known, depth - 1), orelse)
    if kind == "seq":
        count = draw(st.integers(0, 3))
        return Seq(tuple(statement(draw, known, depth - 1) for _ in range(count)))
    if kind == "sync":
        return Sync()
    buffer = draw(st.sampled_from(known.buffers))
    where = tuple(index(draw, known) for _ in buffer.shape)
    if kind == "prefetch":
        return Prefetch(Load(buffer, where))
    return Store(buffer, where, typed(draw, buffer.dtype, known, 3))


def dims(draw: Draw) -> tuple[Var, ...]:
    lo, hi = st.none() | st.integers(0, 9), st.none() | st.integers(9, 99)
    names = draw(st.lists(st.sampled_from(NAMES), max_size=2))
    kinds = st.sampled_from([I32, I32, I64])
    return tuple(Var(name, draw(kinds), draw(lo), draw(hi)) for name in names)


@st.composite
def expressions(draw: Draw) -> tuple[Expr, dict[str, Var | Buffer]]:
    """An expression and the scope it is read back in."""
    variables = (Var("a"), Var("b", U32), Var("c", F32), Var("d", BOOL), Var("e", BF16))
    buffers = (Buffer("m", F32, (Const(8, I32), variables[0])), Buffer("w", U32, (Const(4, I32),)))
    scope = {item.name: item for item in variables + buffers}
    dtype = draw(st.sampled_from([I32, U32, F32, BF16, BOOL, U8]))
    return typed(draw, dtype, Known(variables, buffers), 4), scope


@st.composite
def kernels(draw: Draw) -> PrimFunc:
    sizes = dims(draw)
    first = Buffer("x", F32, (Const(8, I32),))
    params = (first, *(new_buffer(draw, Known(sizes)) for _ in range(draw(st.integers(0, 2)))))
    return PrimFunc("kernel", params, sizes, statement(draw, Known(sizes, params), 4))


@st.composite
def groups(draw: Draw) -> Group:
    sizes = tuple(v for v in dims(draw) if v.dtype == I32)
    inputs = (Buffer("x", F32, (Const(8, I32),)), new_buffer(draw, Known(sizes)))
    computes: list[Compute] = []
    for _ in range(draw(st.integers(1, 3))):
        known = Known(sizes, (*inputs, *(c.out for c in computes)))
        computes.append(one_compute(draw, known))
    outputs = draw(st.lists(st.sampled_from(computes), unique=True, min_size=1))
    return Group("group", inputs, tuple(c.out for c in outputs), tuple(computes))


def one_compute(draw: Draw, known: Known) -> Compute:
    def axes(count: int) -> tuple[Axis, ...]:
        return tuple(
            Axis(Var(draw(st.sampled_from(NAMES))), index(draw, known, 1)) for _ in range(count)
        )

    data, over = axes(draw(st.integers(0, 2))), axes(draw(st.integers(0, 2)))
    inner = replace(known, vars=(*known.vars, *(a.var for a in (*data, *over))))
    dtype = draw(st.sampled_from([F32, U32]))
    extents = tuple(a.extent for a in data)
    shape = extents if draw(st.booleans()) else tuple(index(draw, known, 1) for _ in data)
    out = Buffer(
        draw(st.sampled_from(NAMES)), dtype, shape, draw(st.sampled_from(["global", "local"]))
    )
    combine = draw(st.sampled_from([SUM, MAX, Combine("*", 1.0)])) if over else None
    body, start = typed(draw, dtype, inner, 3), None
    if over and draw(st.booleans()):
        begun = replace(known, vars=(*known.vars, *(a.var for a in data)))
        start = typed(draw, dtype, begun, 2)
    return Compute(out, data, body, over, combine, start)


def attributes(draw: Draw) -> tuple[tuple[str, Attr], ...]:
    value = st.sampled_from([1, -2, 0.5, -1e-5, 1.0, True, False, "a'b\n", (1, 2), (3,), ()])
    names = draw(st.lists(st.sampled_from(["axis", "eps", "n"]), unique=True, max_size=2))
    return tuple((name, draw(value)) for name in sorted(names))


def value(draw: Draw, sizes: tuple[Var, ...], name: str) -> Value:
    extents = [Const(64, I32), *(v for v in sizes if v.dtype == I32)]
    shape = tuple(draw(st.lists(st.sampled_from(extents), max_size=3)))
    return Value(name, TensorType(shape, draw(st.sampled_from([F32, I32, BF16]))))


def function(draw: Draw, name: str, sizes: tuple[Var, ...], ops: list[str]) -> Function:
    params = tuple(
        value(draw, sizes, n) for n in draw(st.lists(st.sampled_from(NAMES), max_size=2))
    )
    weights = tuple(value(draw, sizes, f"layers.{{i}}.{n}") for n in range(draw(st.integers(0, 2))))
    known, bindings = [*params, *weights], []
    for _ in range(draw(st.integers(0, 3))):
        args = tuple(draw(st.lists(st.sampled_from(known), max_size=3))) if known else ()
        call = Call(draw(st.sampled_from(ops)), args, attributes(draw))
        outs = tuple(
            value(draw, sizes, draw(st.sampled_from(NAMES))) for _ in range(draw(st.integers(0, 2)))
        )
        bindings.append(Binding(outs, call))
        known.extend(outs)
    results = tuple(draw(st.lists(st.sampled_from(known), max_size=2))) if known else ()
    return Function(name, params, weights, tuple(bindings), results, draw(st.booleans()))


@st.composite
def modules(draw: Draw) -> IRModule:
    sizes = tuple(
        Var(n, lo=1, hi=draw(st.integers(1, 99))) for n in "nb"[: draw(st.integers(0, 2))]
    )
    ops = ["matmul", "kv.append", "call"]
    functions = {name: function(draw, name, sizes, ops) for name in ("layer", "forward")}
    numbers = itertools.chain([np.nan, np.inf, -0.0], np.linspace(0, 1, 3))
    constants = {"rope.freq": np.array(list(numbers), np.float32).reshape(2, 3)}
    constants = constants if draw(st.booleans()) else {}
    return IRModule(functions, "forward", sizes, constants, {"qkv": ("q", "k", "v")})
