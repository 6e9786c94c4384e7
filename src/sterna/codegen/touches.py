"""What threads of a work group touch, and when two touches may be of one place.

A touch is a buffer, the thread that owns the element in it, and, where a buffer has two halves
that a loop uses by turns (`schedule.steps.DoubleBuffer`), which of them. Knows neither statements
nor languages: `simt` walks a kernel with it, to find where threads have to meet.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

from sterna.ir.expr import Binary, Buffer, Expr, Var, const_value
from sterna.ir.simplify import Simplifier

Owner = Hashable  # which thread touches an element; None: any of them
Half = tuple[Var | None, int] | None  # which of two halves: a loop's turn + 0 or 1, modulo 2
Touch = tuple[Buffer, Owner, Half]


@dataclass(slots=True)
class Touches:
    """What threads read and wrote since they last met."""

    reads: frozenset[Touch] = frozenset()
    writes: frozenset[Touch] = frozenset()

    def meets(self, before: Touches) -> bool:
        """Whether a thread could find here what another has not finished."""
        return (
            _clash(self.writes, before.writes)
            or _clash(self.reads, before.writes)
            or _clash(self.writes, before.reads)
        )

    def joined(self, other: Touches) -> Touches:
        return Touches(self.reads | other.reads, self.writes | other.writes)

    def halved(self, rule: Callable[[Half], Half]) -> Touches:
        """The same touches, with what their halves are called elsewhere."""
        reads = frozenset((buffer, owner, rule(half)) for buffer, owner, half in self.reads)
        writes = frozenset((buffer, owner, rule(half)) for buffer, owner, half in self.writes)
        return Touches(reads, writes)

    def entered(self, var: Var) -> Touches:
        """As the first turn of a loop finds it."""
        return self.halved(lambda h: (var, h[1]) if h is not None and h[0] is None else None)

    def next_turn(self, var: Var) -> Touches:
        """As the turn behind the one that left it so finds it."""
        return self.halved(lambda h: (var, 1 - h[1]) if h is not None and h[0] is var else None)


def _clash(ours: frozenset[Touch], theirs: frozenset[Touch]) -> bool:
    return any(
        mine is other and (owner is None or owner != before) and _meet(half, other_half)
        for mine, owner, half in ours
        for other, before, other_half in theirs
    )


def unknown(half: Half) -> Half:
    """What a half is called where the loop that names it has ended, or not begun."""
    return None


def _meet(a: Half, b: Half) -> bool:
    """Whether two touches of a buffer may be of the same half of it."""
    return a is None or b is None or a[0] is not b[0] or a[1] == b[1]


def half_of(buffer: Buffer, index: tuple[Expr, ...], simplifier: Simplifier) -> Half:
    """Which half of a buffer of two is touched, if a loop's turn tells it."""
    if len(index) < 2 or const_value(buffer.shape[0]) != 2:
        return None
    at = index[0]
    if isinstance(at, Binary) and (at.op, const_value(at.b)) in (("%", 2), ("&", 1)):
        at = at.a
    terms = simplifier.sum(at)
    odd = [atom for atom, factor in terms.terms.items() if factor % 2]
    if not odd:
        return None, terms.constant % 2
    var = odd[0]
    return (var, terms.constant % 2) if len(odd) == 1 and isinstance(var, Var) else None
