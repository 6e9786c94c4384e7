"""Matrix product with a weight in [out, in] layout, accumulated in f32."""

from __future__ import annotations

from sterna.base.dtype import F32
from sterna.ir.compute import SUM, Compute, axis
from sterna.ir.expr import Buffer, cast
from sterna.ir.graph import TensorType
from sterna.ops.op import Attrs, Kind, Op, expect, same_dim


def _infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    x, weight = types
    expect(len(x.shape) == 2 and len(weight.shape) == 2, "matmul: needs [m, k] and [n, k]")
    expect(same_dim(x.shape[1], weight.shape[1]), "matmul: inner dims differ")
    return (TensorType((x.shape[0], weight.shape[0]), x.dtype),)


def _compute(
    out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
) -> tuple[Compute, ...]:
    """weight[k, n] = w[n, k]; acc[m, n] = sum over k of x[m, k] * weight[k, n]; out = acc.

    The weight is a Compute of its own so that a schedule may stage it as a panel or inline it.
    """
    x, w = args
    (rows, depth), columns = x.shape, types[0].shape[1]
    n, k = axis("n", columns), axis("k", depth)
    weight = Buffer(f"{out}.weight", F32, (depth, columns))
    staged = Compute(weight, (k, n), cast(F32, w[n.var, k.var]))
    m, n, k = axis("m", rows), axis("n", columns), axis("k", depth)
    acc = Buffer(f"{out}.acc", F32, (rows, columns))
    body = cast(F32, x[m.var, k.var]) * weight[k.var, n.var]
    product = Compute(acc, (m, n), body, over=(k,), combine=SUM)
    m, n = axis("m", rows), axis("n", columns)
    result = Compute(
        Buffer(out, types[0].dtype, types[0].shape), (m, n), cast(types[0].dtype, acc[m.var, n.var])
    )
    return (staged, product, result)


MATMUL = Op("matmul", Kind.REDUCE, _infer, _compute)
