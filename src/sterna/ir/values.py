"""Expressions as numpy closures: the value half of the interpreter.

In: an expression, with an environment of variables and a memory of buffers, both mutable. Out: a
function of no arguments that returns the expression's value as they then stand. A value is a
number, or an array where a variable holds one. i32 and i64 are computed exactly (they are taken
not to overflow), every other type as numpy computes it; `fma` goes through f64 and rounds once.
Reading outside a buffer raises InvalidIR.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.base.dtype import DType
from sterna.base.errors import InvalidIR
from sterna.ir.expr import (
    BINARY,
    INTRINSICS,
    UNARY,
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
)

Array = NDArray[Any]
Thunk = Callable[[], Any]
Environment = dict[Var, Any]

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": np.divide,
    "//": operator.floordiv, "%": operator.mod, "&": operator.and_, "|": operator.or_,
    "^": operator.xor, "<<": operator.lshift, ">>": operator.rshift, "<": operator.lt,
    "<=": operator.le, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip


@dataclass(slots=True)
class Region:
    """A buffer's memory: row-major elements, and how many may be read past the end."""

    flat: Array
    shape: tuple[int, ...]
    slack: int = 0


Memory = dict[Buffer, Region]


def poison(dtype: DType) -> Any:
    """What uninitialised memory holds: NaN, or a number nobody means."""
    if dtype.is_float:
        return np.nan
    return True if dtype.kind == "bool" else int.from_bytes(b"\x5a" * dtype.bytes, "little")


def region(buffer: Buffer, shape: tuple[int, ...], slack: int = 0) -> Region:
    """Fresh memory for a buffer, poisoned."""
    if any(extent < 0 for extent in shape):
        raise InvalidIR(f"buffer {buffer.name} has shape {shape}: extents are never negative")
    size = int(np.prod(shape, dtype=np.int64))
    return Region(np.full(size + slack, poison(buffer.dtype), buffer.dtype.numpy), shape, slack)


def offset(buffer: Buffer, where: Region, index: Sequence[Any], slack: int) -> Any:
    """The row-major offset of an index; the last dimension may run over by `slack` elements."""
    if len(index) != len(where.shape):
        raise InvalidIR(
            f"{buffer.name} has {len(where.shape)} dimensions and is indexed by {len(index)}"
        )
    total: Any = 0
    last = len(index) - 1
    for dim, (i, extent) in enumerate(zip(index, where.shape, strict=True)):
        limit = extent + slack if dim == last else extent
        if isinstance(i, np.ndarray):
            inside = i.size == 0 or (i.min() >= 0 and i.max() < limit)
        else:
            inside = 0 <= i < limit
        if not inside:
            raise InvalidIR(
                f"{buffer.name}[{_show(index)}] lies outside its shape {list(where.shape)}:"
                f" dimension {dim} holds 0..{extent - 1}"
            )
        total = total * extent + i
    return total


def _show(index: Sequence[Any]) -> str:
    return ", ".join(
        f"{np.min(i)}..{np.max(i)}" if isinstance(i, np.ndarray) and i.size else str(i)
        for i in index
    )


def convert(value: Any, dtype: DType) -> Any:
    """A value in another type: floats toward zero, integers modulo their size."""
    array = np.asarray(value)
    if dtype.is_int and array.dtype.kind not in "iub":
        array = np.trunc(array.astype(np.float64)).astype(np.int64)
    return array.astype(dtype.numpy)[()]


class Values:
    """Compiles expressions over one environment and one memory; each expression once."""

    def __init__(self, env: Environment, memory: Memory) -> None:
        self.env = env
        self.memory = memory
        self.compiled: dict[Expr, Thunk] = {}

    def __call__(self, expr: Expr) -> Thunk:
        found = self.compiled.get(expr)
        if found is None:
            found = self.compiled[expr] = self._compile(expr)
        return found

    def _compile(self, expr: Expr) -> Thunk:
        if isinstance(expr, Binary):
            return self._binary(expr)
        if isinstance(expr, Var):
            return self._var(expr)
        if isinstance(expr, Const):
            return _constant(expr)
        if isinstance(expr, Load):
            return self._load(expr)
        if isinstance(expr, Cast):
            return self._cast(expr)
        if isinstance(expr, Unary):
            function, a = UNARY[expr.op].numpy, self(expr.a)
            return lambda: function(a())
        if isinstance(expr, Select):
            return self._select(expr)
        if isinstance(expr, Intrin):
            return self._intrin(expr)
        raise InvalidIR(f"{type(expr).__name__} is not an expression that can be evaluated")

    def _binary(self, expr: Binary) -> Thunk:
        function = _OPERATORS.get(expr.op) or BINARY[expr.op].numpy
        a, b = self(expr.a), self(expr.b)
        safe = not expr.a.dtype.is_int or (isinstance(expr.b, Const) and expr.b.value != 0)
        if expr.op not in ("//", "%") or safe:
            return lambda: function(a(), b())

        def divide() -> Any:
            divisor = b()
            if np.any(divisor == 0):
                raise InvalidIR(f"an integer is divided by zero ({expr.op})")
            return function(a(), divisor)

        return divide

    def _var(self, var: Var) -> Thunk:
        env = self.env

        def value() -> Any:
            try:
                return env[var]
            except KeyError:
                raise InvalidIR(f"variable {var.name} has no value here; bind it first") from None

        return value

    def _load(self, expr: Load) -> Thunk:
        memory, buffer = self.memory, expr.buffer
        index = [self(part) for part in expr.index]

        def value() -> Any:
            where = memory.get(buffer)
            if where is None:
                raise InvalidIR(f"buffer {buffer.name} is read but holds no memory here")
            return where.flat[offset(buffer, where, [i() for i in index], where.slack)]

        return value

    def _cast(self, expr: Cast) -> Thunk:
        a, dtype = self(expr.a), expr.dtype
        return lambda: convert(a(), dtype)

    def _select(self, expr: Select) -> Thunk:
        cond, a, b = self(expr.cond), self(expr.a), self(expr.b)

        def value() -> Any:
            test, yes, no = cond(), a(), b()
            if isinstance(test, np.ndarray):
                return np.where(test, yes, no)
            return yes if test else no

        return value

    def _intrin(self, expr: Intrin) -> Thunk:
        args, dtype = [self(arg) for arg in expr.args], expr.dtype
        row = INTRINSICS.get(expr.name)
        if row is None:
            raise InvalidIR(
                f"intrinsic {expr.name!r} has no meaning; known: {', '.join(INTRINSICS)}"
            )
        if expr.name != "fma" or not dtype.is_float:
            return lambda: row.numpy(*(arg() for arg in args))
        a, b, c = args

        def fused() -> Any:
            wide = np.float64(a()) * np.float64(b()) + np.float64(c())
            return np.asarray(wide).astype(dtype.numpy)[()]

        return fused


def _constant(expr: Const) -> Thunk:
    # plain Python integers never wrap and never widen what they meet
    plain = expr.dtype.kind == "int" and expr.dtype.bits >= 32
    value = expr.value if plain else expr.dtype.numpy.type(expr.value)
    return lambda: value


def wide(value: Any, dtype: DType) -> Any:
    """A variable's value as the environment keeps it: exact if its type is taken not to wrap."""
    if dtype.kind == "int" and dtype.bits >= 32:
        return value if isinstance(value, int) else np.asarray(value).astype(np.int64)[()]
    return convert(value, dtype)


def whole(expr: Expr, dims: Mapping[Var, int]) -> int:
    """The value of an extent."""
    return int(Values(dict(dims), {})(expr)())
