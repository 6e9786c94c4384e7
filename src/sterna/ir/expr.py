"""Scalar expressions: symbolic dims, loop indices and kernel values, in one language.

    expr := Var | Const | Unary(op, a) | Binary(op, a, b) | Select(cond, a, b)
          | Cast(dtype, a) | Load(buffer, index) | Intrin(name, args)

Nodes are dumb frozen records compared by identity; structural questions are asked of `equal`.
Operator sugar builds nodes and folds constants, nothing more: algebra is `simplify`'s. Integer
division and remainder round toward minus infinity, shifts of u32 are logical. Every operator is
one row of UNARY or BINARY, so interpreter, folder, printer and renderers cannot disagree.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, dataclass_transform

import numpy as np

from sterna.base.dtype import BF16, BOOL, F32, I32, I64, DType

T = TypeVar("T")


@dataclass_transform(frozen_default=True, eq_default=False)
def node(cls: type[T]) -> type[T]:
    """The one decorator of IR nodes: an immutable record, equal only to itself."""
    return dataclass(frozen=True, slots=True, eq=False)(cls)


@dataclass(frozen=True, slots=True)
class Operator:
    """A row of the operator table.

    `symbol` is the Python spelling, infix when `precedence` is set, a function call otherwise.
    """

    symbol: str
    numpy: Callable[..., Any]
    precedence: int = 0
    commutative: bool = False
    compares: bool = False


UNARY: dict[str, Operator] = {
    "neg": Operator("-", np.negative, 90),
    "not": Operator("logical_not", np.logical_not),
    "invert": Operator("~", np.invert, 90),
    "abs": Operator("abs", np.abs),
    "floor": Operator("floor", np.floor),
    "sqrt": Operator("sqrt", np.sqrt),
    "exp": Operator("exp", np.exp),
    "log": Operator("log", np.log),
    "sin": Operator("sin", np.sin),
    "cos": Operator("cos", np.cos),
    "tanh": Operator("tanh", np.tanh),
}
BINARY: dict[str, Operator] = {
    "+": Operator("+", np.add, 60, commutative=True),
    "-": Operator("-", np.subtract, 60),
    "*": Operator("*", np.multiply, 70, commutative=True),
    "/": Operator("/", np.divide, 70),
    "//": Operator("//", np.floor_divide, 70),
    "%": Operator("%", np.mod, 70),
    "min": Operator("min", np.minimum, commutative=True),
    "max": Operator("max", np.maximum, commutative=True),
    "&": Operator("&", np.bitwise_and, 50, commutative=True),
    "|": Operator("|", np.bitwise_or, 40, commutative=True),
    "^": Operator("^", np.bitwise_xor, 45, commutative=True),
    "<<": Operator("<<", np.left_shift, 55),
    ">>": Operator(">>", np.right_shift, 55),
    "<": Operator("<", np.less, 30, compares=True),
    "<=": Operator("<=", np.less_equal, 30, compares=True),
    "==": Operator("==", np.equal, 30, commutative=True, compares=True),
    "!=": Operator("!=", np.not_equal, 30, commutative=True, compares=True),
    "and": Operator("logical_and", np.logical_and, commutative=True),
    "or": Operator("logical_or", np.logical_or, commutative=True),
}


@dataclass(frozen=True, slots=True)
class Intrinsic:
    """A row of the intrinsics: hardware has them, or they are made of what it has.

    `operations` are its multiplications and additions, `result` is its dtype where that is not the
    arguments'.
    """

    arity: int
    operations: int
    numpy: Callable[..., Any]
    result: DType | None = None


def _half(pair: Any, shift: int) -> Any:
    """The i16 at bit `shift` of an i32."""
    return (((pair >> shift) & 0xFFFF) ^ 0x8000) - 0x8000


def _byte(four: Any, shift: int) -> Any:
    """The i8 at bit `shift` of an i32."""
    return (((four >> shift) & 0xFF) ^ 0x80) - 0x80


def _products(a: Any, b: Any, shift: int) -> Any:
    """The sum of two products of i8, at bit `shift` and beside it."""
    return _byte(a, shift) * _byte(b, shift) + _byte(a, shift + 8) * _byte(b, shift + 8)


def _pair(low: Any, high: Any) -> Any:
    """Two i16 in an i32."""
    return _half(high, 0) * (1 << 16) + (low & 0xFFFF)


def _float(pair: Any, shift: int) -> Any:
    """The bf16 at bit `shift` of an i32, as f32."""
    bits = (np.asarray(pair, np.int64) >> shift & 0xFFFF) << 16
    return bits.astype(np.uint32).view(np.float32)[()]


def _floats(low: Any, high: Any) -> Any:
    """Two numbers rounded to bf16, in an i32."""
    halves = (np.asarray(x, np.float32).astype(BF16.numpy).view(np.uint16) for x in (low, high))
    first, second = (half.astype(np.uint32) for half in halves)
    return (first | second << 16).view(np.int32)[()]


def _codes(codes: Any, zero: Any) -> Any:
    """Two small whole numbers less `zero`, as bf16."""
    both = np.asarray(codes, np.int64)
    return _floats((both & 0xFFFF) - zero, (both >> 16) - zero)


INTRINSICS: dict[str, Intrinsic] = {
    "fma": Intrinsic(3, 2, lambda a, b, c: a * b + c),
    "dot2": Intrinsic(2, 3, lambda a, b: _half(a, 0) * _half(b, 0) + _half(a, 16) * _half(b, 16)),
    "dot4": Intrinsic(2, 7, lambda a, b: sum(_byte(a, i) * _byte(b, i) for i in (0, 8, 16, 24))),
    "pair4": Intrinsic(2, 6, lambda a, b: _pair(_products(a, b, 0), _products(a, b, 16))),
    "pair4_add": Intrinsic(3, 8, lambda a, b, c: _pair(
        _half(c, 0) + _products(a, b, 0), _half(c, 16) + _products(a, b, 16))),
    "dot2_bf16": Intrinsic(2, 3, lambda a, b: (
        _float(a, 16) * _float(b, 16) + _float(a, 0) * _float(b, 0)), F32),
    "pair_bf16": Intrinsic(2, 0, _floats, I32),
    "codes_bf16": Intrinsic(2, 0, _codes),
    "nibbles_bf16": Intrinsic(2, 0, _codes),
}  # fmt: skip


class Expr:
    """Base of all expressions; operator sugar only."""

    __slots__ = ()
    dtype: DType  # every subclass has one, as a field or a property

    def __add__(self, other: ExprLike) -> Expr:
        return binary("+", self, other)

    def __radd__(self, other: ExprLike) -> Expr:
        return binary("+", other, self)

    def __sub__(self, other: ExprLike) -> Expr:
        return binary("-", self, other)

    def __rsub__(self, other: ExprLike) -> Expr:
        return binary("-", other, self)

    def __mul__(self, other: ExprLike) -> Expr:
        return binary("*", self, other)

    def __rmul__(self, other: ExprLike) -> Expr:
        return binary("*", other, self)

    def __truediv__(self, other: ExprLike) -> Expr:
        return binary("/", self, other)

    def __rtruediv__(self, other: ExprLike) -> Expr:
        return binary("/", other, self)

    def __floordiv__(self, other: ExprLike) -> Expr:
        return binary("//", self, other)

    def __mod__(self, other: ExprLike) -> Expr:
        return binary("%", self, other)

    def __and__(self, other: ExprLike) -> Expr:
        return binary("&", self, other)

    def __or__(self, other: ExprLike) -> Expr:
        return binary("|", self, other)

    def __lshift__(self, other: ExprLike) -> Expr:
        return binary("<<", self, other)

    def __rshift__(self, other: ExprLike) -> Expr:
        return binary(">>", self, other)

    def __lt__(self, other: ExprLike) -> Expr:
        return binary("<", self, other)

    def __le__(self, other: ExprLike) -> Expr:
        return binary("<=", self, other)

    def __neg__(self) -> Expr:
        return unary("neg", self)


ExprLike = Expr | int | float


@node
class Var(Expr):
    """A symbolic integer (dim, loop index) or a Let-bound value, with inclusive bounds if known."""

    name: str
    dtype: DType = I32
    lo: int | None = None
    hi: int | None = None


@node
class Const(Expr):
    """A literal."""

    value: int | float | bool
    dtype: DType


@node
class Unary(Expr):
    op: str
    a: Expr

    @property
    def dtype(self) -> DType:  # type: ignore[override]
        return BOOL if self.op == "not" else self.a.dtype


@node
class Binary(Expr):
    op: str
    a: Expr
    b: Expr

    @property
    def dtype(self) -> DType:  # type: ignore[override]
        row = BINARY[self.op]
        return BOOL if row.compares or self.op in ("and", "or") else self.a.dtype


@node
class Select(Expr):
    """`a` where `cond`, else `b`. Both sides must be safe to evaluate."""

    cond: Expr
    a: Expr
    b: Expr

    @property
    def dtype(self) -> DType:  # type: ignore[override]
        return self.a.dtype


@node
class Cast(Expr):
    dtype: DType
    a: Expr


@node
class Buffer:
    """A typed region: row-major `shape`, in a memory `scope`.

    Scopes: "global" (a kernel's argument), "scratch" (one thread's, too large for registers),
    "shared" (one work group's), "local" (one work item's array), "register".
    """

    name: str
    dtype: DType
    shape: tuple[Expr, ...]
    scope: str = "global"

    def __getitem__(self, index: ExprLike | tuple[ExprLike, ...]) -> Load:
        parts = index if isinstance(index, tuple) else (index,)
        return Load(self, tuple(wrap(part) for part in parts))


@node
class Load(Expr):
    """The element of `buffer` at `index`, one expression for each dimension."""

    buffer: Buffer
    index: tuple[Expr, ...]

    @property
    def dtype(self) -> DType:  # type: ignore[override]
        return self.buffer.dtype


@node
class Intrin(Expr):
    """A named operation of several arguments of one dtype, a row of INTRINSICS.

    `fma(a, b, c)` = a * b + c rounded once. `dot2(a, b)` takes each i32 for two i16 and sums the
    two products; it may be as large as 2**31, where it wraps. `dot4(a, b)` takes each for four i8;
    those of b must not be negative, for hardware multiplies signed numbers with unsigned ones.
    `pair4(a, b)` leaves two i16 in an i32 instead, each the sum of two of those products, and
    `pair4_add(a, b, c)` adds them to the two of c; where one does not fit, it wraps.
    `pair_bf16(a, b)` rounds two f32 to bf16 and lays them into an i32, the first in its low half.
    `codes_bf16(a, b)` makes such a pair of the two codes in a, of 8 bits at most, each less b, and
    `nibbles_bf16` does where codes and b have 4 bits at most. `dot2_bf16(a, b)` sums the products
    of two pairs in f32, which an instruction may do in an order of its own (`UNIT_SUM`).
    """

    name: str
    args: tuple[Expr, ...]

    @property
    def dtype(self) -> DType:  # type: ignore[override]
        return INTRINSICS[self.name].result or self.args[0].dtype


def wrap(value: ExprLike, dtype: DType | None = None) -> Expr:
    """A Python number as a Const (i32 or f32 unless told), an Expr as itself."""
    if isinstance(value, Expr):
        return value
    if dtype is None:
        dtype = BOOL if isinstance(value, bool) else I32 if isinstance(value, int) else F32
    kept = float(value) if dtype.is_float else int(value) if dtype.is_int else value
    return Const(kept, dtype)


def const_value(expr: Expr) -> int | float | bool | None:
    """The number a Const holds, None for anything else."""
    return expr.value if isinstance(expr, Const) else None


def binary(op: str, a: ExprLike, b: ExprLike) -> Expr:
    """Build a Binary; numbers take the other side's dtype, two integer constants fold."""
    if not isinstance(a, Expr):
        a = wrap(a, b.dtype if isinstance(b, Expr) else None)
    if not isinstance(b, Expr):
        b = wrap(b, a.dtype)
    if isinstance(a, Const) and isinstance(b, Const) and a.dtype.is_int:
        folded = _fold(op, a, b)
        if folded is not None:
            return folded
    if a.dtype.is_int:
        if isinstance(b, Const):
            if (b.value == 0 and op in ("+", "-", "|", "<<", ">>")) or (
                b.value == 1 and op in ("*", "//")
            ):
                return a
            if (op == "*" and b.value == 0) or (op == "%" and b.value == 1):
                return Const(0, a.dtype)
        if isinstance(a, Const):
            if (a.value == 0 and op == "+") or (a.value == 1 and op == "*"):
                return b
            if a.value == 0 and op in ("*", "//", "%"):
                return Const(0, a.dtype)
    return Binary(op, a, b)


_PYTHON: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "//": operator.floordiv,
    "%": operator.mod, "min": min, "max": max, "&": operator.and_, "|": operator.or_,
    "^": operator.xor, "<<": operator.lshift, ">>": operator.rshift, "<": operator.lt,
    "<=": operator.le, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip


def _fold(op: str, a: Const, b: Const) -> Const | None:
    if op not in _PYTHON or (op in ("//", "%") and b.value == 0):
        return None
    value = _PYTHON[op](a.value, b.value)
    if BINARY[op].compares:
        return Const(bool(value), BOOL)
    if a.dtype.kind == "uint":
        value &= (1 << a.dtype.bits) - 1
    return Const(value, a.dtype)


def unary(op: str, a: Expr) -> Expr:
    """Build a Unary; the negative of an integer constant folds."""
    if op == "neg" and isinstance(a, Const):
        return Const(-a.value, a.dtype)
    return Unary(op, a)


def cast(dtype: DType, a: ExprLike) -> Expr:
    """`a` converted to `dtype`; nothing when it already is."""
    expr = wrap(a)
    if expr.dtype == dtype:
        return expr
    if isinstance(expr, Const):
        return wrap(float(expr.value) if dtype.is_float else int(expr.value), dtype)
    return Cast(dtype, expr)


def select(cond: Expr, a: ExprLike, b: ExprLike) -> Expr:
    """`a` where `cond`, else `b`; a constant condition chooses at once."""
    if not isinstance(a, Expr):
        a = wrap(a, b.dtype if isinstance(b, Expr) else None)
    if not isinstance(b, Expr):
        b = wrap(b, a.dtype)
    if isinstance(cond, Const):
        return a if cond.value else b
    return Select(cond, a, b)


def minimum(a: ExprLike, b: ExprLike) -> Expr:
    return binary("min", a, b)


def maximum(a: ExprLike, b: ExprLike) -> Expr:
    return binary("max", a, b)


def equals(a: ExprLike, b: ExprLike) -> Expr:
    return binary("==", a, b)


def logical_and(a: Expr, b: Expr) -> Expr:
    if isinstance(a, Const):
        return b if a.value else a
    if isinstance(b, Const):
        return a if b.value else b
    return Binary("and", a, b)


def logical_or(a: Expr, b: Expr) -> Expr:
    return Binary("or", a, b)


def fma(a: ExprLike, b: ExprLike, c: ExprLike) -> Expr:
    """a * b + c with one rounding, on targets that have it; see Target.fma."""
    dtype = next(x.dtype for x in (a, b, c) if isinstance(x, Expr))
    return Intrin("fma", (wrap(a, dtype), wrap(b, dtype), wrap(c, dtype)))


def dot2(a: Expr, b: Expr) -> Expr:
    """Sum of the products of two pairs of i16, each pair in an i32."""
    return Intrin("dot2", (a, b))


def dot4(a: Expr, b: Expr) -> Expr:
    """Sum of the products of four pairs of i8, each four in an i32; those of b are 0 to 127."""
    return Intrin("dot4", (a, b))


def pair4(a: Expr, b: Expr) -> Expr:
    """As `dot4`, but two sums of two products each, as a pair of i16 in an i32."""
    return Intrin("pair4", (a, b))


def exp(a: Expr) -> Expr:
    return Unary("exp", a)


def sqrt(a: Expr) -> Expr:
    return Unary("sqrt", a)


def row_major(shape: tuple[Expr, ...], index: tuple[Expr, ...]) -> Expr:
    """Where an element lies in its buffer, in elements: the last index moves fastest."""
    flat: Expr = wrap(0)
    for extent, i in zip(shape, index, strict=True):
        flat = flat * extent + (i if i.dtype in (I32, I64) else Cast(I32, i))
    return flat


def ceil_div(a: ExprLike, b: int) -> Expr:
    """ceil(a / b) for non-negative a."""
    return wrap(wrap(a) + (b - 1)) // b
