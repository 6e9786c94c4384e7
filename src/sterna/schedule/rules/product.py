"""What of a Group is a matrix product, for the rules that make one.

In: a Group. Out: its stages by their part in the product, and what of it decides between rules.
Knows no schedules.
"""

from __future__ import annotations

from dataclasses import dataclass

from sterna.ir.bounds import bounds
from sterna.ir.compute import Compute, Group
from sterna.ir.expr import Intrin, const_value
from sterna.ir.rewrite import loads


@dataclass(frozen=True, slots=True)
class Product:
    """The stages of a matrix product; `partial` sums one group of k where weights have groups."""

    weight: Compute
    partial: Compute | None
    total: Compute
    out: Compute


def product(group: Group) -> Product | None:
    """The matrix product that heads a group, if one does."""
    sums = [c for c in group.computes if c.over]
    read = {load.buffer for c in sums for load in loads(c.body)}
    weights = [
        c for c in group.computes if not c.over and len(c.axes) == 2 and c.out in read
        and c.out not in group.outputs and all(const_value(a.extent) is not None for a in c.axes)
    ]  # fmt: skip
    outs = [c for c in group.computes if c.out in group.outputs]
    if len(weights) != 1 or len(outs) != 1 or len(sums) > 2 or len(outs[0].axes) != 2:
        return None
    return Product(weights[0], sums[0] if len(sums) == 2 else None, sums[-1], outs[0])


def most_rows(found: Product) -> float:
    """How many rows of x there can be."""
    most = bounds(found.out.axes[0].extent)[1]
    return float("inf") if most is None else most


def of_bytes(found: Product) -> bool:
    """Whether four bytes and four bytes are multiplied at once."""
    return found.partial is not None and adds_bytes(found.partial)


def adds_bytes(stage: Compute) -> bool:
    """Whether a stage's sums are of four products of bytes each."""
    return isinstance(stage.body, Intrin) and stage.body.name == "dot4"
