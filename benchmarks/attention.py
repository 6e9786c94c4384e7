"""How near attention over the paged cache comes to the machine's arithmetic and its memory.

    python benchmarks/attention.py [--dims 64 128] [--contexts 128 2048 8192] [--threads 1 2]
                                   [--kv f16] [--out FILE]

Grouped-query attention, 32 query heads over 8 of keys and values. Prefill: the last 128 tokens
of the context in one step. Decode: its last token. The floors are measured in the same rounds on
the same pool: fused multiply-adds in registers for prefill, reading memory for decode. Each call
takes the next of so many layers that no cache holds them. Prints JSON; a figure is the median
over rounds, and ratios are taken round by round: what else runs on a machine drifts, and takes
from both.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.base.artifact import QUERY_TILE
from sterna.base.dtype import F16, F32, I8, I32, DType
from sterna.base.target import host_target
from sterna.codegen.c import CSource, render
from sterna.codegen.c_math import prelude
from sterna.codegen.embed import pool_source
from sterna.codegen.toolchain import compile_library
from sterna.ir.expr import Buffer, Var, wrap
from sterna.ir.loop import PrimFunc
from sterna.kernels.attention import AttentionSpec, attention_split, attention_tiles
from sterna.kernels.kv_cache import LAYER, CacheLayout
from sterna.ops.attention import slot_elements
from sterna.passes.lower_opaque import piece_length
from sterna.runtime.threads import POOL_BYTES, Team
from sterna.schedule.choose import attention_vectors

HEADS, KV_HEADS, PAGE = 32, 8, 16
KV_DTYPES = {"f32": F32, "f16": F16, "q8": I8}
CHUNK = 128  # queries of a prefill step
_CACHE_BYTES = 256_000_000
_ROUNDS = 9
_SECONDS = 0.06  # of each kernel in each round

DIMS = tuple(Var(name, lo=0) for name in ("n", "t", "b", "p"))

_FLOORS = """
typedef f32 floats __attribute__((vector_size(4 * LANES)));
typedef u64 u64x4 __attribute__((vector_size(32)));
struct floor_args { Pool *pool; const u64 *from; f32 *sums; };
enum { READ_WORDS = 8192, FMA_TURNS = 2000 }; // of one work item
static void fma_items(const void *args, i64 begin, i64 end, i32 tid) {
    const struct floor_args *a = args;
    floats s[12], x = {1e-9f}, y = {0.5f};
    for (int j = 0; j < 12; j++) s[j] = x * (f32)j;
    for (i64 i = 0; i < (end - begin) * FMA_TURNS; i++)
        for (int j = 0; j < 12; j++) s[j] = __builtin_elementwise_fma(s[j], y, x);
    for (int j = 1; j < 12; j++) s[0] += s[j];
    a->sums[tid * 16] = s[0][0] + s[0][1];
}
static void read_items(const void *args, i64 begin, i64 end, i32 tid) {
    const struct floor_args *a = args;
    u64x4 s[4] = {{0}};
    const u64x4 *from = (const u64x4 *)(a->from + begin * READ_WORDS);
    for (i64 i = 0; i < (end - begin) * READ_WORDS / 4; i += 4)
        for (int j = 0; j < 4; j++) s[j] += from[i + j];
    s[0] += s[1] + s[2] + s[3];
    a->sums[tid * 16] = (f32)(s[0][0] + s[0][1] + s[0][2] + s[0][3]);
}
EXPORT void run_fma(const struct floor_args *a, i64 items);
EXPORT void run_fma(const struct floor_args *a, i64 items) {
    parallel(a->pool, fma_items, a, items, 1);
}
EXPORT void run_read(const struct floor_args *a, i64 items);
EXPORT void run_read(const struct floor_args *a, i64 items) {
    parallel(a->pool, read_items, a, items, 1);
}
"""
_FMA_LANES = host_target().lanes()
_FMA_FLOPS = 2000 * 12 * _FMA_LANES * 2  # of one work item
_READ_BYTES = 8192 * 8


@dataclass(frozen=True)
class Case:
    """One shape of attention at one context length."""

    kind: str  # "prefill" or "decode"
    dim: int
    context: int
    kv: DType

    @property
    def name(self) -> str:
        return f"{self.kind}_d{self.dim}_{self.context}"

    @property
    def queries(self) -> int:
        return min(CHUNK, self.context) if self.kind == "prefill" else 1

    @property
    def layer_bytes(self) -> int:
        """Keys and values of the context."""
        return self.context * 2 * KV_HEADS * slot_elements(self.kv, self.dim) * self.kv.bytes

    @property
    def layers(self) -> int:
        return max(1, _CACHE_BYTES // self.layer_bytes)

    @property
    def flops(self) -> int:
        """Of the products with keys and values that queries see."""
        seen = sum(range(self.context - self.queries + 1, self.context + 1))
        return seen * 4 * HEADS * self.dim

    def layout(self, layers: Any) -> CacheLayout:
        slots = PAGE * slot_elements(self.kv, self.dim)
        shape = (DIMS[3], layers, wrap(2), wrap(KV_HEADS), wrap(slots))
        return CacheLayout.over(Buffer("cache", self.kv, shape), PAGE, self.dim)

    def kernel(self) -> PrimFunc:
        n, t, b, p = DIMS
        index = {"positions": (n,), "page_indptr": (b + 1,), "page_table": (p,)}
        index |= {f"tile_{x}": (t,) for x in ("start", "size", "seq")}
        width = (n, wrap(HEADS * self.dim))
        piece = piece_length(self.context)
        spec = AttentionSpec(
            heads=HEADS,
            scale=self.dim**-0.5,
            window=-1,
            sinks=0,
            piece=piece,
            pieces=-(-self.context // piece),
            q=Buffer("q", F32, width),
            cache=self.layout(wrap(self.layers)),
            **{name: Buffer(name, I32, shape) for name, shape in index.items()},
            out=Buffer("out", F32, width),
            vectors=attention_vectors(host_target()),
        )
        if self.kind == "prefill":
            return attention_tiles(self.name, spec, DIMS, QUERY_TILE)
        shape = (n, wrap(HEADS), wrap(spec.pieces), wrap(self.dim + 2))
        return attention_split(self.name, spec, DIMS, Buffer("partial", F32, shape))

    def arrays(self, cache: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """What the kernel's parameters point to, by name."""
        rng = np.random.default_rng(0)
        n, pages = self.queries, -(-self.context // PAGE)
        start = np.arange(0, n, QUERY_TILE if self.kind == "prefill" else 1, dtype=np.int32)
        q = rng.standard_normal((n, HEADS * self.dim)).astype(np.float32)
        pieces = -(-self.context // piece_length(self.context))
        return {
            "q": q,
            "cache": cache,
            "cache_scales": cache,
            "positions": np.arange(self.context - n, self.context, dtype=np.int32),
            "page_indptr": np.array([0, pages], np.int32),
            "page_table": rng.permutation(pages).astype(np.int32),
            "tile_start": start,
            "tile_size": np.minimum(n - start, QUERY_TILE).astype(np.int32),
            "tile_seq": np.zeros_like(start),
            "out": np.zeros_like(q),
            "partial": np.zeros((n, HEADS, pieces, self.dim + 2), np.float32),
        }

    def dims(self) -> list[int]:
        tiles = -(-self.queries // QUERY_TILE)
        return [self.queries, tiles, 1, -(-self.context // PAGE)]


@dataclass
class Bench:
    """The library of all cases, a pool of threads, and memory to read."""

    cases: list[Case]
    threads: int
    library: ctypes.CDLL
    funcs: dict[str, PrimFunc]
    scratch_bytes: int
    cache: NDArray[np.uint8]
    held: list[Any] = field(default_factory=list)  # what C reads

    def __enter__(self) -> Bench:
        self.pool = aligned(POOL_BYTES)
        self.scratch = aligned(self.threads * self.scratch_bytes)
        self.library.sterna_work.argtypes = [ctypes.c_void_p, ctypes.c_int32]
        self.team = Team(
            self.library.sterna_work,
            self.pool,
            self.threads,
            self.scratch.ctypes.data,
            self.scratch_bytes,
        )
        self.team.begin()
        return self

    def __exit__(self, *_: object) -> None:
        self.team.end()
        self.team.stop()

    def calls(self) -> dict[str, Callable[[], None]]:
        found = {case.name: self._case(case) for case in self.cases}
        sums = aligned(64 * self.threads)
        args = np.array([self.pool.ctypes.data, self.cache.ctypes.data, sums.ctypes.data])
        address, at = ctypes.c_void_p(args.ctypes.data), [0]

        def read() -> None:
            args[1] = self.cache.ctypes.data + at[0]
            at[0] = (at[0] + 128 * _READ_BYTES) % (len(self.cache) - 128 * _READ_BYTES)
            self.library.run_read(address, ctypes.c_int64(128))

        def fma() -> None:
            self.library.run_fma(address, ctypes.c_int64(64))

        self.held += [args, sums]
        return found | {"read": read, "fma": fma}

    def _case(self, case: Case) -> Callable[[], None]:
        arrays, func = case.arrays(self.cache), self.funcs[case.name]
        values = [self.pool.ctypes.data, *(arrays[p.name].ctypes.data for p in func.params)]
        args = np.array([*values, *case.dims(), 0], np.int64)
        run = self.library[f"run_{case.name}"]
        self.held.append(arrays)

        def call() -> None:
            args[-1] = (args[-1] + 1) % case.layers
            run(ctypes.c_void_p(args.ctypes.data))

        return call


def aligned(size: int) -> NDArray[np.uint8]:
    raw = np.zeros(size + 64, np.uint8)
    return raw[-raw.ctypes.data % 64 :][:size]


def filled_cache(size: int, kv: DType) -> NDArray[np.uint8]:
    """Huge pages of small numbers, whatever element they are read as."""
    memory = mmap.mmap(-1, size + (2 << 20), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    data = np.frombuffer(memory, np.uint8)
    data = data[-data.ctypes.data % (2 << 20) :][:size]
    pattern = np.random.default_rng(1).standard_normal(1 << 20).clip(-4, 4)
    as_read = pattern * 20 if kv.is_int else pattern
    data[:] = np.resize(as_read.astype(kv.numpy).view(np.uint8), size)
    return data


def build(cases: list[Case], folder: Path) -> tuple[ctypes.CDLL, dict[str, PrimFunc], int]:
    funcs = {case.name: case.kernel() for case in cases}
    sources = {name: render(func) for name, func in funcs.items()}
    parts = [pool_source(), prelude({w for s in sources.values() for w in s.widths})]
    for source in sources.values():
        parts += [source.text, _runner(source, [d.name for d in (*DIMS, LAYER)])]
    target = host_target()
    path = folder / f"attention{target.suffix}"
    floors = _FLOORS.replace("LANES", str(_FMA_LANES))
    compile_library("\n".join([*parts, floors]), target, path)
    scratch = max(s.scratch_bytes for s in sources.values())
    return ctypes.CDLL(str(path)), funcs, -(-scratch // 64) * 64 + 64


def _runner(source: CSource, dims: list[str]) -> str:
    head = f"EXPORT void run_{source.name}(const struct {source.name}_args *a)"
    lines = [f"{head};", f"{head} {{", *(f"    const i64 {d} = a->{d}; (void){d};" for d in dims)]
    for phase, items in zip(source.phases, source.counts, strict=True):
        lines.append(f"    parallel(a->pool, {phase}, a, {items}, 1);")
    return "\n".join([*lines, "}"])


def seconds(call: Callable[[], None], clock: Callable[[], float]) -> float:
    """The time of a call, called for a while: of the fastest quarter, the slowest."""
    found: list[float] = []
    end = time.perf_counter() + _SECONDS
    while time.perf_counter() < end or len(found) < 3:
        start = clock()
        call()
        found.append(clock() - start)
    return float(np.percentile(found, 25))


def measure(bench: Bench) -> dict[str, Any]:
    with bench:
        calls = bench.calls()
        clock = time.thread_time if bench.threads == 1 else time.perf_counter
        rounds = [{k: seconds(call, clock) for k, call in calls.items()} for _ in range(_ROUNDS)]
    peak = np.array([64 * _FMA_FLOPS / r["fma"] / 1e9 for r in rounds])
    reads = np.array([128 * _READ_BYTES / r["read"] / 1e9 for r in rounds])
    found: dict[str, Any] = {
        "fma_gflops": round(float(np.median(peak)), 1),
        "read_gigabytes_per_second": round(float(np.median(reads)), 1),
    }
    for case in bench.cases:
        times = np.array([r[case.name] for r in rounds])
        gflops, rate = case.flops / times / 1e9, case.layer_bytes / times / 1e9
        found[case.name] = {
            "milliseconds": round(float(np.median(times)) * 1e3, 4),
            "gflops": round(float(np.median(gflops)), 1),
            "gigabytes_per_second": round(float(np.median(rate)), 2),
            "of_fma_peak": round(float(np.median(gflops / peak)), 3),
            "of_read": round(float(np.median(rate / reads)), 3),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 2048, 8192])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--kv", default="f16", choices=list(KV_DTYPES))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    kv = KV_DTYPES[options.kv]
    cases = [
        Case(kind, dim, context, kv)
        for kind in ("prefill", "decode")
        for dim in options.dims
        for context in options.contexts
    ]
    cache = filled_cache(max(c.layers * c.layer_bytes for c in cases) + (1 << 20), kv)
    with tempfile.TemporaryDirectory() as folder:
        library, funcs, scratch = build(cases, Path(folder))
        rates = {
            f"{n} threads": measure(Bench(cases, n, library, funcs, scratch, cache))
            for n in options.threads
        }
    result = {"kv": options.kv, "heads": [HEADS, KV_HEADS], "target": host_target().spec, **rates}
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
