"""Reading weights that other programs packed, of more parts than codes, scales and zero points.

Formats and arithmetic are those of `quantize.pack`; here the meaning of one element is stated, in
f32, each step rounded as there:

    value(code) * scale [+ minimum]

where scale and minimum may be small integers times a factor of many groups, a code may stand for a
level of a table or be a small float, and columns may name the group they belong to. `dequantize`
is the plain grid of these, which products of integers are made of.
"""

from __future__ import annotations

from collections.abc import Callable

from sterna.base.dtype import F32, I32, U32
from sterna.ir.compute import Compute
from sterna.ir.expr import Buffer, Expr, cast, maximum, select, wrap
from sterna.ir.graph import TensorType
from sterna.ops.op import Attrs, Kind, Op, define, expect, integer, number
from sterna.ops.quantize import code

Value = Callable[[Expr], Expr]


def _parts(attrs: Attrs) -> list[str]:
    return str(attrs["parts"]).split()


def _infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    expect(len(types) == len(_parts(attrs)), "restore: `parts` must name every argument")
    expect(types[0].dtype == U32, "restore: codes must be packed in u32 words")
    rows, depth = integer(attrs, "rows"), integer(attrs, "depth")
    return (TensorType((wrap(rows), wrap(depth)), F32),)


def _compute(
    out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
) -> tuple[Compute, ...]:
    parts = dict(zip(_parts(attrs), args, strict=True))
    value = _value(attrs)
    index = parts.get("q_group")
    group, outer = integer(attrs, "group"), integer(attrs, "outer")

    def of_group(name: str, factor: str, n: Expr, k: Expr) -> Expr:
        g = index[k] if index is not None else k // group
        found = cast(F32, parts[name][n, g])
        return found * cast(F32, parts[factor][n, k // outer]) if factor in parts else found

    def body(n: Expr, k: Expr) -> Expr:
        found = value(code(parts["q_weight"], n, k, attrs))
        if "q_zero" in parts:
            found = found - of_group("q_zero", "", n, k)
        found = found * of_group("q_scale", "q_outer", n, k)
        if "q_min" in parts:
            found = found + of_group("q_min", "q_outer_min", n, k)
        return found

    return (define(out, types[0], "n k", body),)


def _value(attrs: Attrs) -> Value:
    """What a code stands for, as quantize.code_values says."""
    levels = [float(level) for level in str(attrs["levels"]).split()]
    if levels:
        return lambda code: _level(code, levels)
    if integer(attrs, "exponent"):
        return lambda code: _small_float(code, attrs)
    bias = number(attrs, "bias")
    return lambda code: cast(F32, cast(I32, code)) - wrap(bias)


def _level(code: Expr, levels: list[float]) -> Expr:
    """levels[code], its number of levels a power of two: a choice by each bit, highest first."""
    half = len(levels) // 2
    if half == 0:
        return wrap(levels[0])
    return select(code & half < 1, _level(code, levels[:half]), _level(code, levels[half:]))


def _small_float(code: Expr, attrs: Attrs) -> Expr:
    bits, exponent_bits = integer(attrs, "bits"), integer(attrs, "exponent")
    mantissa = bits - 1 - exponent_bits
    exponent = (code >> mantissa) & ((1 << exponent_bits) - 1)
    one = wrap(1, U32)
    digits = (code & ((1 << mantissa) - 1)) + select(
        exponent < one, wrap(0, U32), wrap(1 << mantissa, U32)
    )
    whole = digits << (maximum(exponent, one) - one)
    value = cast(F32, cast(I32, whole)) * number(attrs, "unit")
    return select(code < wrap(1 << (bits - 1), U32), value, wrap(0.0) - value)


# Operators that unpack a weight: they move bits, and a product reads through them.
UNPACKING = ("dequantize", "restore")

RESTORE = Op("restore", Kind.INJECTIVE, _infer, _compute)
