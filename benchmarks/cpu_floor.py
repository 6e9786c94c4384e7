"""What this CPU can do at most: bytes read, FMAs, and dot products of integers, by threads.

    python benchmarks/cpu_floor.py [--threads 1 2] [--out FILE]

Loops of independent instructions in registers as wide as the target's, and a loop that reads
memory in huge pages and adds it up, compiled by the toolchain of kernels and run on the pool of
kernels. dot2 multiplies and adds two i16 a lane, dot4 four i8: the operations that products with
packed weights are made of; one operand is another sum, so that no product can leave the loop.
Memory is read in four streams without prefetches: hardware asks further ahead for four than for
one. Rounds of all of them take turns. Prints JSON in billions a second (two operations a product):
the fastest tenth of the calls, and their median.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from matvec import ring

from sterna.base.target import host_target
from sterna.codegen.c_math import prelude
from sterna.codegen.embed import pool_source
from sterna.codegen.toolchain import compile_library
from sterna.runtime.host import cpu_name
from sterna.runtime.threads import POOL_BYTES, Team

_ROUNDS, _CHAINS, _TURNS, _ITEMS = 60, 12, 20_000, 4
_READ_BYTES, _READ_ITEM = 8 << 20, 1 << 20  # of one call, and of one work item
LOOPS = {  # statements of a turn, and the operations of one lane
    "fma": ("f32", "s[j] = fma_f32@(s[j], y, x)", 2),
    "dot2": ("i32", "s[j] = dot2_add_i32@(x, s[(j + 1) % CHAINS], s[j])", 4),
    "dot4": ("i32", "s[j] = dot4_add_i32@(x, s[(j + 1) % CHAINS], s[j])", 8),
}
_LOOP = """
struct NAME_args { Pool *pool; KIND *out; };
static void NAME_items(const void *args, i64 begin, i64 end, i32 tid) {
    const struct NAME_args *a = args;
    KIND@ s[CHAINS], x = splat_KIND@(a->out[0]), y = splat_KIND@(a->out[1]);
    for (int j = 0; j < CHAINS; j++) s[j] = x;
    for (i64 i = begin * TURNS; i < end * TURNS; i++)
        for (int j = 0; j < CHAINS; j++) STEP;
    for (int j = 1; j < CHAINS; j++) s[0] += s[j];
    a->out[16 + tid] = s[0][0];
}
EXPORT void run_NAME(const struct NAME_args *a);
EXPORT void run_NAME(const struct NAME_args *a) { parallel(a->pool, NAME_items, a, ITEMS, 1); }
"""
_READ = """
struct read_args { Pool *pool; const u8 *from; u64 *sums; };
typedef u64 wide __attribute__((vector_size(BYTES)));
enum { ITEM = READ_ITEM, STREAM = ITEM / BYTES / 4 };
static void read_items(const void *args, i64 begin, i64 end, i32 tid) {
    const struct read_args *a = args;
    wide s0 = {0}, s1 = s0, s2 = s0, s3 = s0;
    for (i64 item = begin; item < end; item++) {
        const wide *from = (const wide *)(a->from + item * ITEM);
        for (i64 i = 0; i < STREAM; i += 2) {
            s0 += from[i] + from[i + 1], s1 += from[i + STREAM] + from[i + STREAM + 1];
            s2 += from[i + 2 * STREAM] + from[i + 2 * STREAM + 1];
            s3 += from[i + 3 * STREAM] + from[i + 3 * STREAM + 1];
        }
    }
    s0 += s1 + s2 + s3;
    a->sums[tid * 8] += s0[0] + s0[1];
}
EXPORT void run_read(const struct read_args *a);
EXPORT void run_read(const struct read_args *a) {
    parallel(a->pool, read_items, a, READ_ITEMS, 1);
}
"""


def source() -> str:
    target = host_target()
    numbers = {
        "CHAINS": _CHAINS, "TURNS": _TURNS, "READ_ITEMS": _READ_BYTES // _READ_ITEM,
        "READ_ITEM": _READ_ITEM, "ITEMS": _ITEMS, "BYTES": target.vector_bytes,
    }  # fmt: skip
    texts = [_READ]
    for title, (kind, step, _) in LOOPS.items():
        texts.append(_LOOP.replace("STEP", step).replace("KIND", kind).replace("NAME", title))
    text = "\n".join(texts).replace("@", f"x{target.lanes()}")
    for name, number in numbers.items():
        text = text.replace(name, str(number))
    return "\n".join([pool_source(), prelude({target.lanes()}), text])


class Floor:
    """The loops on a pool of threads, while the block lasts. `lib` is `source()` compiled."""

    def __init__(self, lib: ctypes.CDLL, threads: int) -> None:
        raw = np.zeros(POOL_BYTES + 64, np.uint8)
        self.lib, self.pool = lib, raw[-raw.ctypes.data % 64 :][:POOL_BYTES]
        lib.sterna_work.argtypes = [ctypes.c_void_p, ctypes.c_int32]
        self.team = Team(lib.sterna_work, self.pool, threads, raw.ctypes.data, 0)
        self.out, self.sums = np.ones(64, np.float32), np.zeros(8 * threads, np.uint64)
        self.data, _ = ring([np.ones(64 << 20, np.uint8)])
        self.turn = 0

    def __enter__(self) -> Floor:
        self.team.begin()
        return self

    def __exit__(self, *_: object) -> None:
        self.team.end()
        self.team.stop()

    def rate(self, name: str) -> float:
        """Billions a second in one call of a loop; the next memory is read each time."""
        at = self.turn * _READ_BYTES % (self.data.size - _READ_BYTES) // 4096 * 4096
        read = [self.data.ctypes.data + at, self.sums.ctypes.data]
        tail = read if name == "read" else [self.out.ctypes.data]
        args = np.array([self.pool.ctypes.data, *tail], np.int64)
        done = float(_READ_BYTES)
        if name != "read":
            done = _ITEMS * _TURNS * _CHAINS * host_target().lanes() * LOOPS[name][2]
        else:
            self.turn += 1
        began = time.perf_counter()
        getattr(self.lib, f"run_{name}")(ctypes.c_void_p(args.ctypes.data))
        return done / (time.perf_counter() - began) / 1e9


def measure(lib: ctypes.CDLL, threads: int) -> dict[str, dict[str, float]]:
    calls: dict[str, list[float]] = {name: [] for name in ("read", *LOOPS)}
    with Floor(lib, threads) as floor:
        for _ in range(_ROUNDS):
            for name, rates in calls.items():
                rates.append(floor.rate(name))
    return {
        name: {
            "best_tenth": round(float(np.percentile(rates, 90)), 1),
            "median": round(float(np.median(rates)), 1),
        }
        for name, rates in calls.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"floor{host_target().suffix}"
        compile_library(source(), host_target(), path)
        lib = ctypes.CDLL(str(path))
        found = {f"{n} threads": measure(lib, n) for n in options.threads}
    result = {"processor": cpu_name(), "target": host_target().spec, "billions_per_second": found}
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
