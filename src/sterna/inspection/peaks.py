"""What this machine does at its best, as numpy reaches it: the roofs of a roofline.

A quick measurement, good to a tenth or two: enough to say which kernels wait for memory. It does
not know kernels.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from sterna.runtime.host import usable_cores

_COPY_BYTES = 64 << 20  # of all threads; with what is written, beyond the caches of most machines
# Products so small that BLAS takes no threads of its own, which would fight for the cores.
_STACK, _MATRIX = 128, 64
_SECONDS = 0.25  # for each of the two; the best of many tries, for others use the machine too


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
    """Measure now, on all cores: copies (read and write counted), products of float32 matrices."""
    cores = usable_cores()
    with ThreadPoolExecutor(cores) as pool:
        copied = _best(pool, [_copy(_COPY_BYTES // cores) for _ in range(cores)])
        multiplied = _best(pool, [_multiply() for _ in range(cores)])
    flops = 2 * _STACK * _MATRIX**3
    return Peaks(2 * _COPY_BYTES / copied, cores * flops / multiplied)


def _copy(nbytes: int) -> Callable[[], object]:
    source = np.ones(nbytes // 4, np.float32)
    target = np.empty_like(source)
    return lambda: np.copyto(target, source)


def _multiply() -> Callable[[], object]:
    a = np.ones((_STACK, _MATRIX, _MATRIX), np.float32)
    out = np.empty_like(a)
    return lambda: np.matmul(a, a, out=out)


def _best(pool: ThreadPoolExecutor, works: list[Callable[[], object]]) -> float:
    """Seconds of the quickest try, all of `works` side by side; the first warms up."""
    times: list[float] = []
    while sum(times) < _SECONDS or len(times) < 3:
        begin = time.perf_counter()
        for done in [pool.submit(work) for work in works]:
            done.result()
        times.append(time.perf_counter() - begin)
    return max(min(times[1:]), 1e-9)
