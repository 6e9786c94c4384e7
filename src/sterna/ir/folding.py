"""Arithmetic on constants, as the types that hold them do it.

In: numbers with their dtypes. Out: numbers. Knows only what is exact on every target: integers
modulo their size, conversions from integers, and IEEE arithmetic of f32 and f64.
"""

import math

import numpy as np

from sterna.base.dtype import F32, F64, DType
from sterna.ir.bounds import type_range
from sterna.ir.expr import Binary, Const


def wrapped(value: int, dtype: DType) -> int:
    """An integer as its type holds it; i32 and i64 are taken not to overflow."""
    least, most = type_range(dtype)
    if least <= value <= most or (dtype.kind == "int" and dtype.bits >= 32):
        return value
    return int((value - least) % (most - least + 1) + least)


def converted(value: int | float | bool, target: DType) -> int | float | bool:
    """A cast of an integer or bool constant."""
    if not target.is_float:
        least, most = type_range(target)
        return int((int(value) - least) % (most - least + 1) + least)
    return float(np.array(int(value)).astype(target.numpy))


_EXACT = {"+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide}


def fold_float(expr: Binary) -> Const | None:
    """IEEE arithmetic on constants of types that numpy computes in."""
    a, b, dtype = expr.a, expr.b, expr.a.dtype
    if not (isinstance(a, Const) and isinstance(b, Const)) or dtype not in (F32, F64):
        return None
    if expr.op not in _EXACT or not (math.isfinite(a.value) and math.isfinite(b.value)):
        return None
    with np.errstate(all="ignore"):
        value = float(_EXACT[expr.op](dtype.numpy.type(a.value), dtype.numpy.type(b.value)))
    return Const(value, dtype) if math.isfinite(value) else None
