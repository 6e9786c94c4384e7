"""Normalization over the last dim, computed in f32.

Source: Zhang and Sennrich 2019, "Root Mean Square Layer Normalization" (arXiv:1910.07467).
"""

from __future__ import annotations

from math import gcd

from sterna.base.dtype import F32
from sterna.ir.compute import SUM, Compute, axis
from sterna.ir.expr import Buffer, cast, sqrt, wrap
from sterna.ir.graph import TensorType
from sterna.ops.op import Attrs, Kind, Op, expect, number, same_dim, static

_LANES = 16  # partial sums: the order of the reduction, part of its meaning on every target


def _infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    x, weight = types
    expect(same_dim(x.shape[-1], weight.shape[0]), "rms_norm: weight and last dim differ")
    return (x,)


def _compute(
    out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
) -> tuple[Compute, ...]:
    """partial[n, l] = sum of squares of every 16th element; square[n] their sum; out = x / rms.

    An `offset` is added to the weight.
    """
    x, weight = args
    rows, width = x.shape[0], static(x.shape[1], "rms_norm: the last dim")
    lanes = gcd(width, _LANES)
    n, lane, step = axis("n", rows), axis("l", lanes), axis("j", width // lanes)
    partial = Buffer(f"{out}.partial", F32, (rows, wrap(lanes)))
    value = cast(F32, x[n.var, step.var * lanes + lane.var])
    first = Compute(partial, (n, lane), value * value, over=(step,), combine=SUM)
    n, lane = axis("n", rows), axis("l", lanes)
    square = Buffer(f"{out}.square", F32, (rows,))
    second = Compute(square, (n,), partial[n.var, lane.var], over=(lane,), combine=SUM)
    n = axis("n", rows)
    scale = Buffer(f"{out}.scale", F32, (rows,))
    mean = square[n.var] * (1.0 / width)
    third = Compute(scale, (n,), wrap(1.0) / sqrt(mean + number(attrs, "eps")))
    n, h = axis("n", rows), axis("h", width)
    gain = (
        cast(F32, weight[h.var]) + number(attrs, "offset")
        if "offset" in attrs
        else (cast(F32, weight[h.var]))
    )
    body = cast(F32, x[n.var, h.var]) * scale[n.var] * gain
    result = Buffer(out, types[0].dtype, types[0].shape)
    return (first, second, third, Compute(result, (n, h), cast(types[0].dtype, body)))


RMS_NORM = Op("rms_norm", Kind.REDUCE, _infer, _compute)
