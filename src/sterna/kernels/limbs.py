"""Whole numbers past 32 bits for kernels that have none: masses as pairs, and a draw in limbs.

A mass of tokens is a pair (high, low) in base 2^20: sums of a thousand weights of 2^30 fit in
words as they are and are carried afterwards. Products are made of limbs of 16 bits. The random
numbers are those of `runtime.philox`, whose products of 32 bits are made of halves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from sterna.base.dtype import U32
from sterna.ir.expr import Binary, Buffer, Expr, equals, logical_and, logical_or, wrap
from sterna.ir.loop import Stmt, seq, store
from sterna.kernels.build import let, loop

_PAIR_BITS = 20
_LOW = (1 << _PAIR_BITS) - 1
_HALF = 0xFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85


class Pair(NamedTuple):
    """high * 2^20 + low, both u32."""

    high: Expr
    low: Expr


def word(value: int) -> Expr:
    return wrap(value, U32)


def less(a: Expr, b: Expr) -> Expr:
    return Binary("<", a, b)


def bits(a: Expr, mask: int) -> Expr:
    return Binary("&", a, word(mask))


def shifted(a: Expr, by: int) -> Expr:
    """a >> by."""
    return Binary(">>", a, word(by))


def low_part(a: Expr) -> Expr:
    return bits(a, _LOW)


def high_part(a: Expr) -> Expr:
    return shifted(a, _PAIR_BITS)


def carried(pair: Pair, body: Callable[[Pair], Stmt]) -> Stmt:
    """body(the same mass with its low part below 2^20)."""

    def low(value: Expr) -> Stmt:
        return let("high", pair.high + high_part(value), lambda h: body(Pair(h, low_part(value))))

    return let("low", pair.low, low)


def sum_of(a: Pair, b: Pair) -> Pair:
    """Not carried."""
    return Pair(a.high + b.high, a.low + b.low)


def below(a: Pair, b: Pair) -> Expr:
    """a < b, of pairs that are carried."""
    return logical_or(less(a.high, b.high), logical_and(equals(a.high, b.high), less(a.low, b.low)))


def times(a: Expr, b: Expr, body: Callable[[Pair], Stmt]) -> Stmt:
    """body(a * b), for `a` up to 2^30 and `b` below 2^22."""
    tens = (bits(a, 1023), bits(shifted(a, 10), 1023), shifted(a, 20))

    def add(p0: Expr, p1: Expr, p2: Expr) -> Stmt:
        low = low_part(p0) + (bits(p1, 1023) << word(10))
        high = high_part(p0) + shifted(p1, 10) + p2
        return carried(Pair(high, low), body)

    return let(
        "p0",
        tens[0] * b,
        lambda p0: let("p1", tens[1] * b, lambda p1: add(p0, p1, tens[2] * b)),
    )


def part_of(
    mass: Pair, factor: Buffer, limbs: Buffer, product: Buffer, body: Callable[[Pair], Stmt]
) -> Stmt:
    """body(floor(mass * factor / 2^64)).

    `factor` [4] are limbs of 16 bits, low first; `limbs` [4] and `product` [8] are memory to work
    in. The quotient is below the mass, so it is a pair as well.
    """

    def row(j: Expr) -> Stmt:
        def column(i: Expr) -> Stmt:
            value = product[i + j] + factor[i] * limbs[j] + product[j + 4]
            return let("sum", value, lambda v: put(i, v))

        def put(i: Expr, value: Expr) -> Stmt:
            # The place after the row's last limb carries from limb to limb.
            return seq(
                store(product, i + j, bits(value, _HALF)),
                store(product, j + 4, shifted(value, 16)),
            )

        return seq(store(product, j + 4, word(0)), loop("i", 4, column))

    split = (
        bits(mass.low, _HALF),
        shifted(mass.low, 16) + (bits(mass.high, 0xFFF) << word(4)),
        bits(shifted(mass.high, 12), _HALF),
        shifted(mass.high, 28),
    )
    low = product[4] + (bits(product[5], 15) << word(16))
    high = shifted(product[5], 4) + (product[6] << word(12)) + (product[7] << word(28))
    return seq(
        *(store(limbs, k, limb) for k, limb in enumerate(split)),
        loop("i", 4, lambda i: store(product, i, word(0))),
        loop("j", 4, row),
        body(Pair(high, low)),
    )


def draw_limbs(keys: Buffer, row: Expr, words: Buffer, limbs: Buffer) -> Stmt:
    """limbs [4] = the 64 random bits of a row's key, low first; `words` [6] is memory to work in.

    `keys` [r, 5] are seed, answer and position in words, low first.
    """

    def turn(_: Expr) -> Stmt:
        return _wide(words[0], _M0, "p", lambda p: _wide(words[2], _M1, "q", lambda q: mix(p, q)))

    def mix(p: Expr, q: Expr) -> Stmt:
        """`p` and `q` are the upper words of the products."""
        first = Binary("^", Binary("^", q, words[1]), words[4])
        third = Binary("^", Binary("^", p, words[3]), words[5])
        return let("a", first, lambda a: let("c", third, lambda c: put(a, c)))

    def put(a: Expr, c: Expr) -> Stmt:
        return seq(
            store(words, 1, words[2] * word(_M1)),
            store(words, 3, words[0] * word(_M0)),
            store(words, 0, a),
            store(words, 2, c),
            store(words, 4, words[4] + word(_W0)),
            store(words, 5, words[5] + word(_W1)),
        )

    # Counter: position, answer, 0. Key: the seed.
    start = (keys[row, 3], keys[row, 4], keys[row, 2], word(0), keys[row, 0], keys[row, 1])
    halves = (bits(words[1], _HALF), shifted(words[1], 16))
    upper = (bits(words[0], _HALF), shifted(words[0], 16))
    return seq(
        *(store(words, k, value) for k, value in enumerate(start)),
        loop("turn", 10, turn),
        *(store(limbs, k, half) for k, half in enumerate((*halves, *upper))),
    )


def _wide(a: Expr, factor: int, name: str, body: Callable[[Expr], Stmt]) -> Stmt:
    """body(the upper word of a * factor)."""
    f0, f1 = word(factor & _HALF), word(factor >> 16)
    a0, a1 = bits(a, _HALF), shifted(a, 16)

    def middle(m: Expr) -> Stmt:
        side = a0 * f1 + bits(m, _HALF)
        upper = a1 * f1 + shifted(m, 16) + shifted(side, 16)
        return let(name, upper, body)

    return let(f"{name}_middle", a1 * f0 + shifted(a0 * f0, 16), middle)
