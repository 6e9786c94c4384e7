"""What quantizing cost: the error of a restored weight, as the conversion receipt records it.

In: a weight and what a reader of the file will see of it. Out: a `TensorError`, plain numbers ready
for JSON. It does not judge whether an error is acceptable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log10, prod, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.quantize.pack import Array, restored_rows
from sterna.quantize.scheme import Scheme


@dataclass(frozen=True, slots=True)
class TensorError:
    """`relative_rms` is error over signal; `sqnr_db` is -20 log10 of it, None where exact."""

    max_abs: float
    rms: float
    relative_rms: float
    sqnr_db: float | None


@dataclass(slots=True)
class ErrorSum:
    """Sums over blocks or over tensors from which one `TensorError` follows."""

    count: int = 0
    max_abs: float = 0.0
    error: float = 0.0  # sum of squares
    signal: float = 0.0  # sum of squares

    def add(self, original: Array, restored: Array) -> None:
        """Count two arrays of the same shape in."""
        wanted = original.astype(np.float64)
        off = restored.astype(np.float64)
        off -= wanted
        self.count += off.size
        self.max_abs = max(self.max_abs, float(np.abs(off).max(initial=0.0)))
        self.error += _square_sum(off)
        self.signal += _square_sum(wanted)

    def merge(self, other: ErrorSum) -> None:
        """Count another sum in."""
        self.count += other.count
        self.max_abs = max(self.max_abs, other.max_abs)
        self.error += other.error
        self.signal += other.signal

    def result(self) -> TensorError:
        rms = sqrt(self.error / self.count) if self.count else 0.0
        if not self.error:
            return TensorError(self.max_abs, rms, 0.0, None)
        # An error without a signal (a zero weight restored as something) is an error of 100 %.
        relative = sqrt(self.error / (self.signal or self.error))
        return TensorError(self.max_abs, rms, relative, -20 * log10(relative))


def error(original: Array, restored: Array) -> TensorError:
    """Compare two whole arrays of the same shape."""
    total = ErrorSum()
    total.add(original, restored)
    return total.result()


def measure(weight: Array, packed: Mapping[str, Array], scheme: Scheme) -> ErrorSum:
    """The error of a packed weight as a reader of the file sees it, without restoring it whole."""
    on_disk = dict(packed)
    if scheme.is_quantized:
        on_disk["q_scale"] = packed["q_scale"].astype(scheme.scale_on_disk.numpy)
        on_disk["q_scale"] = on_disk["q_scale"].astype(scheme.compute.numpy)
    matrix = weight.reshape(prod(weight.shape[:-1]), weight.shape[-1])
    total = ErrorSum()
    for rows, values in restored_rows(on_disk, scheme, weight.shape):
        total.add(matrix[rows], values)
    return total


def _square_sum(values: NDArray[np.float64]) -> float:
    flat: Any = values.ravel()
    return float(np.einsum("i,i->", flat, flat))  # BLAS would add in an order of its threads
