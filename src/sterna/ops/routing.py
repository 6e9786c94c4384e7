"""Which experts a token goes to, and its share of each.

Each token chooses for itself: it ranks the experts by what it thinks of them, of equals the first,
and goes to those ranked best. DeepSeek's models divide the experts into groups and choose among
the best groups only. Sources: Shazeer et al. 2017 (arXiv:1701.06538); DeepSeek-AI 2024,
"DeepSeek-V2" (arXiv:2405.04434) and "DeepSeek-V3" (arXiv:2412.19437).
"""

from __future__ import annotations

from collections.abc import Callable

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
from sterna.ops.activation import sigmoid
from sterna.ops.op import Attrs, Kind, Op, expect, integer, number, static

_LOW = -1.0e30  # below whatever a token thinks of an expert
_SMALL = 1.0e-20  # sums of shares stay above 0


def _infer_index(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    """(logits [n, experts], and maybe a bias [experts]) -> i32 [n, chosen]."""
    experts, chosen = static(types[0].shape[1], "route: the experts"), integer(attrs, "chosen")
    groups, best = integer(attrs, "groups"), integer(attrs, "best")
    expect(groups > 0 and experts % groups == 0, "route: groups do not divide the experts")
    expect(0 < best <= groups, "route: more groups are chosen than there are")
    expect(0 < chosen <= experts // groups * best, "route: more experts are chosen than there are")
    return _chosen(types[0], chosen, I32)


def _infer_share(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    return _chosen(types[0], static(types[1].shape[1], "route: the slots"), F32)


def _chosen(logits: TensorType, chosen: int, dtype: DType) -> tuple[TensorType, ...]:
    return (TensorType((logits.shape[0], wrap(chosen)), dtype),)


def _compute_index(
    out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
) -> tuple[Compute, ...]:
    """index[n, s]: the expert of rank s.

    A token prefers the larger logit, or with a bias the larger sigmoid(logit) + bias. With
    `groups`, it chooses among those of the `best` groups, which are told by the sum of their
    `leaders` largest.
    """
    logits, *bias = args
    n, e = axis("n", logits.shape[0]), axis("e", logits.shape[1])
    liked = cast(F32, logits[n.var, e.var])
    for added in bias:
        liked = sigmoid(liked) + cast(F32, added[e.var])
    stages = [Compute(Buffer(f"{out}.liked", F32, logits.shape), (n, e), liked)]
    if integer(attrs, "groups") > integer(attrs, "best"):
        stages += _among_best(out, stages[-1].out, attrs)
    stages.append(_ranks(f"{out}.rank", stages[-1].out, 1))
    rank = stages[-1].out
    n, s, e = axis("n", rank.shape[0]), axis("s", types[0].shape[1]), axis("e", rank.shape[1])
    own = equals(rank[n.var, e.var], cast(F32, s.var))
    found = Buffer(f"{out}.found", F32, types[0].shape)
    body = select(own, cast(F32, e.var), wrap(0.0))  # a sum with one term that is not 0
    stages.append(Compute(found, (n, s), body, (e,), SUM))
    n, s = (axis(name, extent) for name, extent in zip("ns", types[0].shape, strict=True))
    result = Buffer(out, I32, types[0].shape)
    return (*stages, Compute(result, (n, s), cast(I32, found[n.var, s.var])))


def _ranks(title: str, value: Buffer, groups: int) -> Compute:
    """rank[n, e]: how many experts of its group a token prefers to e."""
    rows, experts = value.shape
    size = static(experts, "route: the experts") // groups
    n, e, j = axis("n", rows), axis("e", experts), axis("j", size)
    other_at = j.var if groups == 1 else e.var // size * size + j.var
    own, other = value[n.var, e.var], value[n.var, other_at]
    earlier = logical_and(equals(own, other), other_at < e.var)
    body = select(logical_or(own < other, earlier), wrap(1.0), wrap(0.0))
    return Compute(Buffer(title, F32, value.shape), (n, e), body, (j,), SUM)


def _among_best(out: str, liked: Buffer, attrs: Attrs) -> list[Compute]:
    """`liked` with experts of other groups than the best set below all others."""
    groups, best = integer(attrs, "groups"), integer(attrs, "best")
    rows, experts = liked.shape
    size = static(experts, "route: the experts") // groups
    inside = _ranks(f"{out}.inside", liked, groups)
    n, g, j = axis("n", rows), axis("g", groups), axis("j", size)
    at = (n.var, g.var * size + j.var)
    leads = inside.out[at] < float(integer(attrs, "leaders"))
    score = Buffer(f"{out}.score", F32, (rows, wrap(groups)))
    scored = Compute(score, (n, g), select(leads, liked[at], wrap(0.0)), (j,), SUM)
    order = _ranks(f"{out}.order", score, 1)
    n, e = axis("n", rows), axis("e", experts)
    kept = order.out[n.var, e.var // size] < float(best)
    body = select(kept, liked[n.var, e.var], wrap(_LOW))
    among = Compute(Buffer(f"{out}.among", F32, liked.shape), (n, e), body)
    return [inside, scored, order, among]


def _compute_share(
    out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
) -> tuple[Compute, ...]:
    """share[n, s]: what the token thinks of expert index[n, s], times `scaling`.

    That is softmax of the logits over all experts, or sigmoid of the expert's own; `over_chosen`
    makes shares of it whose sum is 1.
    """
    logits, index = args
    rows, experts = logits.shape
    softmax, over_chosen = attrs["score"] == "softmax", attrs["over_chosen"] is True
    stages: list[Compute] = []
    value: Callable[[Expr, Expr], Expr]
    if softmax:
        n, e = axis("n", rows), axis("e", experts)
        top = Buffer(f"{out}.top", F32, (rows,))
        stages.append(Compute(top, (n,), cast(F32, logits[n.var, e.var]), (e,), MAX))

        def value(n: Expr, e: Expr) -> Expr:
            return exp(cast(F32, logits[n, e]) - top[n])
    else:

        def value(n: Expr, e: Expr) -> Expr:
            return sigmoid(cast(F32, logits[n, e]))

    total = Buffer(f"{out}.total", F32, (rows,))
    n, s = axis("n", rows), axis("s", index.shape[1])
    share = value(n.var, index[n.var, s.var])
    if over_chosen or softmax:
        m, e = axis("n", rows), axis("e", index.shape[1] if over_chosen else experts)
        term = value(m.var, index[m.var, e.var] if over_chosen else e.var)
        stages.append(Compute(total, (m,), term, (e,), SUM))
        share = share / (total[n.var] if softmax else total[n.var] + _SMALL)
    result = Buffer(out, F32, types[0].shape)
    return (*stages, Compute(result, (n, s), share * number(attrs, "scaling")))


ROUTE_INDEX = Op("route_index", Kind.REDUCE, _infer_index, _compute_index)
ROUTE_SHARE = Op("route_share", Kind.REDUCE, _infer_share, _compute_share)
