"""Codes cut out of packed words and converted to f32, in fewer instructions than written.

f32((w >> c) & mask) - z, with z an integer, costs a shift, a mask, a conversion and a difference.
A code left where it lies in the word is also the low mantissa of a float: with the exponent of
2**(23 - c) set above it, the word is the float 2**(23 - c) + code, and one difference takes away
that and z together. All of it is exact, so the value is the same to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass

from sterna.base.dtype import F32, I32, U32
from sterna.ir.expr import Binary, Cast, Const, Expr

_MANTISSA = 23
_HALF = 16  # a code too high for the mantissa is first moved down by half a word


@dataclass(frozen=True, slots=True)
class Code:
    """f32(bits `low`..`low + bits` of `word`) - zero."""

    word: Expr
    low: int
    bits: int
    zero: int

    @property
    def moved(self) -> int:
        """How far the word must be shifted for the code to lie within a mantissa."""
        return 0 if self.low + self.bits <= _MANTISSA else _HALF

    @property
    def mask(self) -> int:
        return ((1 << self.bits) - 1) << (self.low - self.moved)

    @property
    def exponent(self) -> int:
        """The word that is the float 2**(23 - low)."""
        return (127 + _MANTISSA - self.low + self.moved) << _MANTISSA

    @property
    def offset(self) -> int:
        return (1 << (_MANTISSA - self.low + self.moved)) + self.zero


def packed_code(e: Binary) -> Code | None:
    """The Code that a difference stands for, where that way is shorter and exact."""
    if e.op != "-" or e.dtype != F32 or not isinstance(e.b, Const):
        return None
    bits = _converted(e.a)
    found = None if bits is None else _field(bits)
    if found is None:
        return None
    code = Code(*found, zero=int(e.b.value))
    fits = code.bits <= 8 and code.low - code.moved + code.bits <= _MANTISSA
    exact = code.zero == e.b.value and 0 <= code.zero < 1 << 8
    return code if fits and exact and code.low not in (0, _HALF) else None


def _converted(e: Expr) -> Expr | None:
    """The u32 that becomes an f32, directly or through i32."""
    if isinstance(e, Cast) and e.dtype == F32:
        inner = e.a.a if isinstance(e.a, Cast) and e.a.dtype == I32 else e.a
        return inner if inner.dtype == U32 else None
    return None


def _field(e: Expr) -> tuple[Expr, int, int] | None:
    """(word, lowest bit, bits) of (word >> low) & mask; a shift may leave only its bits."""
    bits = 32
    if isinstance(e, Binary) and e.op == "&" and isinstance(e.b, Const):
        mask = int(e.b.value)
        bits, e = mask.bit_length(), e.a
        if mask != (1 << bits) - 1:
            return None
    if isinstance(e, Binary) and e.op == ">>" and isinstance(e.b, Const):
        low = int(e.b.value)
        return e.a, low, min(bits, 32 - low)
    return None
