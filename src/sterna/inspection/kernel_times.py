"""Where the time of a step goes on a CPU: in each kernel, in waiting for threads, on the host.

In: a Source that was compiled, the model's weights, and steps to take. Out: a StepTimes each. The
library is built once more with a `parallel` that reads the clock around every kernel and in every
chunk; that costs some fifty nanoseconds a chunk, and nothing in the library that others run. Knows
`parallel` and `WorkFn` of codegen/pool.h, and nothing of what kernels do.
"""

from __future__ import annotations

import ctypes
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from sterna.base.artifact import Manifest
from sterna.base.errors import Unavailable
from sterna.base.target import Target
from sterna.codegen.c import CSource
from sterna.codegen.embed import pool_source
from sterna.codegen.toolchain import compile_library
from sterna.compiler import Source
from sterna.runtime import cpu
from sterna.runtime.executable import StepInput
from sterna.runtime.params import WeightReader

_REPEATS = 5
_MONOTONIC = getattr(time, "CLOCK_MONOTONIC", 0)

_TIMED = """
EXPORT extern i32 (*sterna_clock)(i32 which, i64 *time); // the host's clock_gettime
i32 (*sterna_clock)(i32 which, i64 *time);

static i64 sterna_now(void) {
    i64 time[2];
    sterna_clock(%(clock)d, time);
    return time[0] * 1000000000 + time[1];
}

// Of each call of parallel(), in the order of the text: nanoseconds in all, and in thread 0's work.
EXPORT extern i64 sterna_spent[%(sites)d][2];
i64 sterna_spent[%(sites)d][2];

struct TimedWork { WorkFn work; const void *args; i64 *spent; };

static void timed_work(const void *args, i64 begin, i64 end, i32 tid) {
    const struct TimedWork *timed = args;
    i64 start = sterna_now();
    timed->work(timed->args, begin, end, tid);
    if (tid == 0) timed->spent[1] += sterna_now() - start;
}

STERNA_MAYBE void timed_parallel(Pool *pool, WorkFn work, const void *args, i64 items, i64 grain,
                                 i64 *spent) {
    struct TimedWork timed = {work, args, spent};
    i64 start = sterna_now();
    parallel(pool, timed_work, &timed, items, grain);
    spent[0] += sterna_now() - start;
}

#define parallel(pool, work, args, items, grain) \\
    timed_parallel(pool, work, args, items, grain, sterna_spent[__COUNTER__])
"""
_CALL = re.compile(r"\bparallel\(pool, (\w+), &a")


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds of one step by kernel, and what of the step is none's.

    `kernels`: from the fork of a kernel until its last chunk is done, launches of it together.
    `waiting`: in them, thread 0 had no chunk: forks, and barriers at the end. `host`: the rest of
    the call from Python.
    """

    seconds: float
    kernels: Mapping[str, float]
    waiting: float
    host: float


def kernel_times(
    source: Source,
    target: Target,
    weights: Mapping[str, WeightReader],
    steps: Sequence[tuple[int, int, int]],
    *,
    threads: int,
    packed: Path | None = None,
) -> list[StepTimes]:
    """Times of steps, each (cached tokens, new tokens, sequences alike), the median of a few.

    Raises Unavailable where the system has no such clock as POSIX's.
    """
    if not hasattr(time, "clock_gettime"):
        raise Unavailable("the time in each kernel is not measured on this system")
    text, sites = timed_source(source)
    batches = [step_input(source.manifest, *step) for step in steps]
    pages = max(len(batch.page_table) for batch in batches)
    with TemporaryDirectory(prefix="sterna-times-") as folder:
        library = Path(folder) / f"timed{target.suffix}"
        compile_library(text, target, library)
        executable = cpu.load(library, weights, num_pages=pages, threads=threads, packed=packed)
        try:
            spent = _Spent(library, sites)
            return [_measured(executable, spent, batch) for batch in batches]
        finally:
            executable.close()


def timed_source(source: Source) -> tuple[str, list[str]]:
    """The library's text with its kernels timed, and the kernel of each call of `parallel`."""
    pool = pool_source()
    text = source.text
    rest = text.removeprefix(pool)
    assert len(rest) < len(text), "a library's text begins with the pool"
    kernels = {
        phase: title
        for title, kernel in source.parts.kernels.items()
        if isinstance(kernel.rendered, CSource)
        for phase in kernel.rendered.phases
    }
    sites = [kernels[phase] for phase in _CALL.findall(rest)]
    return pool + _TIMED % {"sites": len(sites), "clock": _MONOTONIC} + rest, sites


class _Spent:
    """What a loaded library counts: int64 [calls of `parallel`, 2], in nanoseconds."""

    def __init__(self, library: Path, sites: list[str]) -> None:
        handle = ctypes.CDLL(str(library.resolve()))  # the one that is loaded already
        clock = ctypes.cast(ctypes.CDLL(None).clock_gettime, ctypes.c_void_p)
        ctypes.c_void_p.in_dll(handle, "sterna_clock").value = clock.value
        spent = (ctypes.c_int64 * (2 * len(sites))).in_dll(handle, "sterna_spent")
        self.counts: NDArray[np.int64] = np.ctypeslib.as_array(spent).reshape(-1, 2)
        self.sites = sites


def _measured(executable: cpu.CpuExecutable, spent: _Spent, batch: StepInput) -> StepTimes:
    found = [_once(executable, spent, batch) for _ in range(_REPEATS + 1)][1:]
    middle = median(times.seconds for times in found)
    return min(found, key=lambda times: abs(times.seconds - middle))


def _once(executable: cpu.CpuExecutable, spent: _Spent, batch: StepInput) -> StepTimes:
    spent.counts[:] = 0
    begin = time.perf_counter()
    executable.step(batch)
    seconds = time.perf_counter() - begin
    inside, main = spent.counts.sum(axis=0) / 1e9
    kernels: dict[str, float] = {}
    for title, took in zip(spent.sites, spent.counts[:, 0] / 1e9, strict=True):
        if took:
            kernels[title] = kernels.get(title, 0.0) + float(took)
    waiting, host = max(0.0, float(inside - main)), max(0.0, float(seconds - inside))
    return StepTimes(seconds, kernels, waiting, host)


def step_input(manifest: Manifest, context: int, tokens: int, sequences: int = 1) -> StepInput:
    """A step of `tokens` more of sequences with `context` each in the cache; logits of the last."""
    used = -(-(context + tokens) // manifest.kv_cache.page_size)
    many = np.arange(sequences + 1, dtype=np.int32)
    return StepInput(
        tokens=np.arange(sequences * tokens, dtype=np.int32) % manifest.model.vocab_size,
        positions=np.tile(np.arange(context, context + tokens, dtype=np.int32), sequences),
        seq_indptr=many * tokens,
        page_indptr=many * used,
        page_table=np.arange(sequences * used, dtype=np.int32),
        logit_rows=many[1:] * tokens - 1,
    )
