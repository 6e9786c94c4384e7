"""Functions of one element: activations, and what logits and embeddings are bent or scaled by.

All compute in f32. Sources: Hendrycks and Gimpel 2016, "Gaussian Error Linear Units"
(arXiv:1606.08415), with its approximations by tanh and sigmoid; Abramowitz and Stegun 1964, formula
7.1.26, for erf (its error is at most 1.5e-7, as large as f32's own rounding near 1).
"""

from __future__ import annotations

from collections.abc import Callable
from math import pi, sqrt

from sterna.base.dtype import F32
from sterna.ir.expr import Expr, Unary, cast, exp, maximum, minimum, select, wrap
from sterna.ops.elementwise import elementwise

_ERF = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
_ERF_STEP = 0.3275911


def tanh(x: Expr) -> Expr:
    """tanh of an f32."""
    return Unary("tanh", x)


def softcap(x: Expr, cap: float) -> Expr:
    """x bent to stay within -cap..cap."""
    return tanh(x * (1.0 / cap)) * cap


def _erf(x: Expr) -> Expr:
    size = maximum(x, -x)
    t = wrap(1.0) / (size * _ERF_STEP + 1.0)
    total: Expr = wrap(0.0)
    for coefficient in reversed(_ERF):
        total = (total + coefficient) * t
    value = wrap(1.0) - total * exp(-(size * size))
    return select(x < 0.0, -value, value)


def _gelu(x: Expr) -> Expr:
    wide = cast(F32, x)
    return cast(x.dtype, wide * 0.5 * (_erf(wide * sqrt(0.5)) + 1.0))


def _gelu_tanh(x: Expr) -> Expr:
    wide = cast(F32, x)
    inner = (wide + wide * wide * wide * 0.044715) * sqrt(2.0 / pi)
    return cast(x.dtype, wide * 0.5 * (tanh(inner) + 1.0))


def sigmoid(x: Expr) -> Expr:
    """1 / (1 + exp(-x)) of an f32."""
    return wrap(1.0) / (wrap(1.0) + exp(-x))


def softplus(x: Expr) -> Expr:
    """log(1 + exp(x)) of an f32, without overflow."""
    return maximum(x, wrap(0.0)) + Unary("log", exp(-Unary("abs", x)) + 1.0)


def _decay(x: Expr, a_log: Expr) -> Expr:
    """What a step of softplus(x) leaves of a state: exp(-step * exp(a_log)), as Mamba has it."""
    return cast(x.dtype, exp(-(softplus(cast(F32, x)) * exp(cast(F32, a_log)))))


def _sigmoid(x: Expr) -> Expr:
    return cast(x.dtype, sigmoid(cast(F32, x)))


def _gelu_quick(x: Expr) -> Expr:
    wide = cast(F32, x)
    return cast(x.dtype, wide * sigmoid(wide * 1.702))


def _softcap(x: Expr, cap: float) -> Expr:
    return cast(x.dtype, softcap(cast(F32, x), cap))


def _scale(x: Expr, factor: float) -> Expr:
    return cast(x.dtype, cast(F32, x) * factor)


def _clip(x: Expr, limit: float) -> Expr:
    return cast(x.dtype, maximum(minimum(cast(F32, x), limit), -limit))


def _clamped_swiglu(gate: Expr, up: Expr, limit: float, alpha: float) -> Expr:
    """gpt-oss's: g sigmoid(alpha g) * (u + 1) for the gate cut above, the other on both sides."""
    wide = minimum(cast(F32, gate), limit)
    other = maximum(minimum(cast(F32, up), limit), -limit)
    return cast(gate.dtype, (other + 1.0) * wide * sigmoid(wide * alpha))


def _of_f32(function: Callable[[Expr], Expr]) -> Callable[[Expr], Expr]:
    return lambda x: cast(x.dtype, function(cast(F32, x)))


def _relu_squared(x: Expr) -> Expr:
    """So et al. 2021, "Primer" (arXiv:2109.08668)."""
    positive = maximum(x, 0.0)
    return positive * positive


CLAMPED_SWIGLU = elementwise("clamped_swiglu", _clamped_swiglu)
GELU = elementwise("gelu", _gelu)
GELU_TANH = elementwise("gelu_tanh", _gelu_tanh)
GELU_QUICK = elementwise("gelu_quick", _gelu_quick)
RELU = elementwise("relu", lambda x: maximum(x, cast(x.dtype, wrap(0.0))))
RELU_SQUARED = elementwise("relu_squared", _of_f32(_relu_squared))
TANH = elementwise("tanh", _of_f32(tanh))
EXP = elementwise("exp", _of_f32(exp))
SIGMOID = elementwise("sigmoid", _sigmoid)
DECAY = elementwise("decay", _decay)
SOFTCAP = elementwise("softcap", _softcap)
SCALE = elementwise("scale", _scale)
CLIP = elementwise("clip", _clip)
