"""Integer sums as collected terms: sum of coefficient * atom, plus a constant.

The arithmetic of `Sum`s, nothing else: which expressions are atoms, and whether a sum may wrap,
is decided by `simplify`. Atoms are compared by identity, so equal atoms must be one object.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sterna.ir.expr import Expr


@dataclass(frozen=True, slots=True)
class Sum:
    """`constant` + the sum of coefficient * atom; no coefficient is zero."""

    terms: dict[Expr, int]
    constant: int = 0

    def plus(self, other: Sum, factor: int = 1) -> Sum:
        """self + factor * other."""
        terms = dict(self.terms)
        for atom, coefficient in other.terms.items():
            total = terms.get(atom, 0) + factor * coefficient
            if total:
                terms[atom] = total
            else:
                del terms[atom]
        return Sum(terms, self.constant + factor * other.constant)

    def times(self, factor: int) -> Sum:
        if factor == 0:
            return Sum({})
        return Sum({atom: factor * c for atom, c in self.terms.items()}, factor * self.constant)

    def split(self, divisor: int) -> tuple[Sum, Sum]:
        """(q, r) with self = q * divisor + r: q takes the terms that divide, r the others."""
        quotient, rest = {}, {}
        for atom, coefficient in self.terms.items():
            if coefficient % divisor == 0:
                quotient[atom] = coefficient // divisor
            else:
                rest[atom] = coefficient
        q, r = divmod(self.constant, divisor)
        return Sum(quotient, q), Sum(rest, r)

    def strides(self) -> Iterator[int]:
        """Distinct magnitudes of coefficients above one, largest first."""
        return iter(sorted({abs(c) for c in self.terms.values()} - {1}, reverse=True))

    def drop(self, atom: Expr) -> Sum:
        return Sum({a: c for a, c in self.terms.items() if a is not atom}, self.constant)

    def drop_constant(self) -> Sum:
        return Sum(self.terms)

    def without(self, part: Sum) -> Sum | None:
        """self - part, if every term of part stands in self with its coefficient."""
        same = all(self.terms.get(atom) == c for atom, c in part.terms.items())
        return self.plus(part, -1) if same and part.terms else None
