"""Take what is constant over a group out of a grouped reduction.

Quantized weights are (code - zero) * scale with one scale for each group of k. Summing
x * (code - zero) inside a group and multiplying once by the scale costs one operation a group
instead of one a weight, and inside a group the products can later be exact integers. This
changes the order of the sum, so it is done here, once, for every schedule and target alike:
afterwards the order is part of the kernel's meaning.

In: a Group of operators' Computes. Out: a Group of equal meaning but for rounding. It knows no
packing: any factor that depends on k through k // g alone counts as constant over a group of g.
"""

from __future__ import annotations

from dataclasses import replace

from sterna.base.dtype import F32
from sterna.ir.compute import SUM, Axis, Compute, Group, axis
from sterna.ir.expr import (
    Binary,
    Buffer,
    Expr,
    Load,
    Var,
    ceil_div,
    const_value,
    minimum,
    select,
    wrap,
)
from sterna.ir.rewrite import free_vars, substitute, visit
from sterna.ir.simplify import simplify


def regroup(group: Group) -> Group:
    """Rewrite every reduction of the group that reads a weight stage with grouped factors.

    Before:
        @group
        def matmul(x: f32[n, 64], code: i8[128, 64], scale: f16[128, 2], *, n: dim(1, 8)):
            weight[k:64, n_1:128]: f32 = (f32(code[n_1, k]) - 7.0) * f32(scale[n_1, k // 32])
            acc[m:n, n_1:128]: f32 = sum(x[m, k] * weight[k, n_1] for k in range(64))
            return acc
    After:
        @group
        def matmul(x: f32[n, 64], code: i8[128, 64], scale: f16[128, 2], *, n: dim(1, 8)):
            weight[k:64, n_1:128]: f32 = f32(code[n_1, k]) - 7.0
            part[m:n, n_1:128, g:2]: f32 = sum(
                x[m, g * 32 + i] * weight[g * 32 + i, n_1] for i in range(32))
            acc[m:n, n_1:128]: f32 = sum(part[m, n_1, g] * f32(scale[n_1, g]) for g in range(2))
            return acc
    """
    computes: list[Compute] = []
    for compute in group.computes:
        weight = _weight_stage(compute, computes)
        found = _grouped_factors(weight) if weight is not None else None
        if weight is None or found is None:
            computes.append(compute)
            continue
        computes.remove(weight)
        computes.extend(_split_sum(compute, weight, *found))
    return replace(group, computes=tuple(computes))


def _weight_stage(compute: Compute, earlier: list[Compute]) -> Compute | None:
    """The stage [k, n] whose product with x a reduction over k sums up."""
    body = compute.body
    if len(compute.over) != 1 or not (isinstance(body, Binary) and body.op == "*"):
        return None
    if not isinstance(body.b, Load):
        return None
    return next((c for c in earlier if c.out is body.b.buffer and not c.over), None)


def _grouped_factors(weight: Compute) -> tuple[int, list[Expr], list[Expr]] | None:
    """(group size, factors constant over a group, the others), if there are any constant ones."""
    k = weight.axes[0].var
    factors = _factors(weight.body)
    sizes = {size for f in factors if (size := _group_size(f, k)) is not None}
    if len(sizes) != 1:
        return None
    size = sizes.pop()
    constant = [f for f in factors if _group_size(f, k) == size or k not in free_vars(f)]
    return size, constant, [f for f in factors if f not in constant]


def _factors(expr: Expr) -> list[Expr]:
    if isinstance(expr, Binary) and expr.op == "*":
        return [*_factors(expr.a), *_factors(expr.b)]
    return [expr]


def _group_size(factor: Expr, k: Var) -> int | None:
    """g where the factor depends on k through k // g alone."""
    sizes, rest = set[int](), 0
    for n in visit(factor):
        if isinstance(n, Binary) and n.op == "//" and n.a is k and const_value(n.b) is not None:
            sizes.add(int(const_value(n.b) or 0))
            rest -= 1
        if n is k:
            rest += 1
    return sizes.pop() if len(sizes) == 1 and rest == 0 else None


def _split_sum(
    compute: Compute, weight: Compute, size: int, constant: list[Expr], others: list[Expr]
) -> tuple[Compute, Compute, Compute]:
    (m, n), (k,) = compute.axes, compute.over
    assert isinstance(compute.body, Binary), "checked by _weight_stage"
    product = others[0] if others else wrap(1.0)
    for factor in others[1:]:
        product = product * factor
    staged = replace(weight, body=product)
    g = axis("g", simplify(ceil_div(k.extent, size)))
    inner = axis("i", size)
    whole = g.var * size + inner.var
    body = _at_depth(compute.body, k, whole)
    partial = Buffer(f"{compute.name}.group", F32, (m.extent, n.extent, g.extent))
    summed = Compute(partial, (m, n, g), body, over=(inner,), combine=SUM)
    outer = axis("g", g.extent)
    m2, n2 = Axis(Var("m", hi=m.var.hi, lo=0), m.extent), axis("n", n.extent)
    scale = wrap(1.0)
    for i, factor in enumerate(constant):
        at = {weight.axes[0].var: outer.var * size, weight.axes[1].var: n2.var}
        here = simplify(substitute(factor, at))
        scale = here if i == 0 else scale * here
    total = Compute(
        compute.out,
        (m2, n2),
        partial[m2.var, n2.var, outer.var] * scale,
        over=(outer,),
        combine=SUM,
    )
    return staged, summed, total


def _at_depth(body: Binary, k: Axis, whole: Expr) -> Expr:
    """x[m, k] * weight[k, n] at k = whole; past the last k of a ragged group x counts as 0."""
    depth = const_value(k.extent)
    ragged = depth is None or const_value(simplify(whole < k.extent)) is not True
    if not ragged:
        return substitute(body, {k.var: whole})
    inside = minimum(whole, k.extent - 1)
    x = select(whole < k.extent, substitute(body.a, {k.var: inside}), wrap(0.0))
    return Binary("*", x, substitute(body.b, {k.var: inside}))
