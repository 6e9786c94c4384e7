"""Products of small codes summed in pairs of 16 bits, where hardware adds bytes' products so.

In: a Group whose partial sums are of `dot4`. Out: the same Group with sums of `pair4`, whose two
halves the total adds up, once a group of k instead of once a step: x86 without VNNI multiplies
bytes into pairs of i16, and needs another instruction to make one i32 of them. Integers are exact
either way, so the bits are the same. A Group whose sums may not fit 16 bits is left as it is.
"""

from __future__ import annotations

from dataclasses import replace

from sterna.base.dtype import I32
from sterna.ir.compute import Compute, Group
from sterna.ir.expr import Binary, Cast, Expr, Intrin, Load, const_value, dot2, pair4, wrap
from sterna.ir.rewrite import replace_loads

_LARGEST = 128  # a byte of x, at most
_MOST = (1 << 15) - 1
_BOTH = 0x0001_0001  # a pair times it: both halves, added


def in_pairs(group: Group) -> Group:
    """The Group with sums of pairs, where they fit.

    Before:
        @group
        def product(x: i32[n, 8], code: u32[8, 32], scale: f32[32], *, n: dim(1, 64)):
            weight[p:8, n_1:32]: i32 = i32(code[p, n_1] & 252645135)
            sums[m:n, n_1:32, g:1]: i32 = sum(
                dot4(x[m, g * 8 + i], weight[g * 8 + i, n_1]) for i in range(8))
            acc[m:n, n_1:32]: f32 = sum(f32(sums[m, n_1, g]) * scale[n_1] for g in range(1))
            return acc
    After:
        @group
        def product(x: i32[n, 8], code: u32[8, 32], scale: f32[32], *, n: dim(1, 64)):
            weight[p:8, n_1:32]: i32 = i32(code[p, n_1] & 252645135)
            sums[m:n, n_1:32, g:1]: i32 = sum(
                pair4(x[m, g * 8 + i], weight[g * 8 + i, n_1]) for i in range(8))
            acc[m:n, n_1:32]: f32 = sum(
                f32(dot2(sums[m, n_1, g], 65537)) * scale[n_1] for g in range(1))
            return acc
    """
    sums = _small_sums(group)
    if sums is None:
        return group
    dot = sums.body
    assert isinstance(dot, Intrin), "checked by _small_sums"

    def added(load: Load) -> Expr | None:
        return dot2(load, wrap(_BOTH, I32)) if load.buffer is sums.out else None

    def rewritten(compute: Compute) -> Compute:
        if compute is sums:
            return replace(compute, body=pair4(*dot.args))
        return replace(compute, body=replace_loads(compute.body, added))

    return replace(group, computes=tuple(rewritten(c) for c in group.computes))


def _small_sums(group: Group) -> Compute | None:
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
    return sums


def _largest_byte(body: Expr) -> int | None:
    """What each byte of i32(... & mask) is as large as at most."""
    masked = body.a if isinstance(body, Cast) and body.dtype == I32 else None
    mask = const_value(masked.b) if isinstance(masked, Binary) and masked.op == "&" else None
    return None if mask is None else max(int(mask).to_bytes(4, "little"))
