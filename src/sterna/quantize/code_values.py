"""What a code stands for before its group's scale: a number, an entry of a table, a small float.

In: codes, one a byte, and their Scheme. Out: float32, exact. `ops.dequantize_parts` states the
same arithmetic for kernels. A small float is a sign, `exponent` bits e and a mantissa m of p bits:
(m + 2^p [e > 0]) * 2^(max(e, 1) - bias - p) with bias 2^(exponent - 1) - 1: IEEE 754's rule, but
every exponent is a number's. The two encodings that OCP's E4M3 keeps for NaN are for the reader of
a file to refuse.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.quantize.scheme import Scheme


def code_values(codes: NDArray[np.uint8], scheme: Scheme) -> NDArray[np.float32]:
    """The value of each code, of any shape, without bias, zero point and scale."""
    if scheme.levels or scheme.exponent:
        return code_table(scheme)[codes]
    return codes.astype(np.float32)


def code_table(scheme: Scheme) -> NDArray[np.float32]:
    """f32 [2 ** bits]: what each code stands for."""
    if scheme.levels:
        return np.array(scheme.levels, np.float32)
    codes = np.arange(2**scheme.bits, dtype=np.int64)
    if not scheme.exponent:
        return codes.astype(np.float32)
    mantissa = scheme.mantissa
    exponents = codes >> mantissa & ((1 << scheme.exponent) - 1)
    digits = (codes & ((1 << mantissa) - 1)) + np.where(exponents > 0, 1 << mantissa, 0)
    whole: NDArray[Any] = digits << (np.maximum(exponents, 1) - 1)
    values = whole * scheme.float_unit
    return np.where(codes >> (scheme.bits - 1), -values, values).astype(np.float32)
