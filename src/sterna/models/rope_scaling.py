"""Rotary frequencies: one angle a position for each pair of a head's dimensions.

In: `RopeOptions` (`rope_options.py` reads them from a config) and the head's size. Out: the inverse
frequencies in float32 and the factor on cos and sin. It does not know configs, graphs or positions.

The arithmetic follows transformers' `modeling_rope_utils.py` operation by operation in float32,
because checkpoints were trained with those roundings and not with the real-number formulas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from sterna.base.errors import UnsupportedModel

RopeType = Literal["default", "linear", "dynamic", "yarn", "llama3", "longrope"]
DEFAULT_THETA: Final = 10000.0


@dataclass(frozen=True, slots=True)
class RopeOptions:
    """What rotary embeddings need of a config. Fields a type does not read keep their defaults.

    `original_length` is the number of positions the frequencies were trained for, and
    `attention_factor` multiplies cos and sin (so attention scores by its square), `score_factor` is
    for the scores of heads that are rotated in part (DeepSeek's). `partial` is the
    part of a head that is rotated. "longrope" divides each frequency by a factor of its own.
    """

    type: RopeType = "default"
    theta: float = DEFAULT_THETA
    factor: float = 1.0
    original_length: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    score_factor: float = 1.0
    partial: float = 1.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()


def rotary_dim(options: RopeOptions, head_dim: int) -> int:
    """Dims of a head that are rotated, the first ones; the rest stay as they are."""
    return int(head_dim * options.partial)


def inv_freq(
    options: RopeOptions, head_dim: int, context_length: int | None = None
) -> tuple[NDArray[np.float32], float]:
    """Return the inverse frequencies, float32 (head_dim / 2,), and the factor on cos and sin.

    "dynamic" and "longrope" depend on `context_length`, the number of positions to serve: past
    `original_length` the base grows, or the long factors apply. transformers recomputes them as a
    sequence grows, which rotates the keys already cached otherwise than new ones; here the caller
    fixes one length.
    """
    if head_dim <= 0 or head_dim % 2:
        raise UnsupportedModel(
            f"rotary embeddings turn pairs of dimensions, but the config gives head_dim {head_dim};"
            " a positive even number is needed."
        )
    match options.type:
        case "default":
            frequencies = _plain(options.theta, head_dim)
        case "linear":
            frequencies = _plain(options.theta, head_dim) / np.float32(options.factor)
        case "dynamic":
            frequencies = _dynamic(options, head_dim, context_length or options.original_length)
        case "yarn":
            frequencies = _yarn(options, head_dim)
        case "llama3":
            frequencies = _llama3(options, head_dim)
        case "longrope":
            frequencies = _longrope(options, head_dim, context_length or options.original_length)
    return frequencies, options.attention_factor


def longest_context(options: RopeOptions, stated: int) -> int:
    """Positions that the embedding reaches in a model of `stated` max_position_embeddings.

    Where the config states what was trained, interpolation multiplies it.
    """
    if options.type in ("linear", "dynamic"):
        return int(stated * options.factor)
    if options.type == "yarn":
        return max(stated, int(options.original_length * options.factor))
    return stated


def _powers(theta: float, head_dim: int) -> NDArray[np.float32]:
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    powers: NDArray[np.float32] = np.power(np.float32(theta), exponents)
    return powers


def _plain(theta: float, head_dim: int) -> NDArray[np.float32]:
    return np.float32(1.0) / _powers(theta, head_dim)


def _dynamic(options: RopeOptions, head_dim: int, length: int) -> NDArray[np.float32]:
    """NTK-aware scaling, by u/bloc97 and u/emozilla: the base grows with the length."""
    if length <= options.original_length:
        return _plain(options.theta, head_dim)
    if head_dim == 2:
        raise UnsupportedModel("rope type 'dynamic' needs a head_dim above 2; the config gives 2.")
    stretch = options.factor * length / options.original_length - (options.factor - 1)
    return _plain(options.theta * stretch ** (head_dim / (head_dim - 2)), head_dim)


def _yarn(options: RopeOptions, head_dim: int) -> NDArray[np.float32]:
    """YaRN (arXiv:2309.00071): slow dimensions interpolate, fast ones stay, a ramp between."""
    powers = _powers(options.theta, head_dim)
    low, high = _ramp_range(options, head_dim)
    ramp = (np.arange(head_dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    stay = np.float32(1.0) - np.clip(ramp, np.float32(0.0), np.float32(1.0))
    interpolated = np.float32(1.0) / (np.float32(options.factor) * powers)
    blend: NDArray[np.float32] = (
        interpolated * (np.float32(1.0) - stay) + np.float32(1.0) / powers * stay
    )
    return blend


def _ramp_range(options: RopeOptions, head_dim: int) -> tuple[float, float]:
    """The dimensions that turn beta_fast and beta_slow times within the original length."""

    def dimension(turns: float) -> float:
        periods = math.log(options.original_length / (turns * 2 * math.pi))
        return head_dim * periods / (2 * math.log(options.theta))

    low, high = dimension(options.beta_fast), dimension(options.beta_slow)
    if options.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    return low, high + 0.001 if low == high else high  # an empty ramp is a step, not 0 / 0


def _longrope(options: RopeOptions, head_dim: int, length: int) -> NDArray[np.float32]:
    """LongRoPE (arXiv:2402.13753): a searched factor for each frequency, one set for long ones."""
    factors = options.long_factor if length > options.original_length else options.short_factor
    if len(factors) != head_dim // 2:
        raise UnsupportedModel(
            f"rope type 'longrope' in config.json has {len(factors)} factors; heads of {head_dim}"
            f" rotated dimensions need {head_dim // 2}."
        )
    return np.float32(1.0) / (np.array(factors, np.float32) * _powers(options.theta, head_dim))


def _llama3(options: RopeOptions, head_dim: int) -> NDArray[np.float32]:
    """Llama 3.1: long waves are slowed by `factor`, short ones stay, the middle is blended."""
    plain = _plain(options.theta, head_dim)
    factor, length = np.float32(options.factor), np.float32(options.original_length)
    low, high = np.float32(options.low_freq_factor), np.float32(options.high_freq_factor)
    wavelength = np.float32(2 * math.pi) / plain
    longest, shortest = length / low, length / high
    if high > low:
        blend = (length / wavelength - low) / (high - low)
    else:  # Llama 4's: nothing lies between waves that are kept and those that are slowed
        blend = np.ones_like(plain)
    blended = (np.float32(1.0) - blend) * plain / factor + blend * plain
    slowed = np.where(wavelength > longest, plain / factor, plain)
    middle = (wavelength >= shortest) & (wavelength <= longest)
    return np.where(middle, blended, slowed).astype(np.float32)
