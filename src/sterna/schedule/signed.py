"""Products of pairs of codes whose weights have lost their bias before they are multiplied.

In: a Group whose total sums (group - bias * sum of x) * scales. Out: the same Group where the bias
is taken from each code of the weight, so that the sum of a group needs no correction: an operation
less for each of these sums, for three more at each pair of weights. That pays where weights are
unpacked once for many rows. Integers are exact either way, so the bits are the same. Groups of
another form are left as they are.
"""

from __future__ import annotations

from dataclasses import replace

from sterna.base.dtype import I32, U32
from sterna.ir.compute import Compute, Group
from sterna.ir.expr import Binary, Cast, Expr, Intrin, Load, cast, const_value, wrap
from sterna.ir.rewrite import rewrite, visit

_TOPS = 0x8000_8000  # the top bits of a pair
_BOTH = 0x0001_0001  # times a number: it in both halves


def signed(group: Group) -> Group:
    """The Group with signed codes, where it multiplies pairs of codes that have one bias."""
    pairs = _pairs(group)
    if pairs is None:
        return group
    weight, partial, total = pairs
    found = {n: bias for n in visit(total.body) if (bias := bias_of(n, partial)) is not None}
    if len(found) != 1:
        return group
    ((corrected, bias),) = found.items()
    assert isinstance(corrected, Binary), "checked by bias_of"
    body = rewrite(total.body, lambda e: corrected.a if e == corrected else e)
    new = {
        weight.out: replace(weight, body=_less(weight.body, bias)),
        total.out: replace(total, body=body),
    }
    return replace(group, computes=tuple(new.get(c.out, c) for c in group.computes))


def _pairs(group: Group) -> tuple[Compute, Compute, Compute] | None:
    """(weight, partial sum, total), where pairs of small codes that nothing else reads are used."""
    sums = [c for c in group.computes if c.over]
    if len(sums) != 2 or not isinstance(dot := sums[0].body, Intrin) or dot.name != "dot2":
        return None
    read = dot.args[1]
    stages = [c for c in group.computes if isinstance(read, Load) and c.out is read.buffer]
    if len(stages) != 1 or stages[0].over or not _has_free_tops(stages[0].body):
        return None
    return stages[0], sums[0], sums[1]


def _has_free_tops(body: Expr) -> bool:
    """Whether the top bit of both halves is 0: i32(... & mask)."""
    if not isinstance(body, Cast) or body.dtype != I32 or body.a.dtype != U32:
        return False
    mask = const_value(body.a.b) if isinstance(body.a, Binary) and body.a.op == "&" else None
    return mask is not None and not int(mask) & _TOPS


def bias_of(node: object, partial: Compute) -> int | None:
    """b of partial - b * x, where b is a positive number of 16 bits."""
    if not isinstance(node, Binary) or node.op != "-" or not isinstance(node.a, Load):
        return None
    times = node.b
    if node.a.buffer is not partial.out or not isinstance(times, Binary) or times.op != "*":
        return None
    bias = const_value(times.a) if isinstance(times.b, Load) else None
    return int(bias) if bias is not None and 0 < bias < 1 << 15 else None


def _less(pair: Expr, bias: int) -> Expr:
    """Both halves less the bias: with their top bits set neither borrows from the other."""
    assert isinstance(pair, Cast), "checked by _has_free_tops"
    raised = (pair.a | wrap(_TOPS, U32)) - wrap(bias * _BOTH, U32)
    return cast(I32, Binary("^", raised, wrap(_TOPS, U32)))
