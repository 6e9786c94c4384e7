"""What a token weighs in a draw, as an expression: exp of a logit's distance, in whole numbers.

One operation of floats at a time, each rounded as IEEE says, and whole numbers between them: no
compiler finds a product and a sum to fuse, so every target computes the same bits. The meaning in
numpy is `runtime.sampling.weigh`, which repeats these constants.
"""

from __future__ import annotations

from collections.abc import Callable

from sterna.base.dtype import F32, I32
from sterna.ir.expr import Binary, Expr, cast, minimum
from sterna.ir.loop import Stmt
from sterna.kernels.build import let

UNIT_BITS = 30  # of a weight of 1
SHARE_BITS = 16  # of top_p
LOG2E = 1.4426950408889634
LARGEST = 3.0e38  # of the logits that are numbers

_HALVINGS = 31.0  # at which a weight is 0
_FRACTION = 24  # bits: what an f32 holds exactly
# 1 - f (a - f (b - f (...))) is 2^-f for f from 0 to 1, to 5e-7; in units of 2^-24.
_TERMS = (16850, 156793, 929616, 4030137, 11629076)


def weigh(x: Expr, peak: Expr, slope: Expr, body: Callable[[Expr], Stmt]) -> Stmt:
    """body(weight): 2^30 * 2^((x - peak) * slope) for x up to peak, an i32.

    `slope` is log2(e) / temperature.
    """

    def scaled(steps: Expr) -> Stmt:
        share = cast(F32, Binary("&", steps, _whole((1 << _FRACTION) - 1)))
        return let("share", share * 2.0**-_FRACTION, lambda f: body(_power(steps, f)))

    halvings = minimum((peak - x) * slope, _HALVINGS)
    return let("steps", cast(I32, halvings * float(1 << _FRACTION)), scaled, lo=0)


def _power(steps: Expr, f: Expr) -> Expr:
    """2^-(steps / 2^24) in units of 2^-30, `f` being what of it is no whole number."""
    p = _whole(_TERMS[0])
    for term in (*_TERMS[1:], 1 << _FRACTION):
        p = _whole(term) - cast(I32, f * cast(F32, p))
    return Binary(">>", p << (UNIT_BITS - _FRACTION), Binary(">>", steps, _whole(_FRACTION)))


def _whole(value: int) -> Expr:
    return cast(I32, value)
