"""Mixtures of experts: which experts a token goes to, their products, and the sum of their answers.

Each token chooses for itself and each of its products is a sum of its own in a fixed order, so a
row's result does not depend on what is computed beside it. Experts' weights are one matrix, expert
e in rows e * size to (e + 1) * size. Source: Shazeer et al. 2017, "Outrageously Large Neural
Networks" (arXiv:1701.06538).
"""

from __future__ import annotations

from collections.abc import Callable
from math import gcd

from sterna.base.dtype import F32, I32, DType
from sterna.ir.compute import MAX, SUM, Compute, axis
from sterna.ir.expr import (
    Buffer,
    Expr,
    cast,
    equals,
    exp,
    logical_and,
    logical_or,
    select,
    wrap,
)
from sterna.ir.graph import TensorType
from sterna.ops.op import Attrs, Kind, Op, expect, integer, number, static

_LANES = 16  # partial sums of a product: the order of the reduction, part of its meaning


def _infer_chosen(dtype: DType) -> Callable[..., tuple[TensorType, ...]]:
    def infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
        experts, chosen = static(types[0].shape[1], "route: the experts"), integer(attrs, "chosen")
        expect(0 < chosen <= experts, "route: more experts are chosen than there are")
        return (TensorType((types[0].shape[0], wrap(chosen)), dtype),)

    return infer


def _ranks(out: str, logits: Buffer) -> Compute:
    """rank[n, e]: how many experts a token prefers to e; of equals the first is preferred."""
    rows, experts = logits.shape
    n, e, j = axis("n", rows), axis("e", experts), axis("j", experts)
    own, other = cast(F32, logits[n.var, e.var]), cast(F32, logits[n.var, j.var])
    earlier = logical_and(equals(own, other), j.var < e.var)
    body = select(logical_or(own < other, earlier), wrap(1.0), wrap(0.0))
    return Compute(Buffer(f"{out}.rank", F32, (rows, experts)), (n, e), body, (j,), SUM)


def _of_rank(out: str, rank: Buffer, chosen: Expr, value: Callable[[Expr, Expr], Expr]) -> Compute:
    """found[n, s] = value(n, e) of the expert e of rank s: a sum with one term that is not 0."""
    rows, experts = rank.shape
    n, s, e = axis("n", rows), axis("s", chosen), axis("e", experts)
    own = equals(rank[n.var, e.var], cast(F32, s.var))
    body = select(own, value(n.var, e.var), wrap(0.0))
    return Compute(Buffer(f"{out}.found", F32, (rows, chosen)), (n, s), body, (e,), SUM)


def _compute_index(
    out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
) -> tuple[Compute, ...]:
    """index[n, s]: the expert of rank s."""
    rank = _ranks(out, args[0])
    found = _of_rank(out, rank.out, types[0].shape[1], lambda n, e: cast(F32, e))
    n, s = (axis(name, extent) for name, extent in zip("ns", types[0].shape, strict=True))
    result = Buffer(out, I32, types[0].shape)
    return rank, found, Compute(result, (n, s), cast(I32, found.out[n.var, s.var]))


def _compute_share(
    out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
) -> tuple[Compute, ...]:
    """share[n, s]: softmax of the logits at the expert of rank s.

    `over_chosen` divides by the sum over the chosen experts and not over all.
    """
    (logits,) = args
    rows, experts = logits.shape
    rank = _ranks(out, logits)
    n, e = axis("n", rows), axis("e", experts)
    top = Buffer(f"{out}.top", F32, (rows,))
    highest = Compute(top, (n,), cast(F32, logits[n.var, e.var]), (e,), MAX)

    def grown(n: Expr, e: Expr) -> Expr:
        return exp(cast(F32, logits[n, e]) - top[n])

    n, e = axis("n", rows), axis("e", experts)
    term = grown(n.var, e.var)
    if attrs["over_chosen"] is True:
        among = rank.out[n.var, e.var] < cast(F32, wrap(integer(attrs, "chosen")))
        term = select(among, term, wrap(0.0))
    total = Buffer(f"{out}.total", F32, (rows,))
    summed = Compute(total, (n,), term, (e,), SUM)
    found = _of_rank(out, rank.out, types[0].shape[1], grown)
    n, s = (axis(name, extent) for name, extent in zip("ns", types[0].shape, strict=True))
    share = found.out[n.var, s.var] / total[n.var] * number(attrs, "scaling")
    result = Compute(Buffer(out, F32, types[0].shape), (n, s), share)
    return rank, highest, summed, found, result


def _infer_matmul(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    x, index, weight = types
    depth, rows = (static(d, "expert_matmul: the weight") for d in weight.shape[::-1])
    experts, chosen = integer(attrs, "experts"), static(index.shape[1], "expert_matmul: slots")
    width = static(x.shape[1], "expert_matmul: the width")
    expect(rows % experts == 0, "expert_matmul: experts do not divide the weight's rows")
    expect(width in (depth, depth * chosen), "expert_matmul: inner dims differ")
    return (TensorType((x.shape[0], wrap(chosen * (rows // experts))), x.dtype),)


def _compute_matmul(
    out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
) -> tuple[Compute, ...]:
    """out[n, s * size + c] = x[n] . w[index[n, s] * size + c], x of slot s where it has slots."""
    x, index, weight = args
    depth = static(weight.shape[1], "expert_matmul: the depth")
    size = static(weight.shape[0], "expert_matmul: the rows") // integer(attrs, "experts")
    lanes = gcd(depth, _LANES)
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
    result = Buffer(out, types[0].dtype, types[0].shape)
    return first, second, Compute(result, (n, c), cast(types[0].dtype, total[n.var, c.var]))


def _infer_combine(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    y, _ = types
    width, slots = (static(t.shape[1], "combine_experts") for t in types)
    expect(width % slots == 0, "combine_experts: slots do not divide the width")
    return (TensorType((y.shape[0], wrap(width // slots)), y.dtype),)


def _compute_combine(
    out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
) -> tuple[Compute, ...]:
    """out[n, c] = sum over slots of share[n, s] * y[n, s * width + c]."""
    y, share = args
    rows, columns = types[0].shape
    n, c, s = axis("n", rows), axis("c", columns), axis("s", share.shape[1])
    body = share[n.var, s.var] * cast(F32, y[n.var, s.var * columns + c.var])
    total = Buffer(f"{out}.total", F32, (rows, columns))
    summed = Compute(total, (n, c), body, (s,), SUM)
    n, c = axis("n", rows), axis("c", columns)
    result = Buffer(out, types[0].dtype, types[0].shape)
    return summed, Compute(result, (n, c), cast(types[0].dtype, total[n.var, c.var]))


ROUTE_INDEX = Op("route_index", Kind.REDUCE, _infer_chosen(I32), _compute_index)
ROUTE_SHARE = Op("route_share", Kind.REDUCE, _infer_chosen(F32), _compute_share)
EXPERT_MATMUL = Op("expert_matmul", Kind.REDUCE, _infer_matmul, _compute_matmul)
COMBINE_EXPERTS = Op("combine_experts", Kind.REDUCE, _infer_combine, _compute_combine)
