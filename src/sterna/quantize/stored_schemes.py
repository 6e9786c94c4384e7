"""Schemes of weights that other programs quantized, by what their configurations say.

In: bits, group sizes and dtypes. Out: a Scheme of the table's kind. GGUF's own are in
`ggml_blocks`. Scales of whole rows and of blocks of rows are repeated for every `ROW_GROUP`
weights when read, so that they are groups like any other.
"""

from __future__ import annotations

from sterna.base.dtype import DType
from sterna.quantize.scheme import Packing, Scheme

ROW_GROUP = 128

# QLoRA's 4-bit NormalFloat: quantiles of a normal distribution, from -1 to 1, exactly 0 among them.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
# Its 4-bit float, a sign and a magnitude.
FP4 = (
    0.0, 0.005208333333, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25,
    -0.0, -0.005208333333, -0.66666667, -1.0, -0.33333333, -0.5, -0.16666667, -0.25,
)  # fmt: skip


def grid(bits: int, group: int, compute: DType, scale: DType, *, zero: int | None = None) -> Scheme:
    """(code - zero) * scale; without `zero`, zero points are stored."""
    affine = zero is None
    name = f"int{bits}g{group}{'z' if affine else ''}"
    return Scheme(
        name, bits, compute, group, packing=_packing(bits), affine=affine, zero=zero, scale=scale
    )


def indexed_grid(bits: int, group: int, compute: DType, scale: DType) -> Scheme:
    """The same for columns that say which group they belong to."""
    return Scheme(
        f"int{bits}g{group}zx", bits, compute, group,
        packing=_packing(bits), affine=True, scale=scale, indexed=True,
    )  # fmt: skip


def offset_grid(bits: int, group: int, compute: DType, scale: DType) -> Scheme:
    """code * scale + minimum."""
    return Scheme(
        f"int{bits}g{group}m", bits, compute, group,
        packing=_packing(bits), minimum=True, scale=scale,
    )  # fmt: skip


def small_float(bits: int, exponent: int, group: int, compute: DType, scale: DType) -> Scheme:
    """A float of few bits, times scale."""
    name = f"e{exponent}m{bits - 1 - exponent}g{group}"
    return Scheme(name, bits, compute, group, exponent=exponent, scale=scale)


def table(name: str, levels: tuple[float, ...], group: int, compute: DType, scale: DType) -> Scheme:
    """levels[code] * scale."""
    bits = len(levels).bit_length() - 1
    return Scheme(f"{name}g{group}", bits, compute, group, levels=levels, scale=scale)


def _packing(bits: int) -> Packing:
    return "word" if 32 % bits == 0 else "stream"
