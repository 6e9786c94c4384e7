"""Mixtures of experts: products with the weights of chosen experts, and the sum of their answers.

Which experts a token goes to is in `routing`. Each product is a sum of its own in a fixed order, so
a row's result does not depend on what is computed beside it. Experts' weights are one matrix,
expert e in rows e * size to (e + 1) * size. Source: Shazeer et al. 2017, "Outrageously Large Neural
Networks" (arXiv:1701.06538).
"""

from __future__ import annotations

from math import gcd

from sterna.base.dtype import F32
from sterna.ir.compute import SUM, Compute, axis
from sterna.ir.expr import Buffer, Expr, cast, wrap
from sterna.ir.graph import TensorType
from sterna.ops.op import Attrs, Kind, Op, define, expect, integer, static

LANES = 16  # partial sums of a product: the order of the reduction, part of its meaning


def _infer_matmul(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    x, index, weight, *bias = types
    depth, rows = (static(d, "expert_matmul: the weight") for d in weight.shape[::-1])
    experts, chosen = integer(attrs, "experts"), static(index.shape[1], "expert_matmul: slots")
    width = static(x.shape[1], "expert_matmul: the width")
    expect(rows % experts == 0, "expert_matmul: experts do not divide the weight's rows")
    expect(width in (depth, depth * chosen), "expert_matmul: inner dims differ")
    for added in bias:
        found = static(added.shape[0], "expert_matmul: the bias")
        expect(found == rows, "expert_matmul: bias and weight differ")
    return (TensorType((x.shape[0], wrap(chosen * (rows // experts))), x.dtype),)


def _compute_matmul(
    out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
) -> tuple[Compute, ...]:
    """out[n, s * size + c] = x[n] . w[index[n, s] * size + c], x of slot s where it has slots.

    A fourth argument is a bias for each row of the weight.
    """
    x, index, weight, *bias = args
    depth = static(weight.shape[1], "expert_matmul: the depth")
    size = static(weight.shape[0], "expert_matmul: the rows") // integer(attrs, "experts")
    lanes = gcd(depth, LANES)
    rows, columns = types[0].shape
    n, c, lane = axis("n", rows), axis("c", columns), axis("l", lanes)
    step = axis("j", depth // lanes)
    d = step.var * lanes + lane.var
    slot = c.var // size
    own = d if static(x.shape[1], "the width") == depth else slot * depth + d
    row = index[n.var, slot] * size + c.var % size
    body = cast(F32, x[n.var, own]) * cast(F32, weight[row, d])
    partial = Buffer(f"{out}.partial", F32, (rows, columns, wrap(lanes)))
    first = Compute(partial, (n, c, lane), body, (step,), SUM)
    n, c, lane = axis("n", rows), axis("c", columns), axis("l", lanes)
    total = Buffer(f"{out}.total", F32, (rows, columns))
    second = Compute(total, (n, c), partial[n.var, c.var, lane.var], (lane,), SUM)
    n, c = axis("n", rows), axis("c", columns)
    value: Expr = total[n.var, c.var]
    for added in bias:
        value = value + cast(F32, added[index[n.var, c.var // size] * size + c.var % size])
    result = Buffer(out, types[0].dtype, types[0].shape)
    return first, second, Compute(result, (n, c), cast(types[0].dtype, value))


def _infer_combine(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    y, *share = types
    width, slots = static(y.shape[1], "combine_experts"), integer(attrs, "slots")
    expect(all(static(t.shape[1], "shares") == slots for t in share), "combine_experts: slots")
    expect(width % slots == 0, "combine_experts: slots do not divide the width")
    return (TensorType((y.shape[0], wrap(width // slots)), y.dtype),)


def _compute_combine(
    out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
) -> tuple[Compute, ...]:
    """out[n, c] = sum over slots of share[n, s] * y[n, s * width + c]; without shares, of y."""
    y, *share = args
    rows, columns = types[0].shape
    n, c, s = axis("n", rows), axis("c", columns), axis("s", integer(attrs, "slots"))
    body = cast(F32, y[n.var, s.var * columns + c.var])
    for part in share:
        body = part[n.var, s.var] * body
    total = Buffer(f"{out}.total", F32, (rows, columns))
    summed = Compute(total, (n, c), body, (s,), SUM)
    n, c = axis("n", rows), axis("c", columns)
    result = Buffer(out, types[0].dtype, types[0].shape)
    return summed, Compute(result, (n, c), cast(types[0].dtype, total[n.var, c.var]))


def _infer_spread(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    width, slots = (static(t.shape[1], "spread_experts") for t in types)
    return (TensorType((types[0].shape[0], wrap(slots * width)), types[0].dtype),)


def _compute_spread(
    out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
) -> tuple[Compute, ...]:
    """out[n, s * width + c] = share[n, s] * x[n, c]: what each chosen expert gets to see."""
    x, share = args
    width = static(x.shape[1], "spread_experts")
    return (define(out, types[0], "n c", lambda n, c: cast(
        types[0].dtype, share[n, c // width] * cast(F32, x[n, c % width]))),)  # fmt: skip


EXPERT_MATMUL = Op("expert_matmul", Kind.REDUCE, _infer_matmul, _compute_matmul)
SPREAD_EXPERTS = Op("spread_experts", Kind.INJECTIVE, _infer_spread, _compute_spread)
COMBINE_EXPERTS = Op("combine_experts", Kind.REDUCE, _infer_combine, _compute_combine)
