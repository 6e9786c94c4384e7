"""How near a decode matvec from packed weights comes to the machine's read bandwidth.

    python benchmarks/matvec.py [--scheme q4f16_1] [--size 4096] [--threads 1 2]
                                [--bits 16] [--out FILE]

Both are compiled by the same toolchain and run on the same pool in the same rounds, turn about: a
loop that reads memory and adds it up, and the product that the passes and the schedule rules give
for one row, with its activations in codes of 16 or 8 `bits`. What quantizes the row is timed apart:
it runs once for several products. Each call takes the next of a ring of matrices too large for any
cache. A round's rate is that of its fastest tenth of calls, for both alike: what else runs on a
machine takes turns with them, and more of them from longer calls. Prints JSON; a figure is the
median over rounds, and the ratio is taken round by round, for what else runs drifts.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.base.artifact import Param
from sterna.base.dtype import DTYPES, F32, I32
from sterna.base.target import host_target
from sterna.codegen.c import CSource, render
from sterna.codegen.c_math import prelude
from sterna.codegen.embed import pool_source
from sterna.codegen.toolchain import compile_library
from sterna.ir.compute import Group
from sterna.ir.expr import Var
from sterna.ir.graph import IRModule
from sterna.nn.trace import Trace
from sterna.passes.cleanup import cleanup
from sterna.passes.fuse import fuse
from sterna.passes.lower import lower
from sterna.passes.prepack import ROW_TILE, prepack, row_tile
from sterna.passes.quantize_activations import quantize_activations
from sterna.quantize.pack import dequantize, packed_spec, quantize
from sterna.quantize.scheme import Scheme, scheme
from sterna.runtime.host import cpu_name
from sterna.runtime.memory import pack, packed_shape
from sterna.runtime.threads import POOL_BYTES, Team
from sterna.schedule.apply import apply
from sterna.schedule.choose import choose, streams_of

_RING_BYTES = 400_000_000
_READ_BYTES = 8 << 20  # of one read
_ROUNDS = 40

_READ = """
struct read_args { Pool *pool; const u64 *from; u64 *sums; };
typedef u64 u64x4 __attribute__((vector_size(32)));
enum { READ_WORDS = 8192 }; // of one work item
static void read_items(const void *args, i64 begin, i64 end, i32 tid) {
    const struct read_args *a = args;
    u64x4 s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
    const u64x4 *from = (const u64x4 *)(a->from + begin * READ_WORDS);
    for (i64 i = 0; i < (end - begin) * READ_WORDS / 4; i += 4) {
        s0 += from[i], s1 += from[i + 1], s2 += from[i + 2], s3 += from[i + 3];
    }
    s0 += s1 + s2 + s3;
    a->sums[tid * 8] += s0[0] + s0[1] + s0[2] + s0[3];
}
EXPORT void run_read(const struct read_args *a, i64 items);
EXPORT void run_read(const struct read_args *a, i64 items) {
    parallel(a->pool, read_items, a, items, 1);
}
"""


def product_groups(
    size: int, packing: Scheme, rows: int = 1, bits: int = 16
) -> tuple[Group, Group | None]:
    """y[n, size] = x[n, size] @ weight.T for up to `rows` rows; and what quantizes x, if any."""
    trace, n = Trace("matvec"), Var("n", I32, 1, rows)
    x = trace.param("x", (n, size), F32)
    parts = [
        trace.weight(f"layer.{k}", s, d) for k, (s, d) in packed_spec((size, size), packing).items()
    ]
    weight = trace.emit(
        "dequantize", *parts, bits=packing.bits, group=packing.group, bias=packing.bias,
        layout=packing.layout, packing=packing.packing, rows=size, depth=size,
    ) if packing.is_quantized else parts[0]  # fmt: skip
    function = trace.function(trace.emit("matmul", x, weight))
    module = IRModule({function.name: function}, function.name, (n,))
    tiles = prepack(module, streams_of(host_target()))
    if host_target().pair_products and packing.compute.bits == 16:
        module = cleanup(quantize_activations(module, bits))
    kernels = [f for f in fuse(module).functions.values() if f.primitive]
    groups = [lower(f, tiles).group for f in kernels]
    return groups[-1], groups[0] if len(groups) > 1 else None


def library(sources: list[CSource], folder: Path, more: str = _READ) -> ctypes.CDLL:
    calls = [
        f"""
EXPORT void run_{i}(const struct {source.name}_args *a);
EXPORT void run_{i}(const struct {source.name}_args *a) {{
    const i64 n = a->n;
    (void)n;
    parallel(a->pool, {source.phases[0]}, a, {source.counts[0]}, 1);
}}
"""
        for i, source in enumerate(sources)
    ]
    widths = {w for source in sources for w in source.widths}
    texts = (source.text for source in sources)
    text = "\n".join([pool_source(), prelude(widths), *texts, *calls, more])
    target = host_target()
    path = folder / f"matvec{target.suffix}"
    compile_library(text, target, path)
    return ctypes.CDLL(str(path))


def ring(arrays: list[NDArray[Any]]) -> tuple[NDArray[np.uint8], list[list[int]]]:
    """Copies of the arrays, one set after another in huge pages: the memory, and the addresses."""
    each = sum(-(-a.nbytes // 4096) * 4096 + 4096 for a in arrays)
    count = _RING_BYTES // each + 1
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # as the runtime maps; shared pages stay small
    memory = mmap.mmap(-1, count * each + (2 << 20), flags=private)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    data = np.frombuffer(memory, np.uint8)
    data = data[-data.ctypes.data % (2 << 20) :]
    at, sets = 0, []
    for _ in range(count):
        addresses = []
        for a in arrays:
            data[at : at + a.nbytes] = a.reshape(-1).view(np.uint8)
            addresses.append(data.ctypes.data + at)
            at += -(-a.nbytes // 4096) * 4096 + 4096
        sets.append(addresses)
    return data[:at], sets


def tiled(array: NDArray[Any], packing: Scheme) -> NDArray[Any]:
    if packing.layout == "KN":
        return array
    dtype = next(d for d in DTYPES.values() if d.numpy == array.dtype)
    tile = row_tile(dtype, streams_of(host_target()))
    param = Param("w", dtype.name, array.shape, tile.rows, tile.streams)
    out = np.zeros(packed_shape(param), array.dtype)
    pack(array, param, out)
    return out


def timed(calls: list[Callable[[], None]]) -> list[float]:
    seconds = []
    for call in calls:
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


@dataclass(frozen=True, slots=True)
class Kernels:
    """The compiled product, and the kernel that quantizes its rows where there is one."""

    lib: ctypes.CDLL
    quantizes: bool

    def run(self, index: int, *addresses: int) -> None:
        args = np.array(addresses, np.int64)
        getattr(self.lib, f"run_{index}")(ctypes.c_void_p(args.ctypes.data))


def measure(
    kernels: Kernels,
    threads: int,
    arrays: list[NDArray[Any]],
    x: NDArray[Any],
    group: int,
    out: NDArray[Any],
) -> dict[str, Any]:
    lib = kernels.lib
    pool = np.zeros(POOL_BYTES + (1 << 20) + 64, np.uint8)
    pool = pool[-pool.ctypes.data % 64 :]
    lib.sterna_work.argtypes = [ctypes.c_void_p, ctypes.c_int32]
    scratch = np.zeros((1 << 20) * threads, np.uint8)
    team = Team(lib.sterna_work, pool[:POOL_BYTES], threads, scratch.ctypes.data, 1 << 20)
    data, sets = ring(arrays)
    sums = np.zeros(8 * threads, np.uint64)
    size = x.shape[1]
    codes = np.zeros(size // 2 + 64, np.int32)
    scales, totals = (
        np.zeros(size // group + 64, np.float32),
        np.zeros(size // group + 64, np.int32),
    )
    inputs = [x]
    seconds = 0.0
    team.begin()
    if kernels.quantizes:
        inputs = [codes, scales, totals]
        parts = [a.ctypes.data for a in (x, *inputs)]
        turn = lambda: kernels.run(1, pool.ctypes.data, *parts, 1)  # noqa: E731
        seconds = float(np.median(timed([turn] * 200)))
    head = [pool.ctypes.data, *(a.ctypes.data for a in inputs)]
    kernel_args = [np.array([*head, *s, out.ctypes.data, 1], np.int64) for s in sets]
    read_args = [
        np.array([pool.ctypes.data, data.ctypes.data + at, sums.ctypes.data], np.int64)
        for at in range(0, len(data) - _READ_BYTES, _READ_BYTES)
    ]
    items = ctypes.c_int64(_READ_BYTES // 65536)
    kernel_calls = [lambda a=a: lib.run_0(ctypes.c_void_p(a.ctypes.data)) for a in kernel_args]
    read_calls = [
        lambda a=a: lib.run_read(ctypes.c_void_p(a.ctypes.data), items) for a in read_args
    ]
    rounds: list[tuple[float, float]] = []
    for _ in range(_ROUNDS):
        read = _READ_BYTES / np.percentile(timed(read_calls), 10) / 1e9
        kernel = sum(a.nbytes for a in arrays) / np.percentile(timed(kernel_calls), 10) / 1e9
        rounds.append((float(read), float(kernel)))
    team.end()
    team.stop()
    ratios = [kernel / read for read, kernel in rounds]
    return {
        "read": round(float(np.median([read for read, _ in rounds])), 2),
        "matvec": round(float(np.median([kernel for _, kernel in rounds])), 2),
        "matvec_of_read": round(float(np.median(ratios)), 3),
        "quartiles": [round(float(q), 3) for q in np.percentile(ratios, [25, 75])],
        "quantize_microseconds": round(seconds * 1e6, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scheme", default="q4f16_1")
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--bits", type=int, choices=(16, 8), default=16, help="of activations")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    packing, size = scheme(options.scheme), options.size
    groups = [g for g in product_groups(size, packing, bits=options.bits) if g is not None]
    rng = np.random.default_rng(0)
    packed = quantize(rng.standard_normal((size, size)).astype(np.float32), packing)
    x = rng.standard_normal((1, size)).astype(np.float32)
    out = np.zeros((1, size + ROW_TILE), np.float32)
    arrays = [tiled(a, packing) for a in packed.values()]
    with tempfile.TemporaryDirectory() as folder:
        sources = [render(apply(g, choose(g, host_target()))) for g in groups]
        kernels = Kernels(library(sources, Path(folder)), len(sources) > 1)
        per = packing.group or size
        rates = {n: measure(kernels, n, arrays, x, per, out) for n in options.threads}
    exact = x.astype(np.float64) @ dequantize(packed, packing, (size, size)).astype(np.float64).T
    error = np.abs(out[:, :size] - exact).max() / np.abs(exact).max()
    result = {
        "processor": cpu_name(),
        "scheme": options.scheme,
        "activation_bits": options.bits,
        "size": size,
        "target": host_target().spec,
        "error": float(error),
        "gigabytes_per_second": {f"{n} threads": r for n, r in rates.items()},
    }
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
