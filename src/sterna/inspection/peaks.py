"""What this machine does at its best, as numpy reaches it: the roofs of a roofline.

A quick measurement, good to a tenth or two: enough to say which kernels wait for memory. It does
not know kernels.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_COPY_BYTES = 64 << 20  # beyond the caches of most machines
_MATRIX = 768
_REPEATS = 8


@dataclass(frozen=True, slots=True)
class Peaks:
    """Bytes a second of memory, float32 operations a second."""

    bandwidth: float
    flops: float

    @property
    def ridge(self) -> float:
        """The intensity above which arithmetic is the limit, in operations a byte."""
        return self.flops / self.bandwidth

    def seconds(self, flops: float, moved: float) -> float:
        """The least time for work that moves so many bytes and does so many operations."""
        return max(flops / self.flops, moved / self.bandwidth)


def measure_peaks() -> Peaks:
    """Measure now: a copy (read and write counted), and a product of float32 matrices."""
    source = np.ones(_COPY_BYTES // 4, np.float32)
    target = np.empty_like(source)
    a = np.ones((_MATRIX, _MATRIX), np.float32)
    out = np.empty_like(a)
    copied = _best(lambda: np.copyto(target, source))
    multiplied = _best(lambda: np.matmul(a, a, out=out))
    return Peaks(2 * _COPY_BYTES / copied, 2 * _MATRIX**3 / multiplied)


def _best(work: Callable[[], object]) -> float:
    work()  # touches fresh memory, starts threads
    times = []
    for _ in range(_REPEATS):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return max(min(times), 1e-9)
