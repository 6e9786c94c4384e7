"""Sums of codes times x with what all rows have in common taken out of the codes.

In: stores whose values add products of x with packed codes, `fma(x, code * 2^-s - zero, sum)`, one
inside the other. Out: the same stores, in which x has the power of two, and the zeros times x are
added to the sum before its products: codes are then cut out and converted, and nothing else. Rows
of a weight share x, so what is x's own is computed once for them. A power of two changes no bit (of
an x above 1e-29); zeros that are added together do, in the last places, and alike in every kernel
that takes codes by turns of the same length, or of a multiple. For devices imitated by a processor,
where each operation counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from math import frexp

from sterna.base.dtype import F32, U32
from sterna.ir.expr import Binary, Cast, Const, Expr, Intrin, const_value, fma
from sterna.ir.loop import Store

_WORD = 32  # bits
TURN = 8  # codes whose zeros are added together; a store takes one turn or several


@dataclass(frozen=True, slots=True)
class _Code:
    """whole * scale + zero"""

    whole: Expr
    scale: float
    zero: float


@dataclass(slots=True)
class CodeSums:
    """Rewrites a run of stores; what rows share is one node for all of them."""

    scaled: dict[tuple[Expr, float], Expr] = field(default_factory=dict)
    zeros: dict[tuple[tuple[Expr, float], ...], Expr] = field(default_factory=dict)

    def store(self, store: Store) -> Store:
        """The store with its sum rewritten, itself where that has no codes to gain by."""
        terms: list[tuple[Expr, _Code]] = []
        rest = store.value
        while isinstance(rest, Intrin) and rest.name == "fma" and rest.dtype == F32:
            x, b, inner = rest.args
            code = _code(b)
            if code is None:
                break
            terms.append((x, code))
            rest = inner
        if len(terms) % TURN or all(c.scale == 1 and c.zero == 0 for _, c in terms):
            return store
        terms.reverse()
        value = rest
        for at in range(0, len(terms), TURN):
            turn = terms[at : at + TURN]
            apart = tuple((x, c.zero) for x, c in turn if c.zero)
            if apart:
                value = value + self.zeros.setdefault(apart, _zeros(apart))
            for x, code in turn:
                value = fma(self.power(x, code.scale), code.whole, value)
        return Store(store.buffer, store.index, value)

    def power(self, x: Expr, scale: float) -> Expr:
        return x if scale == 1 else self.scaled.setdefault((x, scale), x * scale)


def _zeros(terms: Sequence[tuple[Expr, float]]) -> Expr:
    """The sum of x times zero, one product for all x of the same zero."""
    alike: dict[float, list[Expr]] = {}
    for x, zero in terms:
        alike.setdefault(zero, []).append(x)
    sums = ((reduce(lambda a, b: a + b, xs), zero) for zero, xs in alike.items())
    products = [x if zero == 1 else x * zero for x, zero in sums]
    return reduce(lambda a, b: a + b, products)


def _code(e: Expr) -> _Code | None:
    """A code cut out of a word, made a float, times a power of two, plus a number that is known.

    Only codes of which a word is full: those that lie across words come in turns of other lengths.
    """
    if isinstance(e, Cast) and e.dtype == F32:
        cut = e.a.a if isinstance(e.a, Cast) else e.a
        mask = const_value(cut.b) if isinstance(cut, Binary) and cut.op == "&" else None
        full = mask and cut.dtype == U32 and _WORD % int(mask).bit_count() == 0
        return _Code(e, 1.0, 0.0) if full else None
    if not isinstance(e, Binary) or not isinstance(e.b, Const):
        return None
    inner, by = _code(e.a), float(const_value(e.b) or 0)
    if inner is None:
        return None
    if e.op == "*" and abs(frexp(by)[0]) == 0.5:
        return _Code(inner.whole, inner.scale * by, inner.zero * by)
    if e.op in ("+", "-"):
        return _Code(inner.whole, inner.scale, inner.zero + (by if e.op == "+" else -by))
    return None
