"""Where the packed words and the tiles of a weight begin, read off its stage's indices.

In: the Compute of a weight [k, n]. Out: after how many steps of k, or rows n, words and tiles end.
It knows no schedule: rules cut loops so that they end there too.
"""

from __future__ import annotations

from math import gcd, lcm

from sterna.base.dtype import U32
from sterna.ir.compute import Compute
from sterna.ir.expr import Binary, Expr, Var, const_value
from sterna.ir.rewrite import free_vars, loads, substitute, visit
from sterna.ir.simplify import simplify


def tile_rows(weight: Compute) -> int | None:
    """Rows that are interleaved in a weight's tiles; None where it has no tiles."""
    n = weight.axes[1].var
    indices = (i for load in loads(weight.body) for i in load.index)
    for node in (part for index in indices for part in visit(index)):
        if isinstance(node, Binary) and node.op == "//" and node.a is n:
            return int(const_value(node.b) or 1)
    return None


def period(weight: Compute, axis: int = 0) -> int:
    """Steps of k after which the codes of packed weights start at a word's border again; else 1.

    Packed words are read at (k * bits) // 32 or at k // codes, or there with k // parts for k, an
    axis of the weight.
    """
    k, found = weight.axes[axis].var, 1
    words = [load for load in loads(weight.body) if load.buffer.dtype == U32]
    for node in (n for load in words for i in load.index for n in visit(i)):
        if isinstance(node, Binary) and node.op == "//" and k in free_vars(node.a):
            divisor, whole, step = const_value(node.b), 1, _step(node.a, k)
            if step is None and isinstance(node.a, Binary) and node.a.op == "//":
                whole, step = int(const_value(node.a.b) or 1), _step(node.a.a, k)
            if step is not None and divisor is not None:
                size = int(divisor) * whole
                found = lcm(found, size // gcd(size, step))
    return found


def _step(index: Expr, k: Var) -> int | None:
    """How far the index moves with each step of k."""
    value = const_value(simplify(substitute(index, {k: k + 1}) - index))
    return None if value is None else int(value)


def whole_periods(wanted: int, period: int, extent: Expr) -> int | None:
    """Codes to write out: whole periods, about `wanted` codes; None where nothing is packed."""
    steps = const_value(extent)
    if period == 1 or (steps is not None and steps < period):
        return None
    return period * max(1, min(wanted, int(steps or wanted)) // period)
