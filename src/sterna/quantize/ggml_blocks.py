"""The blocks of GGUF tensors as parts of a Scheme: another order of the same bits, nothing lost.

In: the raw bytes of rows, u8 [R, bytes of a row], and the type's name. Out: {"q_weight",
"q_scale", ...} of that type's Scheme, whose values are exactly those of ggml's own dequantization.
Layouts are those that ggml's `ggml-common.h` declares; each is read off its byte offsets here.

Three changes keep the bits in other clothes: signed codes of Q8_0 and signs of subtracted minimums
are flipped, so that codes are unsigned and minimums are added; the 6-bit scales of K-quants take a
byte each; and the power of two of MXFP4 becomes a bf16, which holds each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.base.dtype import BF16, F16, I8, U8
from sterna.base.errors import UnsafeFile
from sterna.quantize.codes import pack_codes
from sterna.quantize.scheme import Scheme

Bytes = NDArray[Any]  # of u8
Array = NDArray[Any]
Parts = dict[str, Array]

# IQ4_NL's sixteen levels, fitted by its authors to the distribution of weights.
_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)

_SCHEMES = (
    Scheme("q4_0", 4, F16, group=32, zero=8),
    Scheme("q4_1", 4, F16, group=32, minimum=True),
    Scheme("q5_0", 5, F16, group=32, packing="stream", zero=16),
    Scheme("q5_1", 5, F16, group=32, packing="stream", minimum=True),
    Scheme("q8_0", 8, F16, group=32, zero=128),
    Scheme("q2_k", 2, F16, group=16, scale=U8, minimum=True, outer=256),
    Scheme("q3_k", 3, F16, group=16, packing="stream", zero=4, scale=I8, outer=256),
    Scheme("q4_k", 4, F16, group=32, scale=U8, minimum=True, outer=256),
    Scheme("q5_k", 5, F16, group=32, packing="stream", scale=U8, minimum=True, outer=256),
    Scheme("q6_k", 6, F16, group=16, packing="stream", zero=32, scale=I8, outer=256),
    Scheme("iq4_nl", 4, F16, group=32, levels=tuple(float(level) for level in _IQ4)),
    Scheme("mxfp4", 4, F16, group=32, scale=BF16, exponent=2),
)
GGML_SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {row.name.upper(): replace(row, scale=row.scale or F16) for row in _SCHEMES}
)


def split_blocks(raw: Bytes, type_name: str, *, name: str = "weight") -> Parts:
    """The parts of rows `raw` [R, B]; `name` is only for messages.

    Raises UnsafeFile for scales that are NaN or infinite: such a weight is only noise.
    """
    scheme = GGML_SCHEMES[type_name]
    size, split = _SPLIT[type_name]
    rows = raw.shape[0]
    blocks = raw.reshape(rows, raw.shape[1] // size, size)
    codes, parts = split(blocks)
    parts = {key: np.ascontiguousarray(value).reshape(rows, -1) for key, value in parts.items()}
    for key, value in parts.items():
        if value.dtype.kind not in "iu" and not np.isfinite(value).all():
            raise UnsafeFile(
                f"{name} holds NaN or infinite scales ({key}), so the model would only produce "
                "noise; get the file again or ask its author"
            )
    columns = blocks.shape[1] * scheme.unit
    return {"q_weight": pack_codes(codes.reshape(rows, columns), scheme), **parts}


def _half(blocks: Bytes, at: int) -> Array:
    """The f16 at byte `at` of every block."""
    return np.ascontiguousarray(blocks[..., at : at + 2]).view("<f2")


def _negated(values: Array) -> Array:
    """-x with nothing but the sign's bit changed."""
    flipped: Array = (values.view("<u2") ^ np.uint16(0x8000)).view("<f2")
    return flipped


def _nibbles(data: Bytes) -> Bytes:
    """Low halves of the bytes, then high halves."""
    return np.concatenate((data & 15, data >> 4), axis=-1)


def _fifth_bits(data: Bytes) -> Bytes:
    """32 bits of 4 bytes, lowest first, each as 16."""
    return np.unpackbits(data, axis=-1, bitorder="little") << 4


def _q4_0(b: Bytes) -> tuple[Bytes, Parts]:
    return _nibbles(b[..., 2:]), {"q_scale": _half(b, 0)}


def _q4_1(b: Bytes) -> tuple[Bytes, Parts]:
    return _nibbles(b[..., 4:]), {"q_scale": _half(b, 0), "q_min": _half(b, 2)}


def _q5_0(b: Bytes) -> tuple[Bytes, Parts]:
    codes = _nibbles(b[..., 6:]) | _fifth_bits(b[..., 2:6])
    return codes, {"q_scale": _half(b, 0)}


def _q5_1(b: Bytes) -> tuple[Bytes, Parts]:
    codes = _nibbles(b[..., 8:]) | _fifth_bits(b[..., 4:8])
    return codes, {"q_scale": _half(b, 0), "q_min": _half(b, 2)}


def _q8_0(b: Bytes) -> tuple[Bytes, Parts]:
    return b[..., 2:] ^ 0x80, {"q_scale": _half(b, 0)}


def _quarters(data: Bytes) -> Bytes:
    """64 bytes of four 2-bit fields: 32 lowest fields of the first half, 32 next ones, ..."""
    halves = data.reshape(*data.shape[:-1], 2, 1, 32)
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    return (halves >> shifts & 3).reshape(*data.shape[:-1], 256)


def _q2_k(b: Bytes) -> tuple[Bytes, Parts]:
    parts = {
        "q_scale": b[..., :16] & 15,
        "q_min": b[..., :16] >> 4,
        "q_outer": _half(b, 80),
        "q_outer_min": _negated(_half(b, 82)),
    }
    return _quarters(b[..., 16:80]), parts


def _q3_k(b: Bytes) -> tuple[Bytes, Parts]:
    high = np.unpackbits(b[..., None, :32], axis=-2, bitorder="little")  # [..., bit, 32]
    codes = _quarters(b[..., 32:96]) | high.reshape(*b.shape[:-1], 256) << 2
    packed = b[..., 96:108]
    low = _nibbles(packed[..., :8])
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    top = (packed[..., None, 8:] >> shifts & 3).reshape(low.shape)
    scale = (low | top << 4).astype(np.int8) - np.int8(32)
    return codes, {"q_scale": scale, "q_outer": _half(b, 108)}


def _six_bit_pairs(packed: Bytes) -> tuple[Bytes, Bytes]:
    """The eight scales and eight minimums in the 12 bytes of Q4_K and Q5_K."""
    first, second, rest = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scale = np.concatenate((first & 63, rest & 15 | first >> 6 << 4), axis=-1)
    minimum = np.concatenate((second & 63, rest >> 4 | second >> 6 << 4), axis=-1)
    return scale, minimum


def _k_scales(b: Bytes) -> Parts:
    scale, minimum = _six_bit_pairs(b[..., 4:16])
    return {
        "q_scale": scale,
        "q_min": minimum,
        "q_outer": _half(b, 0),
        "q_outer_min": _negated(_half(b, 2)),
    }


def _k_nibbles(data: Bytes) -> Bytes:
    """128 bytes: 32 low halves, their 32 high halves, and so on."""
    return _nibbles(data.reshape(*data.shape[:-1], 4, 32)).reshape(*data.shape[:-1], 256)


def _q4_k(b: Bytes) -> tuple[Bytes, Parts]:
    return _k_nibbles(b[..., 16:]), _k_scales(b)


def _q5_k(b: Bytes) -> tuple[Bytes, Parts]:
    high = np.unpackbits(b[..., None, 16:48], axis=-2, bitorder="little")
    codes = _k_nibbles(b[..., 48:]) | high.reshape(*b.shape[:-1], 256) << 4
    return codes, _k_scales(b)


def _q6_k(b: Bytes) -> tuple[Bytes, Parts]:
    low = b[..., :128].reshape(*b.shape[:-1], 2, 64)
    codes = _nibbles(low).reshape(*b.shape[:-1], 256) | _quarters(b[..., 128:192]) << 4
    return codes, {"q_scale": b[..., 192:208].view(np.int8), "q_outer": _half(b, 208)}


def powers_of_two(exponents: Bytes) -> Array:
    """2**(e - 127) as bf16, which holds each of them; e = 255, which is NaN there, is infinite."""
    power = exponents.astype(np.uint16)
    bits = np.where(power > 0, power << 7, 0x40)  # the least one is subnormal
    return bits.astype("<u2").view(BF16.numpy)


def _mxfp4(b: Bytes) -> tuple[Bytes, Parts]:
    return _nibbles(b[..., 1:]), {"q_scale": powers_of_two(b[..., :1])}


_SPLIT: Mapping[str, tuple[int, Callable[[Bytes], tuple[Bytes, Parts]]]] = MappingProxyType(
    {
        "Q4_0": (18, _q4_0), "Q4_1": (20, _q4_1), "Q5_0": (22, _q5_0), "Q5_1": (24, _q5_1),
        "Q8_0": (34, _q8_0), "Q2_K": (84, _q2_k), "Q3_K": (110, _q3_k), "Q4_K": (144, _q4_k),
        "Q5_K": (176, _q5_k), "Q6_K": (210, _q6_k), "IQ4_NL": (18, _q4_0), "MXFP4": (17, _mxfp4),
    }
)  # fmt: skip
