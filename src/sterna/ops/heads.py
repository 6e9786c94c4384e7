"""Parts of each head or group of heads, and heads that several others share, products of heads.

Projections may interleave q, k and v; values of a head are repeated for each of its channels.
"""

from __future__ import annotations

from sterna.base.dtype import F32
from sterna.ir.compute import SUM, Compute, axis
from sterna.ir.expr import Buffer, Expr, cast, wrap
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


def _infer_repeat(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    dim, times = integer(attrs, "head_dim"), integer(attrs, "times")
    width = static(types[0].shape[1], "repeat_heads: the last dim")
    fits = dim > 0 and times > 0 and width % dim == 0
    expect(fits, f"repeat_heads: heads of {dim}, {times} times each, do not fill {width}")
    return (TensorType((types[0].shape[0], wrap(width * times)), types[0].dtype),)


def _compute_repeat(
    out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
) -> tuple[Compute, ...]:
    """[n, heads * dim] -> [n, heads * times * dim]: each head so many times in a row."""
    dim, times = integer(attrs, "head_dim"), integer(attrs, "times")

    def body(n: Expr, c: Expr) -> Expr:
        return args[0][n, c // (dim * times) * dim + c % dim]

    return (define(out, types[0], "n c", body),)


def _infer_dot(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    x, y, weight = types
    heads, dim = (static(d, "head_dot: the weight") for d in weight.shape)
    for side in (x, y):
        fits = static(side.shape[1], "head_dot: the last dim") == heads * dim
        expect(fits, f"head_dot: the width is not that of {heads} heads of {dim}")
    return (TensorType((x.shape[0], wrap(heads)), x.dtype),)


def _compute_dot(
    out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
) -> tuple[Compute, ...]:
    """out[n, h] = sum over i of x[n, h, i] * y[n, h, i] * weight[h, i], in f32, in order."""
    x, y, weight = args
    heads, dim = (static(d, "head_dot: the weight") for d in weight.shape)
    n, h, i = axis("n", x.shape[0]), axis("h", heads), axis("i", dim)
    at = h.var * dim + i.var
    body = cast(F32, x[n.var, at]) * cast(F32, y[n.var, at]) * cast(F32, weight[h.var, i.var])
    total = Compute(Buffer(f"{out}.sum", F32, types[0].shape), (n, h), body, (i,), SUM)
    result = define(out, types[0], "n h", lambda n, h: cast(types[0].dtype, total.out[n, h]))
    return total, result


REPEAT_HEADS = Op("repeat_heads", Kind.INJECTIVE, _infer_repeat, _compute_repeat)
HEAD_DOT = Op("head_dot", Kind.REDUCE, _infer_dot, _compute_dot)
SLICE_GROUPS = Op("slice_groups", Kind.INJECTIVE, _infer, _compute)
