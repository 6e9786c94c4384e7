"""Products of small codes summed in pairs of 16 bits, where hardware adds bytes' products so.

In: a Group whose partial sums are of `dot4`. Out: the same Group with sums of `pair4`, whose two
halves the total adds up, once a group of k instead of once a step: x86 without VNNI multiplies
bytes into pairs of i16, and needs another instruction to make one i32 of them. Where the weight's
codes have one bias, its correction is what the sums begin with, and the total has none. Integers
are exact either way, so the bits are the same. A Group whose sums may not fit 16 bits is left as it
is, and where they only do without the correction, that stays in the total.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sterna.base.dtype import I32
from sterna.ir.compute import Compute, Group
from sterna.ir.expr import Binary, Cast, Expr, Intrin, Load, Var, const_value, dot2, pair4, wrap
from sterna.ir.rewrite import free_vars, loads, replace_loads, rewrite, substitute, visit
from sterna.schedule.signed import bias_of

_LARGEST = 128  # a byte of x, at most
# A code of x, at most, where sums of codes are beside them: `dynamic_quantize` makes these, as
# numbers over a 127th of the largest in their group, rounded.
_LARGEST_CODE = 127
_MOST = (1 << 15) - 1
_BOTH = 0x0001_0001  # a pair times it: both halves, added
_LOW = 0xFFFF


def in_pairs(group: Group) -> Group:
    """The Group with sums of pairs, where they fit.

    Before:
        @group
        def product(x: i32[n, 8], total: i32[n, 1], code: u32[8, 32], scale: f32[32], *,
                    n: dim(1, 64)):
            weight[p:8, n_1:32]: i32 = i32(code[p, n_1] & 252645135)
            sums[m:n, n_1:32, g:1]: i32 = sum(
                dot4(x[m, g * 8 + i], weight[g * 8 + i, n_1]) for i in range(8))
            acc[m:n, n_1:32]: f32 = sum(
                f32(sums[m, n_1, g] - 7 * total[m, g]) * scale[n_1] for g in range(1))
            return acc
    After:
        @group
        def product(x: i32[n, 8], total: i32[n, 1], code: u32[8, 32], scale: f32[32], *,
                    n: dim(1, 64)):
            weight[p:8, n_1:32]: i32 = i32(code[p, n_1] & 252645135)
            sums[m:n, n_1:32, g:1]: i32 = sum(
                (pair4(x[m, g * 8 + i], weight[g * 8 + i, n_1]) for i in range(8)),
                start=total[m, g] * -7 & 65535)
            acc[m:n, n_1:32]: f32 = sum(
                f32(dot2(sums[m, n_1, g], 65537)) * scale[n_1] for g in range(1))
            return acc
    """
    found = _small_sums(group)
    if found is None:
        return group
    sums, dot = found.stage, found.dot
    taken = _correction(group, found)
    start = None if taken is None else taken.start

    def added(load: Load) -> Expr | None:
        return dot2(load, wrap(_BOTH, I32)) if load.buffer is sums.out else None

    def without(e: Expr) -> Expr:
        return taken.of if taken is not None and e is taken.whole else e

    def rewritten(compute: Compute) -> Compute:
        if compute is sums:
            return replace(sums, body=pair4(*dot.args), start=start)
        return compute.rewritten(lambda value: replace_loads(rewrite(value, without), added))

    return replace(group, computes=tuple(rewritten(c) for c in group.computes))


@dataclass(frozen=True, slots=True)
class _Sums:
    """A stage of sums, and of how many products of which codes they are."""

    stage: Compute
    dot: Intrin
    steps: int
    largest: int  # code of the weight


@dataclass(frozen=True, slots=True)
class _Correction:
    """`whole` is a load of sums, `of`, less what these may start with instead."""

    whole: Expr
    of: Load
    start: Expr


def _small_sums(group: Group) -> _Sums | None:
    """The sums of `dot4` that fit 16 bits, if the group has one such stage."""
    found = [c for c in group.computes if isinstance(c.body, Intrin) and c.body.name == "dot4"]
    if len(found) != 1 or len(found[0].over) != 1 or found[0].out in group.outputs:
        return None
    (sums,) = found
    assert isinstance(sums.body, Intrin), "just found"
    read, steps = sums.body.args[1], const_value(sums.over[0].extent)
    stages = [c for c in group.computes if isinstance(read, Load) and c.out is read.buffer]
    code = _largest_byte(stages[0].body) if len(stages) == 1 else None
    if code is None or steps is None or 2 * _LARGEST * code * int(steps) > _MOST:
        return None
    return None if sums.start is not None else _Sums(sums, sums.body, int(steps), code)


def _largest_byte(body: Expr) -> int | None:
    """What each byte of i32(... & mask) is as large as at most."""
    masked = body.a if isinstance(body, Cast) and body.dtype == I32 else None
    mask = const_value(masked.b) if isinstance(masked, Binary) and masked.op == "&" else None
    return None if mask is None else max(int(mask).to_bytes(4, "little"))


def _correction(group: Group, sums: _Sums) -> _Correction | None:
    """What is taken off the sums, if it can be what their low halves begin with."""
    values = [value for c in group.computes for value in c.values]
    reads = [load for value in values for load in loads(value) if load.buffer is sums.stage.out]
    nodes = [node for value in values for node in visit(value)]
    found = {n: bias for n in nodes if (bias := bias_of(n, sums.stage)) is not None}
    if len(found) != 1 or len(reads) != 1:
        return None
    ((whole, bias),) = found.items()
    assert isinstance(whole, Binary), "checked by bias_of"
    assert isinstance(whole.b, Binary), "checked by bias_of"
    (read,), total = reads, whole.b.b
    assert isinstance(total, Load), "checked by bias_of"
    at = {i: a.var for i, a in zip(read.index, sums.stage.axes, strict=True) if isinstance(i, Var)}
    known = len(at) == len(read.index) and free_vars(total) <= at.keys()
    if not known or total.buffer not in group.inputs or not _fits(sums, bias):
        return None
    there: dict[Var, Expr] = {i: axis for i, axis in at.items() if isinstance(i, Var)}
    return _Correction(whole, read, (substitute(total, there) * -bias) & _LOW)


def _fits(sums: _Sums, bias: int) -> bool:
    """Whether a low half that loses the bias of both halves is still a number of 16 bits.

    It is the sum of x * (code - bias) over its own codes of x, less bias * x of the others; before
    its end, and at its start, as if the codes of the weight that are still to come were 0.
    """
    most = max(bias, sums.largest - bias) + bias
    return 2 * sums.steps * _LARGEST_CODE * most <= _MOST
