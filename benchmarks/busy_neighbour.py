"""What a busy neighbour on one core costs a step that runs on all of them.

    python benchmarks/busy_neighbour.py [--joins 150] [--rounds 12] [--out FILE]

A step is a chain of parallel loops, as in decoding: each is cut into chunks, and none starts
before the one before it is done. It runs on one thread alone, on all threads alone, and on all
threads while another process keeps one core busy, by turns. An engine whose threads wait for each
other falls to a tenth in the last case; one that takes chunks from a shared counter and never
waits for a thread keeps what one thread alone would do, or better. Prints JSON: milliseconds of a
step as median over the rounds, and ratios of rates, round by round.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sterna.base.target import host_target
from sterna.codegen.c_math import prelude
from sterna.codegen.embed import pool_source
from sterna.codegen.toolchain import compile_library
from sterna.runtime.host import usable_cores
from sterna.runtime.threads import POOL_BYTES, Team

_ITEMS = 64  # of a loop; on one thread it takes some 200 microseconds
_STEPS = 6  # in a row, of each kind in each round

_SOURCE = """
struct busy_args { Pool *pool; f32 *sums; };
typedef f32 f32x8 __attribute__((vector_size(32)));
static void busy_items(const void *args, i64 begin, i64 end, i32 tid) {
    const struct busy_args *a = args;
    f32x8 s[12], x = {1e-9f}, y = {0.5f};
    for (int j = 0; j < 12; j++) s[j] = x * (f32)j;
    for (i64 i = 0; i < (end - begin) * 1700; i++)
        for (int j = 0; j < 12; j++) s[j] = __builtin_elementwise_fma(s[j], y, x);
    for (int j = 1; j < 12; j++) s[0] += s[j];
    a->sums[tid * 16] = s[0][0] + s[0][1];
}
EXPORT void run_step(const struct busy_args *a, i64 joins, i64 items);
EXPORT void run_step(const struct busy_args *a, i64 joins, i64 items) {
    for (i64 i = 0; i < joins; i++) parallel(a->pool, busy_items, a, items, 1);
}
"""


class Steps:
    """A team of threads and the step they run."""

    def __init__(self, library: ctypes.CDLL, threads: int, joins: int) -> None:
        self.library, self.joins = library, joins
        self.pool, self.sums = _aligned(POOL_BYTES), _aligned(64 * threads)
        library.sterna_work.argtypes = [ctypes.c_void_p, ctypes.c_int32]
        self.team = Team(library.sterna_work, self.pool, threads, 0, 0)
        self.args = np.array([self.pool.ctypes.data, self.sums.ctypes.data], np.int64)

    def milliseconds(self) -> float:
        """Of a step, the median of a few."""
        found = []
        for _ in range(_STEPS):
            start = time.perf_counter()
            self.team.begin()
            self.library.run_step(
                ctypes.c_void_p(self.args.ctypes.data),
                ctypes.c_int64(self.joins),
                ctypes.c_int64(_ITEMS),
            )
            self.team.end()
            found.append((time.perf_counter() - start) * 1e3)
        return float(np.median(found))


def _aligned(size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    raw = np.zeros(size + 64, np.uint8)
    return raw[-raw.ctypes.data % 64 :][:size]


def _spin(core: int) -> None:
    os.sched_setaffinity(0, {core})
    while True:
        pass


@contextmanager
def neighbour() -> Iterator[None]:
    """A process that keeps the last core busy."""
    core = max(os.sched_getaffinity(0))
    process = multiprocessing.Process(target=_spin, args=(core,), daemon=True)
    process.start()
    time.sleep(0.2)
    try:
        yield
    finally:
        process.kill()
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--joins", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    threads, target = usable_cores(), host_target()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"steps{target.suffix}"
        compile_library(pool_source() + prelude(set()) + _SOURCE, target, path)
        library = ctypes.CDLL(str(path))
    one, all_threads = (Steps(library, n, options.joins) for n in (1, threads))
    rounds: list[tuple[float, float, float]] = []
    for _ in range(options.rounds):
        alone, together = one.milliseconds(), all_threads.milliseconds()
        with neighbour():
            disturbed = all_threads.milliseconds()
        rounds.append((alone, together, disturbed))
    for steps in (one, all_threads):
        steps.team.stop()
    times = np.array(rounds)
    result = {
        "threads": threads,
        "joins": options.joins,
        "milliseconds": dict(
            zip(
                ("one thread alone", "all threads alone", "all threads, a core busy"),
                np.median(times, axis=0).round(2).tolist(),
                strict=True,
            )
        ),
        "rate_of_one_thread_alone": {
            name: {
                "median": round(float(np.median(times[:, 0] / column)), 3),
                "quartiles": np.percentile(times[:, 0] / column, [25, 75]).round(3).tolist(),
            }
            for name, column in (
                ("all threads alone", times[:, 1]),
                ("all threads, a core busy", times[:, 2]),
            )
        },
    }
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
