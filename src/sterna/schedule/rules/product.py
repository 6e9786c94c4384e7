"""What of a Group is a matrix product, and the numbers that the rules for vectors take.

In: a Group. Out: its stages by their part in the product, and what of it decides between rules.
Knows no schedules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from sterna.ir.bounds import bounds
from sterna.ir.compute import Compute, Group
from sterna.ir.expr import Intrin, const_value
from sterna.ir.rewrite import loads


@dataclass(frozen=True, slots=True)
class MatvecKnobs:
    """`lanes` a register; `rows` of the weight a work item, halved while items are too few."""

    SPACE: ClassVar[Mapping[str, tuple[int, ...]]] = {
        "rows": (16, 32, 64),
        "unroll": (4, 8, 16, 32),
        "ahead": (0, 2048, 4096, 8192, 16384),
    }

    lanes: int
    rows: int = 32
    least_rows: int = 16
    items: int = 4
    unroll: int = 16  # steps of k written out; a whole period of packed words where that is more
    ahead: int = 0  # bytes of packed words, of all streams, asked for ahead; 0: hardware alone asks
    turn: int = 1  # codes that a row of the weight takes before the next row does
    tokens: int = 1  # rows of x, two at most, that one pass over the weight serves


@dataclass(frozen=True, slots=True)
class MatmulKnobs:
    """A tile of accumulators: `tokens` rows of x by `vectors` registers of `lanes`.

    `vectors` are halved while work items would be fewer than `items`, and where blocks of so many
    rows of the weight do not end where its tiles do.
    """

    SPACE: ClassVar[Mapping[str, tuple[int, ...]]] = {
        "tokens": (2, 3, 4, 5, 6, 8),
        "vectors": (1, 2, 4),
        "unroll": (4, 8, 16),
        "ahead": (0, 2048, 4096),
        "part": (0, 4),
        "steps": (1, 2),
        "depth": (0, 512, 1024, 2048),
    }

    lanes: int
    tokens: int = 6
    vectors: int = 2
    items: int = 16
    unroll: int = 8  # steps of k written out while the panel is unpacked
    ahead: int = 0  # as in MatvecKnobs; bytes of a panel, or of a weight that is read in place
    steps: int = 1  # of k that a turn of a tile's loop takes, where words are no matter
    turn: int = 1  # as in MatvecKnobs
    part: int = 0  # rows of a skinny tile that are skipped together where x ends; 0: none are
    depth: int = 0  # steps of k of a panel; 0: all
    rows: int = 384  # of x that a panel serves, where it has not all of k


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
