"""A product of low rank added to a row, with the factors that the row's adapter has.

The factors of all adapters lie stacked, adapter e in rows e * rank to (e + 1) * rank, those of a
smaller rank filled up with zeros. A row without an adapter keeps its bits. Every sum has a fixed
order, so a row's result does not depend on what is computed beside it, nor on the other adapters.
Source: Hu et al. 2021, "LoRA" (arXiv:2106.09685); for several in one step, Chen et al. 2023,
"Punica" (arXiv:2310.18547).
"""

from __future__ import annotations

from math import gcd

from sterna.base.dtype import F32
from sterna.ir.compute import SUM, Compute, axis
from sterna.ir.expr import Buffer, cast, select, wrap
from sterna.ir.graph import TensorType
from sterna.ops.op import Attrs, Kind, Op, expect, integer, same_dim, static

_LANES = 16  # partial sums: the order of the reduction, part of its meaning on every target


def _infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    base, x, index, a, b = types
    rank, rows = integer(attrs, "rank"), static(a.shape[0], "add_low_rank: the factors")
    expect(rank > 0 and rows % rank == 0, "add_low_rank: the rank does not divide the factors")
    expect(same_dim(a.shape[0], b.shape[0]), "add_low_rank: factors of different numbers")
    expect(same_dim(x.shape[1], a.shape[1]), "add_low_rank: the first factor does not fit x")
    expect(same_dim(base.shape[1], b.shape[1]), "add_low_rank: the second factor does not fit")
    expect(same_dim(index.shape[0], base.shape[0]), "add_low_rank: an adapter for each row")
    return (base,)


def _compute(
    out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
) -> tuple[Compute, ...]:
    """out[n, c] = base[n, c] + up[n, c] where index[n] = e is not negative, else base[n, c].

    down[n, r] = x[n] . a[e * rank + r]; up[n, c] = sum over r of down[n, r] * b[e * rank + r, c].
    Rows without an adapter compute adapter 0's product, to drop it.
    """
    base, x, index, a, b = args
    rank = integer(attrs, "rank")
    rows, width = types[0].shape
    depth = static(x.shape[1], "the depth")
    lanes = gcd(depth, _LANES)

    n, r, lane = axis("n", rows), axis("r", rank), axis("l", lanes)
    step = axis("j", depth // lanes)
    d = step.var * lanes + lane.var
    at = select(index[n.var] < 0, wrap(0), index[n.var]) * rank + r.var
    partial = Buffer(f"{out}.partial", F32, (rows, wrap(rank), wrap(lanes)))
    body = cast(F32, x[n.var, d]) * cast(F32, a[at, d])
    first = Compute(partial, (n, r, lane), body, (step,), SUM)

    n, r, lane = axis("n", rows), axis("r", rank), axis("l", lanes)
    down = Buffer(f"{out}.down", F32, (rows, wrap(rank)))
    second = Compute(down, (n, r), partial[n.var, r.var, lane.var], (lane,), SUM)

    n, c, r = axis("n", rows), axis("c", width), axis("r", rank)
    at = select(index[n.var] < 0, wrap(0), index[n.var]) * rank + r.var
    up = Buffer(f"{out}.up", F32, (rows, width))
    body = down[n.var, r.var] * cast(F32, b[at, c.var])
    third = Compute(up, (n, c), body, (r,), SUM)

    n, c = axis("n", rows), axis("c", width)
    own = base[n.var, c.var]
    sum_ = cast(own.dtype, cast(F32, own) + up[n.var, c.var])
    result = Buffer(out, types[0].dtype, types[0].shape)
    return first, second, third, Compute(result, (n, c), select(index[n.var] < 0, own, sum_))


ADD_LOW_RANK = Op("add_low_rank", Kind.REDUCE, _infer, _compute)
