"""Products of each head with a matrix of its own, and heads made of two parts.

What multi-head latent attention is made of beside attention itself. The matrices of all heads are
one weight, head h in `stride` rows from h * stride on, of which a product reads `size` from `start`
on. The order of each sum is fixed here. Source: DeepSeek-AI 2024, "DeepSeek-V2"
(arXiv:2405.04434).
"""

from __future__ import annotations

from math import gcd

from sterna.base.dtype import F32
from sterna.ir.compute import SUM, Compute, axis
from sterna.ir.expr import Buffer, Expr, cast, maximum, minimum, select, wrap
from sterna.ir.graph import TensorType
from sterna.ops.op import Attrs, Kind, Op, define, expect, integer, static

_LANES = 16  # partial sums of a product: the order of the reduction, part of its meaning


def _sizes(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[int, int]:
    """(heads, columns of the weight)."""
    rows, columns = (static(d, "head_matmul: the weight") for d in types[1].shape)
    start, size, stride = (integer(attrs, name) for name in ("start", "size", "stride"))
    fits = start >= 0 and size > 0 and start + size <= stride and rows % stride == 0
    expect(fits, f"head_matmul: {start}+{size} of every {stride} does not fit {rows} rows")
    return rows // stride, columns


def _infer_down(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    heads, columns = _sizes(types, attrs)
    width = static(types[0].shape[1], "head_matmul: the width")
    expect(width == heads * columns, "head_matmul: inner dims differ")
    return (TensorType((types[0].shape[0], wrap(heads * integer(attrs, "size"))), types[0].dtype),)


def _compute_down(
    out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
) -> tuple[Compute, ...]:
    """out[n, h * size + c] = sum over d of x[n, h * columns + d] * w[h * stride + start + c, d]."""
    x, weight = args
    depth = static(weight.shape[1], "head_matmul: the columns")
    start, size, stride = (integer(attrs, name) for name in ("start", "size", "stride"))
    lanes = gcd(depth, _LANES)
    rows, columns = types[0].shape
    n, c, lane, step = (
        axis("n", rows), axis("c", columns), axis("l", lanes), axis("j", depth // lanes)
    )  # fmt: skip
    d, head = step.var * lanes + lane.var, c.var // size
    row = head * stride + c.var % size + start
    body = cast(F32, x[n.var, head * depth + d]) * cast(F32, weight[row, d])
    partial = Buffer(f"{out}.partial", F32, (rows, columns, wrap(lanes)))
    first = Compute(partial, (n, c, lane), body, (step,), SUM)
    n, c, lane = axis("n", rows), axis("c", columns), axis("l", lanes)
    total = Buffer(f"{out}.total", F32, (rows, columns))
    second = Compute(total, (n, c), partial[n.var, c.var, lane.var], (lane,), SUM)
    return first, second, _result(out, total, types[0])


def _infer_up(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    heads, columns = _sizes(types, attrs)
    width = static(types[0].shape[1], "head_matmul: the width")
    expect(width == heads * integer(attrs, "size"), "head_matmul: inner dims differ")
    return (TensorType((types[0].shape[0], wrap(heads * columns)), types[0].dtype),)


def _compute_up(
    out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
) -> tuple[Compute, ...]:
    """out[n, h * columns + d] = sum over c of x[n, h * size + c] * w[h * stride + start + c, d]."""
    x, weight = args
    start, size, stride = (integer(attrs, name) for name in ("start", "size", "stride"))
    width = static(weight.shape[1], "head_matmul: the columns")
    rows, columns = types[0].shape
    n, d, c = axis("n", rows), axis("d", columns), axis("c", size)
    head = d.var // width
    weighed = cast(F32, weight[head * stride + c.var + start, d.var % width])
    total = Buffer(f"{out}.total", F32, (rows, columns))
    body = cast(F32, x[n.var, head * size + c.var]) * weighed
    return Compute(total, (n, d), body, (c,), SUM), _result(out, total, types[0])


def _result(out: str, total: Buffer, type: TensorType) -> Compute:
    n, c = (axis(name, extent) for name, extent in zip("nc", type.shape, strict=True))
    result = Buffer(out, type.dtype, type.shape)
    return Compute(result, (n, c), cast(type.dtype, total[n.var, c.var]))


def _infer_join(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    heads = integer(attrs, "heads")
    widths = [static(t.shape[1], "join_heads: the width") for t in types]
    expect(len(types) == 2, "join_heads: takes two tensors")
    expect(all(w % heads == 0 for w in widths), "join_heads: heads do not divide the width")
    return (TensorType((types[0].shape[0], wrap(sum(widths))), types[0].dtype),)


def _compute_join(
    out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
) -> tuple[Compute, ...]:
    """Head h of the result is head h of the first followed by that of the second."""
    heads = integer(attrs, "heads")
    left, right = (static(a.shape[1], "join_heads: the width") // heads for a in args)

    def body(n: Expr, c: Expr) -> Expr:
        head, d = c // (left + right), c % (left + right)
        first = args[0][n, head * left + minimum(d, left - 1)]
        return select(d < left, first, args[1][n, head * right + maximum(d - left, 0)])

    return (define(out, types[0], "n c", body),)


HEAD_MATMUL = Op("head_matmul", Kind.REDUCE, _infer_down, _compute_down)
HEAD_MATMUL_UP = Op("head_matmul_up", Kind.REDUCE, _infer_up, _compute_up)
JOIN_HEADS = Op("join_heads", Kind.INJECTIVE, _infer_join, _compute_join)
