"""Parts of each head or group of heads, where a projection's rows interleave q, k and v."""

from __future__ import annotations

from sterna.ir.compute import Compute
from sterna.ir.expr import Buffer, Expr, wrap
from sterna.ir.graph import TensorType
from sterna.ops.op import Attrs, Kind, Op, define, expect, integer, static


def _infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    start, size, stride = (integer(attrs, name) for name in ("start", "size", "stride"))
    width = static(types[0].shape[1], "slice_groups: the last dim")
    fits = start >= 0 and start + size <= stride and width % stride == 0
    expect(fits, f"slice_groups: {start}+{size} of every {stride} does not fit {width}")
    return (TensorType((types[0].shape[0], wrap(width // stride * size)), types[0].dtype),)


def _compute(
    out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
) -> tuple[Compute, ...]:
    """out[n, g * size + i] = x[n, g * stride + start + i]."""
    start, size, stride = (integer(attrs, name) for name in ("start", "size", "stride"))

    def body(n: Expr, c: Expr) -> Expr:
        return args[0][n, c // size * stride + c % size + start]

    return (define(out, types[0], "n c", body),)


SLICE_GROUPS = Op("slice_groups", Kind.INJECTIVE, _infer, _compute)
