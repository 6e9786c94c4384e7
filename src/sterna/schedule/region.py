"""Regions of stages: where readers' indices lie while loops run, and what holds two of them.

In: index expressions and loops. Out: first index and extent along an axis. It emits nothing.
"""

from __future__ import annotations

from sterna.base.errors import ScheduleError
from sterna.ir.expr import Binary, Expr, Load, Var, const_value, wrap
from sterna.ir.rewrite import free_vars, substitute, visit
from sterna.ir.simplify import simplify
from sterna.schedule.stage import Loop
from sterna.schedule.steps import Step


def span(index: Expr, fixed: set[Var], around: dict[Var, Loop], at: Step) -> tuple[Expr, Expr]:
    """First value and extent of an index while the variables not in `fixed` run.

    Sound for indices that grow with every inner variable, which is checked by form.
    """
    index = simplify(index)
    inner = {v: around[v] for v in free_vars(index) if v in around and v not in fixed}
    for node in visit(index):
        falls = isinstance(node, Binary) and node.op in ("-", "%")
        if isinstance(node, Load) or (falls and free_vars(node) & set(inner)):
            raise ScheduleError(f"{at}: the index {index!r} has no simple region")
    first = simplify(substitute(index, {v: wrap(0) for v in inner}))
    last = simplify(substitute(index, {v: loop.extent - 1 for v, loop in inner.items()}))
    return first, simplify(last - first + 1)


def union(
    a: list[tuple[Expr, Expr]], b: list[tuple[Expr, Expr]], at: Step
) -> list[tuple[Expr, Expr]]:
    """The smallest region that holds two whose places differ by numbers."""
    result = []
    for (first, extent), (other_first, other_extent) in zip(a, b, strict=True):
        shift = const_value(simplify(other_first - first))
        growth = const_value(simplify(other_first + other_extent - first - extent))
        if shift is None or growth is None:
            raise ScheduleError(f"{at}: readers need different regions")
        low, high = min(int(shift), 0), max(int(growth), 0)
        result.append((simplify(first + low), simplify(extent + high - low)))
    return result
