"""Random kernels that C and the interpreter must agree on to the bit.

out[i] = a random expression of loads around i, under a random arrangement of loops. Values stay
small, so that i32 does not overflow and nothing is undefined; u8 and u32 wrap.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import numpy as np
from numpy.typing import NDArray

from sterna.base.dtype import BF16, BOOL, F16, F32, I8, I32, U8, U16, U32, DType
from sterna.ir.expr import Binary, Buffer, Cast, Const, Expr, Intrin, Load, Select, Unary, Var, wrap
from sterna.ir.loop import Alloc, For, ForKind, If, Let, PrimFunc, Stmt, Store, seq

DTYPES = (F32, F16, BF16, I32, U32, U8, I8, U16)
SIZE = 128  # elements of every input
N = Var("n", lo=1, hi=SIZE // 4)
Draw = Random


@dataclass
class Scope:
    """What an expression may use."""

    inputs: dict[DType, Buffer]
    index: Expr
    vars: list[Var] = field(default_factory=list)


def place(draw: Draw, scope: Scope) -> Expr:
    i = scope.index
    choices = [
        i,
        i + 3,
        i * 2,
        (i + 1) * 3,
        wrap(5),
        SIZE - 1 - i,
        i // 3,
        i % 5,
        i // 4 * 4 + i % 4,
    ]
    return draw.choice(choices)


def leaf(draw: Draw, dtype: DType, scope: Scope) -> Expr:
    fitting = [v for v in scope.vars if v.dtype == dtype]
    kind = draw.choice(["load"] * 3 + ["const"] + ["var"] * bool(fitting))
    if dtype == I32 and draw.randint(0, 3) == 0:
        return scope.index
    if kind == "var":
        return draw.choice(fitting)
    if kind == "load":
        at = place(draw, scope)
        if draw.randint(0, 5) == 0:
            at = Cast(I32, Load(scope.inputs[U8], (at,))) // 2
        return Load(scope.inputs[dtype], (at,))
    return constant(draw, dtype)


def constant(draw: Draw, dtype: DType) -> Expr:
    value = draw.randint(0 if dtype.kind == "uint" else -7, 7)
    return Const(value / 2 if dtype.is_float else value, dtype)


def positive(draw: Draw, dtype: DType, scope: Scope, depth: int) -> Expr:
    """A divisor."""
    if dtype.is_float:
        return Unary("abs", typed(draw, dtype, scope, depth)) + 0.5
    if draw.random() < 0.5:
        return Const(draw.choice([1, 2, 3, 4, 7, 8]), dtype)
    found = typed(draw, dtype, scope, depth) % 5 + 1
    return Binary("-", wrap(0), found) if dtype == I32 and draw.random() < 0.5 else found


def typed(draw: Draw, dtype: DType, scope: Scope, depth: int) -> Expr:
    if depth == 0 or draw.randint(0, 5) == 0:
        return leaf(draw, dtype, scope)
    if dtype in (F16, BF16):
        return Cast(dtype, typed(draw, F32, scope, depth - 1))

    def part(kind: DType = dtype) -> Expr:
        return typed(draw, kind, scope, depth - 1)

    kind = draw.choice(["binary"] * 4 + ["unary", "select", "cast", "divide"])
    if kind == "select":
        return Select(truth(draw, scope, depth - 1), part(), part())
    if kind == "cast":
        return conversion(draw, dtype, scope, depth - 1)
    if kind == "divide":
        op = draw.choice(["/"] if dtype.is_float else ["//", "%"])
        return Binary(op, part(), positive(draw, dtype, scope, depth - 1))
    if kind == "unary":
        names = ["neg", "abs", "floor"] if dtype.is_float else ["neg", "abs", "invert"]
        return Unary(draw.choice(names), part())
    if dtype.is_float and draw.randint(0, 3) == 0:
        return Intrin("fma", (part(), part(), part()))
    ops = ["+", "-", "*", "min", "max"]
    op = draw.choice(ops if dtype.is_float else [*ops, "&", "|", "^", "<<", ">>"])
    if op in ("<<", ">>"):
        return Binary(op, part(), Const(draw.randint(0, 3), dtype))
    return Binary(op, part(), part())


def conversion(draw: Draw, to: DType, scope: Scope, depth: int) -> Expr:
    source = draw.choice([d for d in DTYPES if d != to])
    if source in (F16, BF16) and to != F32:
        source = F32
    inner = typed(draw, source, scope, depth)
    if source.is_float and to.is_int:  # inside every integer type
        limited = Binary("min", Binary("max", inner, Const(0.0, F32)), Const(100.0, F32))
        return Cast(to, limited)
    return Cast(to, inner)


def truth(draw: Draw, scope: Scope, depth: int) -> Expr:
    if depth > 0 and draw.randint(0, 3) == 0:
        a, b = truth(draw, scope, depth - 1), truth(draw, scope, depth - 1)
        return draw.choice([Unary("not", a), Binary("and", a, b), Binary("or", a, b)])
    dtype = draw.choice([F32, I32, U32, U8, I8])
    op = draw.choice(["<", "<=", "==", "!="])
    return Binary(op, typed(draw, dtype, scope, depth), typed(draw, dtype, scope, depth))


def kernel(draw: Draw, name: str) -> PrimFunc:
    """out[i] for i in 0..n, cut into lanes; through a register, a local array or directly."""
    dtype = draw.choice([*DTYPES, BOOL])
    lanes = draw.choice([1, 4, 8, 16])
    inputs = {d: Buffer(f"in_{d}", d, (wrap(SIZE),)) for d in DTYPES}
    out = Buffer("out", dtype, (N,))
    count = (N + (lanes - 1)) // lanes
    block, lane = Var("block", lo=0, hi=SIZE), Var("lane", lo=0, hi=lanes - 1)
    index = block * lanes + lane
    scope = Scope(inputs, index, [block])
    bound = draw.choice([None, F32, I32, U32])
    let = None if bound is None else Var("held", bound)
    value = None if bound is None else typed(draw, bound, scope, 2)
    if let is not None:
        scope.vars.append(let)
    result = typed(draw, dtype, scope, 3) if dtype != BOOL else truth(draw, scope, 2)
    kind = draw.choice([ForKind.VECTOR, ForKind.VECTOR, ForKind.UNROLL, ForKind.SERIAL])

    def bind(body: Stmt) -> Stmt:
        return body if let is None or value is None else Let(let, value, body)

    if draw.random() < 0.5:
        guarded = If(index < N, bind(Store(out, (index,), result)))
        inner: Stmt = For(lane, wrap(lanes), guarded, kind)
    else:
        inner = through_buffer(draw, (out, lanes, index, lane), bind, result, kind)
    return PrimFunc(name, (*inputs.values(), out), (N,), For(block, count, inner, ForKind.PARALLEL))


def through_buffer(
    draw: Draw,
    what: tuple[Buffer, int, Expr, Var],
    bind: Callable[[Stmt], Stmt],
    result: Expr,
    kind: ForKind,
) -> Stmt:
    out, lanes, index, lane = what
    scope = draw.choice(["register", "local", "scratch"])
    kept = Buffer("kept", out.dtype, (wrap(lanes),), scope)
    fill = For(lane, wrap(lanes), bind(Store(kept, (lane,), result)), kind)
    copy = If(index < N, Store(out, (index,), kept[lane]))
    return Alloc(kept, seq(fill, For(lane, wrap(lanes), copy, kind)))


def arrays(func: PrimFunc, n: int, seed: int) -> dict[Buffer, NDArray[np.generic]]:
    """Small values for every parameter."""
    rng = np.random.default_rng(seed)
    result = {}
    for buffer in func.params[:-1]:
        low = 0 if buffer.dtype.kind == "uint" else -9
        values = rng.integers(low, 10, SIZE)
        scaled = values / 2 if buffer.dtype.is_float else values
        result[buffer] = scaled.astype(buffer.dtype.numpy)
    result[func.params[-1]] = np.zeros(n, func.params[-1].dtype.numpy)
    return result
