"""Layer normalization, and norms of each head of queries and keys; all computed in f32.

Sources: Ba, Kiros and Hinton 2016, "Layer Normalization" (arXiv:1607.06450); Dehghani et al. 2023
(arXiv:2302.05442) for norms of queries and keys. Sums have the order of `ops.norm`: partial sums
side by side, then across.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from sterna.base.dtype import F32
from sterna.ir.compute import SUM, Axis, Compute, axis
from sterna.ir.expr import Buffer, Expr, cast, sqrt, wrap
from sterna.ir.graph import TensorType
from sterna.ops.op import Attrs, Kind, Op, expect, integer, number, same_dim, static

_LANES = 16


@dataclass(frozen=True, slots=True)
class _Sums:
    """Reductions of a [rows, heads * width] tensor over each head of each row.

    A tensor of one head has no axis for it.
    """

    out: str
    x: Buffer
    heads: int
    width: int

    def at(self, n: Expr, h: Expr | None, i: Expr) -> Expr:
        return cast(F32, self.x[n, i if h is None else h * self.width + i])

    def outer(self) -> tuple[Axis, ...]:
        n = axis("n", self.x.shape[0])
        return (n,) if self.heads == 1 else (n, axis("h", self.heads))

    def buffer(self, name: str, *more: int) -> Buffer:
        shape = (*(a.extent for a in self.outer()), *(wrap(m) for m in more))
        return Buffer(f"{self.out}.{name}", F32, shape)

    def mean(self, name: str, shift: Buffer | None, square: bool) -> tuple[Compute, ...]:
        """(partial sums, their sum) of x - shift, or of its square."""
        lanes = gcd(self.width, _LANES)
        outer, lane = self.outer(), axis("l", lanes)
        step = axis("j", self.width // lanes)
        at = tuple(a.var for a in outer)
        head = at[1] if self.heads > 1 else None
        value = self.at(at[0], head, step.var * lanes + lane.var)
        if shift is not None:
            value = value - shift[at]
        partial = self.buffer(f"{name}_partial", lanes)
        body = value * value if square else value
        first = Compute(partial, (*outer, lane), body, over=(step,), combine=SUM)
        outer, lane = self.outer(), axis("l", lanes)
        at = tuple(a.var for a in outer)
        total = self.buffer(name)
        second = Compute(total, outer, partial[(*at, lane.var)], over=(lane,), combine=SUM)
        return first, second

    def scalar(self, name: str, body: Expr, outer: tuple[Axis, ...]) -> Compute:
        return Compute(self.buffer(name), outer, body)


def _compute(
    out: str,
    args: tuple[Buffer, ...],
    types: tuple[TensorType, ...],
    attrs: Attrs,
    width: int,
    center: bool,
) -> tuple[Compute, ...]:
    """Sums, then (x - mean) * scale * weight + bias; a weight may be of one head or of all."""
    x, *learned = args
    whole = static(x.shape[1], "norm: the last dim")
    sums = _Sums(out, x, whole // width, width)
    stages: list[Compute] = []
    mean = None
    if center:
        stages += sums.mean("sum", None, False)
        outer = sums.outer()
        total = stages[-1].out[tuple(a.var for a in outer)]
        stages.append(sums.scalar("mean", total * (1.0 / width), outer))
        mean = stages[-1].out
    stages += sums.mean("square", mean, True)
    outer = sums.outer()
    variance = stages[-1].out[tuple(a.var for a in outer)] * (1.0 / width)
    scale = wrap(1.0) / sqrt(variance + number(attrs, "eps"))
    stages.append(sums.scalar("scale", scale, outer))
    n, c = axis("n", x.shape[0]), axis("c", whole)
    at = (n.var,) if sums.heads == 1 else (n.var, c.var // width)
    body = cast(F32, x[n.var, c.var])
    body = (body if mean is None else body - mean[at]) * stages[-1].out[at]
    for i, vector in enumerate(learned):
        value = cast(F32, vector[_own(vector, c.var, whole, width)])
        if i == 0:
            body = body * (value + number(attrs, "offset") if "offset" in attrs else value)
        else:
            body = body + value
    result = Buffer(out, types[0].dtype, types[0].shape)
    return (*stages, Compute(result, (n, c), cast(types[0].dtype, body)))


def _own(vector: Buffer, c: Expr, whole: int, width: int) -> tuple[Expr, ...]:
    """Where channel c finds its weight: in one a channel, one a head and channel, or one a head."""
    if len(vector.shape) == 2:
        return c // width, c % width
    return (c if static(vector.shape[0], "norm: the weight") == whole else c % width,)


def _infer_layer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    x, *learned = types
    alike = all(same_dim(x.shape[-1], vector.shape[0]) for vector in learned)
    expect(alike and len(learned) <= 2, "layer_norm: takes x, a weight and a bias of its width")
    return (x,)


def _infer_head(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    x, *weights = types  # a weight, and a bias
    dim = integer(attrs, "head_dim")
    whole = static(x.shape[1], "head norm: the last dim")
    expect(whole % dim == 0, "head norm: heads do not divide the width")
    for weight in weights:
        learned = [static(d, "head norm: the weight") for d in weight.shape]
        alike = learned in ([dim], [whole], [whole // dim, dim])
        expect(alike, "head norm: weights are [head_dim], [heads, head_dim] or [width]")
    return (x,)


def _layer(
    out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
) -> tuple[Compute, ...]:
    width = static(args[0].shape[1], "layer_norm: the last dim")
    return _compute(out, args, types, attrs, width, True)


def _head_rms(
    out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
) -> tuple[Compute, ...]:
    return _compute(out, args, types, attrs, integer(attrs, "head_dim"), False)


def _head_layer(
    out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
) -> tuple[Compute, ...]:
    return _compute(out, args, types, attrs, integer(attrs, "head_dim"), True)


LAYER_NORM = Op("layer_norm", Kind.REDUCE, _infer_layer, _layer)
HEAD_RMS_NORM = Op("head_rms_norm", Kind.REDUCE, _infer_head, _head_rms)
HEAD_LAYER_NORM = Op("head_layer_norm", Kind.REDUCE, _infer_head, _head_layer)
