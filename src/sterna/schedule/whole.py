"""Sums of whole numbers in floats: products of packed codes as a matrix unit multiplies them.

In: a Group that sums dot products of integers. Out: the same Group, but that its operands are
stages of whole numbers in f16, and its sums f32. Units of that type are everywhere, and the order
in which they add is nowhere told; a sum of whole numbers below 2**24 has the same bits in any. So
`check_exact` is what stands between a unit and a sum whose order is its meaning. A Group whose sums
are the unit's own by meaning (`UNIT_SUM`) has such stages already, of floats.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from sterna.base.dtype import BF16, F16, F32, I32
from sterna.base.errors import ScheduleError
from sterna.ir.bounds import bounds
from sterna.ir.compute import Compute, Group, axis
from sterna.ir.expr import (
    Binary,
    Buffer,
    Cast,
    Const,
    Expr,
    Intrin,
    Load,
    binary,
    cast,
    const_value,
)
from sterna.ir.rewrite import replace_loads, substitute
from sterna.ir.simplify import simplify
from sterna.schedule.steps import Tensorize

_HALF_EXACT, _SINGLE_EXACT = 1 << 11, 1 << 24  # whole numbers up to here are exact
_CODE = 0x00FF  # codes of a weight have 8 bits at most


@dataclass(frozen=True, slots=True)
class Digits:
    """The stages of a Group for a unit: `sums[i]` adds up products with `digits[i]`."""

    digits: tuple[Compute, ...]
    weight: Compute
    sums: tuple[Compute, ...]
    total: Compute
    out: Compute


def in_digits(group: Group) -> Group:
    """Codes of activations as digits of 8 bits, products with each summed by itself.

    Before:
        @group
        def product(x: i32[n, 8], code: u32[32, 8], scale: f32[32], *, n: dim(1, 64)):
            weight[p:8, n_1:32]: i32 = i32(code[n_1, p] & 983055)
            sums[m:n, n_1:32, g:1]: i32 = sum(
                dot2(x[m, g * 8 + i], weight[g * 8 + i, n_1]) for i in range(8))
            acc[m:n, n_1:32]: f32 = sum(f32(sums[m, n_1, g]) * scale[n_1] for g in range(1))
            return acc
    After:
        @group
        def product(x: i32[n, 8], code: u32[32, 8], scale: f32[32], *, n: dim(1, 64)):
            sums_x1[m:n, k:16]: f16 = f16(f32(
                (x[m, k // 2] >> k % 2 * 16 + 8 & 255 ^ 128) - 128))
            sums_x0[m:n, k:16]: f16 = f16(f32(x[m, k // 2] >> k % 2 * 16 & 255))
            weight[n_1:32, k:16]: f16 = f16(f32(
                i32(code[n_1, k // 2] & 983055) >> k % 2 * 16 & 255))
            sums_x1_sum[m:n, n_1:32, g:1]: f32 = sum(
                f32(sums_x1[m, g * 16 + i]) * f32(weight[n_1, g * 16 + i]) for i in range(16))
            sums_x0_sum[m:n, n_1:32, g:1]: f32 = sum(
                f32(sums_x0[m, g * 16 + i]) * f32(weight[n_1, g * 16 + i]) for i in range(16))
            acc[m:n, n_1:32]: f32 = sum(
                f32(i32(sums_x1_sum[m, n_1, g]) * 256 + i32(sums_x0_sum[m, n_1, g])) * scale[n_1]
                for g in range(1))
            return acc
    """
    found = _dots(group)
    if found is None:
        raise ScheduleError(f"{group.name} has no sum of dot products of codes below 256")
    weight, sums = found
    dot = sums.body
    assert isinstance(dot, Intrin), "checked by _dots"
    digits = _digits(sums, dot, 2 if dot.name == "dot2" else 4)
    codes = _codes(weight, 32 // _width(dot))
    parts = tuple(_sum(sums, d, codes, 32 // _width(dot)) for d in digits)
    new: list[Compute] = []
    for compute in group.computes:
        if compute is weight:
            new += [*digits, codes]
        elif compute is sums:
            new += parts
        else:
            new.append(_joined(compute, sums.out, [p.out for p in parts]))
    return replace(group, computes=tuple(new))


def has_digits(group: Group, depth: int) -> bool:
    """Whether `in_digits` can rewrite it, with groups of k that are multiples of `depth`."""
    found = _dots(group)
    if found is None:
        return False
    sums = found[1]
    assert isinstance(sums.body, Intrin), "checked by _dots"
    size = const_value(sums.over[0].extent)
    return size is not None and int(size) * (32 // _width(sums.body)) % depth == 0


def by_unit(group: Group) -> bool:
    """Whether the unit makes its sums by meaning, in floats."""
    return any(c.combine is not None and c.combine.by_unit for c in group.computes)


def with_kept(group: Group) -> Group:
    """The same Group, but that other threads than those that made a unit's sums add them up."""
    (sums,) = digits_of(group).sums
    m, n, b = (axis(name, a.extent) for name, a in zip("mnb", sums.axes, strict=True))
    kept = Buffer(f"{sums.name}.kept", F32, (b.extent, m.extent, n.extent))

    def moved(load: Load) -> Expr | None:
        if load.buffer is not sums.out:
            return None
        row, column, block = load.index
        return kept[block, row, column]

    computes: list[Compute] = []
    for compute in group.computes:
        computes.append(compute.rewritten(lambda value: replace_loads(value, moved)))
        if compute is sums:
            computes.append(Compute(kept, (b, m, n), sums.out[m.var, n.var, b.var]))
    return replace(group, computes=tuple(computes))


def kept_of(group: Group) -> Compute:
    """The stage that `with_kept` added."""
    (sums,) = digits_of(group).sums
    copies = (c for c in group.computes if isinstance(c.body, Load) and c.body.buffer is sums.out)
    found = next(copies, None)
    if found is None:
        raise ScheduleError(f"{group.name} keeps no sums")
    return found


def digits_of(group: Group) -> Digits:
    """The stages of a Group that `in_digits` made, or whose sums are the unit's."""
    *sums, total = (c for c in group.computes if c.over)
    outs = [c for c in group.computes if c.out in group.outputs]
    read = [_factor(side) for c in sums for side in _pair(c)]
    by_out = {c.out: c for c in group.computes}
    stages = [by_out[b] for b in read if b is not None]
    if not sums or len(stages) != 2 * len(sums) or len(outs) != 1:
        raise ScheduleError(f"{group.name} is no product of digits")
    return Digits(tuple(stages[::2]), stages[1], tuple(sums), total, outs[0])


def check_exact(step: Tensorize, compute: Compute, computes: list[Compute]) -> None:
    """ScheduleError, unless a stage's sums begin at zero and are exact in whichever order.

    Those whose order is the unit's by meaning may be anything, those of integers are exact anyway,
    and a copy sums nothing.
    """
    if compute.start is not None:
        raise ScheduleError(f"{step}: the stage has a start; a matrix unit's sums have none")
    if compute.combine is not None and compute.combine.by_unit:
        return
    if compute.out.dtype.is_int:
        return
    if not compute.over and isinstance(compute.body, Load):
        return
    most = 1
    by_out = {c.out: c for c in computes}
    for side in _pair(compute):
        source = _factor(side)
        size = None if source is None else _largest(by_out[source].body)
        if size is None or size > _HALF_EXACT:
            raise ScheduleError(
                f"{step}: a matrix unit adds in an order of its own, so it is given products of "
                "stages of whole numbers in f16, below 2048"
            )
        most *= size
    counts = [const_value(a.extent) for a in compute.over]
    terms = prod(int(c) for c in counts if c is not None)
    if None in counts or most * terms > _SINGLE_EXACT:
        raise ScheduleError(f"{step}: {terms} products up to {most} may not be exact in f32")


def _pair(compute: Compute) -> tuple[Expr, ...]:
    body = compute.body
    product = isinstance(body, Binary) and body.op == "*" and compute.out.dtype == F32
    return (body.a, body.b) if product and isinstance(body, Binary) else (body,)


def _factor(side: Expr) -> Buffer | None:
    """The stage of 16-bit floats that a factor f32(stage[...]) reads."""
    if isinstance(side, Cast) and side.dtype == F32 and isinstance(side.a, Load):
        return side.a.buffer if side.a.dtype in (F16, BF16) else None
    return None


def _largest(body: Expr) -> int | None:
    """The largest magnitude of f16(f32(a whole number)), where it is known."""
    if not (isinstance(body, Cast) and body.dtype == F16 and isinstance(body.a, Cast)):
        return None
    whole = body.a.a
    lo, hi = bounds(whole) if whole.dtype.is_int else (None, None)
    return None if lo is None or hi is None else max(abs(lo), abs(hi))


def _dots(group: Group) -> tuple[Compute, Compute] | None:
    """(weights of two or four codes in an i32, the stage that sums their dot products)."""
    sums = [c for c in group.computes if c.over]
    if len(sums) != 2 or not isinstance(sums[0].body, Intrin) or len(sums[0].over) != 1:
        return None
    if sums[0].start is not None:
        return None
    dot = sums[0].body
    if dot.name not in ("dot2", "dot4") or not isinstance(dot.args[1], Load):
        return None
    weight = next((c for c in group.computes if c.out is dot.args[1].buffer), None)
    if weight is None or weight.over or len(weight.axes) != 2:
        return None
    small = sum(_CODE << i for i in range(0, 32, _width(dot)))
    return (weight, sums[0]) if _possible_bits(weight.body) & ~small == 0 else None


def _width(dot: Intrin) -> int:
    return 16 if dot.name == "dot2" else 8


def _possible_bits(e: Expr) -> int:
    """A mask of the bits that may be set in a 32-bit integer."""
    everything = (1 << 32) - 1
    if isinstance(e, Const) and e.dtype.is_int:
        return int(e.value) & everything
    if isinstance(e, Cast) and e.dtype.is_int and e.a.dtype.is_int:
        return _possible_bits(e.a)
    if isinstance(e, Binary) and e.op in ("&", "|"):
        a, b = _possible_bits(e.a), _possible_bits(e.b)
        return a & b if e.op == "&" else a | b
    if isinstance(e, Binary) and e.op == "<<" and isinstance(e.b, Const):
        return _possible_bits(e.a) << int(e.b.value) & everything
    return everything


def _digits(sums: Compute, dot: Intrin, parts: int) -> tuple[Compute, ...]:
    """The digits of x over [m, k], the highest first; that one has the sign."""
    (m, _, g), (i,), width = sums.axes, sums.over, _width(dot)
    rows = axis("m", m.extent)
    depth = int(const_value(g.extent) or 0) * int(const_value(i.extent) or 0) * parts
    k = axis("k", depth)
    pair, size = k.var // parts, int(const_value(i.extent) or 0)
    at = {m.var: rows.var, g.var: pair // size, i.var: pair % size}
    codes, shift = substitute(dot.args[0], at), k.var % parts * width
    result: list[Compute] = []
    for digit in reversed(range(0, width, 8)):
        value = (codes >> (shift + digit)) & 0xFF
        if digit == width - 8:
            value = binary("^", value, 0x80) - 0x80
        name = f"{sums.name}.x{digit // 8}"
        new = (rows, k) if not result else (axis("m", m.extent), axis("k", depth))
        value = substitute(value, {rows.var: new[0].var, k.var: new[1].var})
        body = cast(F16, cast(F32, simplify(value)))
        result.append(Compute(Buffer(name, F16, (m.extent, k.extent)), new, body))
    return tuple(result)


def _codes(weight: Compute, parts: int) -> Compute:
    """The weight's codes over [n, k]: the side that a unit reads along k."""
    p, n = weight.axes
    rows, k = axis("n", n.extent), axis("k", simplify(p.extent * parts))
    pair = substitute(weight.body, {p.var: k.var // parts, n.var: rows.var})
    code = cast(I32, pair) >> (k.var % parts * (32 // parts)) & _CODE
    body = cast(F16, cast(F32, simplify(code)))
    return Compute(Buffer(weight.name, F16, (rows.extent, k.extent)), (rows, k), body)


def _sum(sums: Compute, digits: Compute, codes: Compute, parts: int) -> Compute:
    """sum over the k of a group of digit * code, in f32."""
    m, n, g = (axis(name, a.extent) for name, a in zip("mng", sums.axes, strict=True))
    size = int(const_value(sums.over[0].extent) or 0) * parts
    i = axis("i", size)
    k = g.var * size + i.var
    body = cast(F32, digits.out[m.var, k]) * cast(F32, codes.out[n.var, k])
    out = Buffer(f"{digits.name}.sum", F32, sums.out.shape)
    return Compute(out, (m, n, g), body, over=(i,), combine=sums.combine)


def _joined(compute: Compute, sums: Buffer, parts: list[Buffer]) -> Compute:
    """The stage with what it read of the sums as the number that their digits make."""

    def number(load: Load) -> Expr | None:
        if load.buffer is not sums:
            return None
        value = cast(I32, parts[0][load.index])
        for part in parts[1:]:
            value = value * 256 + cast(I32, part[load.index])
        return value

    return compute.rewritten(lambda value: replace_loads(value, number))
