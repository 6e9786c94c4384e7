"""Interval arithmetic: between which two integers an expression lies.

In: an expression whose Vars carry inclusive bounds, plus bounds known from enclosing loops. Out:
an inclusive interval; infinities inside this file, None in the public `bounds`. Integers of 32 and
64 signed bits are taken not to overflow; all other types wrap, so an interval that leaves such a
type becomes the type's whole range. Knows nothing of correlations between operands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from sterna.base.dtype import DType
from sterna.ir.expr import BINARY, Binary, Cast, Const, Expr, Select, Unary, Var

Bound = int | float  # an integer, or an infinity
Interval = tuple[Bound, Bound]
ANY: Interval = (-math.inf, math.inf)


def wraps(dtype: DType) -> bool:
    """Whether arithmetic in this type may leave its range and wrap around."""
    return dtype.kind == "uint" or dtype.bits < 32


def type_range(dtype: DType) -> Interval:
    """The values an integer type holds."""
    if dtype.kind == "uint":
        return (0, (1 << dtype.bits) - 1)
    if dtype.kind == "int":
        return (-(1 << (dtype.bits - 1)), (1 << (dtype.bits - 1)) - 1)
    return (0, 1) if dtype.kind == "bool" else ANY


def _unknown(dtype: DType) -> Interval:
    return type_range(dtype) if wraps(dtype) else ANY


def _times(a: Bound, b: Bound) -> Bound:
    return 0 if a == 0 or b == 0 else a * b


def scale(interval: Interval, factor: int) -> Interval:
    """The interval of `factor` times a value."""
    lo, hi = _times(interval[0], factor), _times(interval[1], factor)
    return (lo, hi) if factor >= 0 else (hi, lo)


def _floordiv(a: Bound, b: Bound) -> Bound:
    if math.isinf(a):
        return a if b > 0 else -a
    if math.isinf(b):
        return 0 if (a >= 0) == (b > 0) or a == 0 else -1
    return a // b


def _hull(corners: list[Bound]) -> Interval:
    return (min(corners), max(corners))


def _multiply(a: Interval, b: Interval) -> Interval:
    return _hull([_times(x, y) for x in a for y in b])


def _divide(a: Interval, b: Interval) -> Interval:
    if b[0] <= 0 <= b[1]:
        return ANY
    return _hull([_floordiv(x, y) for x in a for y in b])


def _modulo(a: Interval, b: Interval) -> Interval:
    if b[0] <= 0:
        return ANY
    if a[0] >= 0 and a[1] < b[0]:
        return a
    if b[0] == b[1] and math.isfinite(a[0]) and a[0] // b[0] == a[1] // b[0]:
        return (a[0] % b[0], a[1] % b[0])
    return (0, min(a[1], b[1] - 1) if a[0] >= 0 else b[1] - 1)


def _and(a: Interval, b: Interval) -> Interval:
    if a[0] >= 0 and b[0] >= 0:
        return (0, min(a[1], b[1]))
    return (0, a[1]) if a[0] >= 0 else (0, b[1]) if b[0] >= 0 else ANY


def _or(a: Interval, b: Interval) -> Interval:
    top = max(a[1], b[1])
    if a[0] < 0 or b[0] < 0 or math.isinf(top):
        return ANY
    return (0, (1 << int(top).bit_length()) - 1)


def _shift_left(a: Interval, b: Interval) -> Interval:
    if b[0] < 0 or b[1] > 63:
        return ANY
    return _multiply(a, (1 << int(b[0]), 1 << int(b[1])))


def _shift_right(a: Interval, b: Interval) -> Interval:
    if b[0] < 0 or b[1] > 63:
        return ANY
    return _divide(a, (1 << int(b[0]), 1 << int(b[1])))


_BINARY: dict[str, Callable[[Interval, Interval], Interval]] = {
    "+": lambda a, b: (a[0] + b[0], a[1] + b[1]),
    "-": lambda a, b: (a[0] - b[1], a[1] - b[0]),
    "*": _multiply,
    "//": _divide,
    "%": _modulo,
    "min": lambda a, b: (min(a[0], b[0]), min(a[1], b[1])),
    "max": lambda a, b: (max(a[0], b[0]), max(a[1], b[1])),
    "&": _and,
    "|": _or,
    "^": _or,
    "<<": _shift_left,
    ">>": _shift_right,
}
_UNARY: dict[str, Callable[[Interval], Interval]] = {
    "neg": lambda a: (-a[1], -a[0]),
    "invert": lambda a: (-a[1] - 1, -a[0] - 1),
    "abs": lambda a: (max(0, a[0], -a[1]), max(-a[0], a[1])),
}
_LOGIC = {op for op, row in BINARY.items() if row.compares} | {"and", "or", "not"}


class Intervals:
    """Intervals of expressions, remembered by identity. `ranges` narrows or supplies Vars'."""

    __slots__ = ("memo", "ranges", "types")

    def __init__(self, ranges: Mapping[Var, Interval] | None = None) -> None:
        self.ranges = dict(ranges or {})
        self.memo: dict[Expr, Interval] = {}
        self.types: dict[Expr, DType] = {}

    def __call__(self, expr: Expr) -> Interval:
        found = self.memo.get(expr)
        if found is None:
            found = self.memo[expr] = self._compute(expr)
        return found

    def dtype(self, expr: Expr) -> DType:
        """expr.dtype, which walks down the first operands, found once."""
        if not isinstance(expr, Binary | Unary):
            return expr.dtype
        found = self.types.get(expr)
        if found is None:
            logic = expr.op in _LOGIC
            found = self.types[expr] = expr.dtype if logic else self.dtype(expr.a)
        return found

    def leaves_type(self, expr: Expr) -> bool:
        """Whether the exact value of an operation may not fit its wrapping type."""
        dtype = self.dtype(expr)
        if not wraps(dtype):
            return False
        lo, hi = self._exact(expr)
        least, most = type_range(dtype)
        return lo < least or hi > most

    def _compute(self, expr: Expr) -> Interval:
        dtype = self.dtype(expr)
        if dtype.is_float:
            return ANY
        if not wraps(dtype):
            return self._exact(expr)
        lo, hi = self._exact(expr)
        least, most = type_range(dtype)
        return (lo, hi) if least <= lo and hi <= most else (least, most)

    def _exact(self, expr: Expr) -> Interval:
        if isinstance(expr, Const):
            return (int(expr.value), int(expr.value)) if not expr.dtype.is_float else ANY
        if isinstance(expr, Var):
            return self._var(expr)
        if isinstance(expr, Binary):
            on_pair = _BINARY.get(expr.op)
            if on_pair is None or not self.dtype(expr.a).is_int:
                return _unknown(self.dtype(expr))
            return on_pair(self(expr.a), self(expr.b))
        if isinstance(expr, Select):
            a, b = self(expr.a), self(expr.b)
            return (min(a[0], b[0]), max(a[1], b[1]))
        if isinstance(expr, Cast):
            return self._cast(expr)
        if isinstance(expr, Unary):
            on_one = _UNARY.get(expr.op)
            return _unknown(self.dtype(expr)) if on_one is None else on_one(self(expr.a))
        return _unknown(expr.dtype)

    def _var(self, var: Var) -> Interval:
        lo, hi = _unknown(var.dtype)
        lo = lo if var.lo is None else var.lo
        hi = hi if var.hi is None else var.hi
        known = self.ranges.get(var)
        return (lo, hi) if known is None else (max(lo, known[0]), min(hi, known[1]))

    def _cast(self, expr: Cast) -> Interval:
        least, most = type_range(expr.dtype)
        if expr.a.dtype.is_float:
            return (least, most)
        lo, hi = self(expr.a)
        return (lo, hi) if least <= lo and hi <= most else (least, most)


def bounds(expr: Expr) -> tuple[int | None, int | None]:
    """The inclusive interval of an integer expression, None where nothing is known.

    Uses the bounds of Vars and constants only; floats give (None, None).
    """
    lo, hi = Intervals()(expr)
    return (None if math.isinf(lo) else int(lo), None if math.isinf(hi) else int(hi))
