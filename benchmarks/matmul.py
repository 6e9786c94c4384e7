"""How near prefill's matrix products come to the machine's arithmetic peak.

    python benchmarks/matmul.py [--schemes q0f32 q4f16_1] [--rows 128] [--size 4096]
                                [--bits 16] [--out FILE]

For each scheme the product that the passes and the schedule rules give for `rows` rows of x, with
one thread, between two loops of independent FMAs in registers: prints JSON with both rates in
GFLOP/s (two a weight and row) and their ratio. Times are the thread's processor time, in which a
neighbour on the same core still takes a share of its units: each call is compared with the loops
just before and after it, and `of_peak` is the median of those calls whose both loops were within
5 % of the fastest ones, `quiet` of all `calls`; `of_peak_any` is the median of all.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matvec import ROW_TILE, library, product_groups, tiled
from numpy.typing import NDArray

from sterna.base.target import host_target
from sterna.codegen.c import render
from sterna.quantize.pack import dequantize, quantize
from sterna.quantize.scheme import scheme
from sterna.runtime.host import cpu_name
from sterna.runtime.threads import POOL_BYTES
from sterna.schedule.choose import plan_of, planned

_CALLS = 60
_QUIET = 0.95  # of the fastest loops
_LINE = 64  # bytes of a cache line
_CHAINS, _TURNS = 12, 20_000  # of FMAs
_PEAK = """
struct peak_args { f32 *out; };
EXPORT void run_peak(const struct peak_args *a);
EXPORT void run_peak(const struct peak_args *a) {
    typedef f32 vector __attribute__((vector_size(BYTES)));
    vector s[CHAINS], x = (vector){0} + 1, y = x * 0.999f;
    for (int j = 0; j < CHAINS; j++) s[j] = x;
    for (int i = 0; i < TURNS; i++)
        for (int j = 0; j < CHAINS; j++) s[j] = __builtin_elementwise_fma(s[j], y, x);
    for (int j = 1; j < CHAINS; j++) s[0] += s[j];
    a->out[0] = s[0][0];
}
"""


def peak_source() -> str:
    """FMAs that depend on nothing but their own chain, in registers as wide as the target's."""
    numbers = {"BYTES": host_target().vector_bytes, "CHAINS": _CHAINS, "TURNS": _TURNS}
    text = _PEAK
    for name, number in numbers.items():
        text = text.replace(name, str(number))
    return text


def least(call: Callable[[], object], count: int) -> float:
    """Seconds of processor time of the fastest of some calls."""
    seconds = []
    for _ in range(count):
        start = time.thread_time()
        call()
        seconds.append(time.thread_time() - start)
    return min(seconds)


def compared(
    peak: Callable[[], float], product: Callable[[], tuple[float, float]]
) -> dict[str, Any]:
    """Rates of a product, each between two of the peak; `product` gives (rate, share of codes)."""
    peaks, made = [peak()], []
    for _ in range(_CALLS):
        made.append(product())
        peaks.append(peak())
    around = np.lib.stride_tricks.sliding_window_view(peaks, 2)
    rates, shares = np.array(made).T
    ratios, top = rates / around.mean(axis=1), np.percentile(peaks, 95)
    quiet = (around >= _QUIET * top).all(axis=1)
    if not quiet.any():
        raise SystemExit("no call had the machine to itself: run the benchmark again")
    return {
        "fma_peak": round(float(top), 1),
        "product": round(float(np.median(rates[quiet])), 1),
        "of_peak": round(float(np.median(ratios[quiet])), 3),
        "of_peak_any": round(float(np.median(ratios)), 3),
        "quiet": int(quiet.sum()),
        "calls": _CALLS,
        "quantizing_x": round(float(np.median(shares)), 4),
    }


def aligned(array: NDArray[Any]) -> NDArray[Any]:
    """The array where a cache line begins, as the runtime lays out what kernels read."""
    room = np.zeros(array.nbytes + _LINE, np.uint8)
    held = room[-room.ctypes.data % _LINE :][: array.nbytes].view(array.dtype)
    held[:] = array.reshape(-1)
    return held.reshape(array.shape)


def measure(name: str, rows: int, size: int, bits: int) -> dict[str, Any]:
    packing = scheme(name)
    groups = [g for g in product_groups(size, packing, rows, bits) if g is not None]
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((size, size)).astype(np.float32)
    packed = quantize(weight, packing)
    arrays = [aligned(tiled(a, packing)) for a in packed.values()]
    x = aligned(rng.standard_normal((rows, size)).astype(np.float32))
    out = aligned(np.zeros((rows + 1, size), np.float32))
    per = packing.group or size
    codes = aligned(np.zeros(rows * size // 2 + 64, np.int32))
    scales = aligned(np.zeros(rows * size // per + 64, np.float32))
    totals = aligned(np.zeros(rows * size // per + 64, np.int32))
    pool = aligned(np.zeros(POOL_BYTES, np.uint8))
    scratch = aligned(np.zeros(64 << 20, np.uint8))
    pool.view(np.int32)[0] = 1
    pool.view(np.int64)[3:5] = scratch.ctypes.data, scratch.nbytes
    inputs = [x] if len(groups) == 1 else [codes, scales, totals]
    args = [np.array([pool.ctypes.data, *(a.ctypes.data for a in list_), rows], np.int64)
            for list_ in ([*inputs, *arrays, out], [x, *inputs])]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        sources = [render(planned(g, plan_of(g, host_target()))[1]) for g in groups]
        lib = library(sources, Path(folder), peak_source())
        runs = [getattr(lib, f"run_{i}") for i in range(len(groups))]
        calls = [
            lambda run=run, a=a: run(ctypes.c_void_p(a.ctypes.data))
            for run, a in zip(runs, args, strict=False)
        ]
        kept = np.zeros(64, np.float32)  # what the peak adds up
        holder = np.array([kept.ctypes.data], np.int64)
        where = ctypes.c_void_p(holder.ctypes.data)

        def peak() -> float:
            operations = 2 * _CHAINS * _TURNS * host_target().lanes()
            return operations / least(lambda: lib.run_peak(where), 2) / 1e9

        def product() -> tuple[float, float]:
            before = least(calls[1], 3) if len(calls) > 1 else 0.0
            seconds = least(calls[0], 1)
            return 2 * rows * size * size / (seconds + before) / 1e9, before / seconds

        found = compared(peak, product)
    exact = x.astype(np.float64) @ dequantize(packed, packing, (size, size)).astype(np.float64).T
    error = np.linalg.norm(out[:rows] - exact) / np.linalg.norm(exact)
    return {**found, "relative_error": float(f"{error:.2e}")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--schemes", nargs="+", default=["q0f32", "q4f16_1", "q8f16_1", "q3f16_1"])
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--bits", type=int, choices=(16, 8), default=16, help="of activations")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result = {
        "processor": cpu_name(),
        "rows": options.rows,
        "size": options.size,
        "activation_bits": options.bits,
        "target": host_target().spec,
        "row_tile": ROW_TILE,
        "gflops": {
            s: measure(s, options.rows, options.size, options.bits) for s in options.schemes
        },
    }
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
