"""How long choosing tokens takes: the kernel of a library against numpy.

    python benchmarks/sampling.py [--vocab 128256] [--rows 8] [--threads 1 2] [--out FILE]

Random logits (normal, spread 3) for so many rows, drawn in several ways. numpy is `sample_rows`,
the definition that the kernel must equal; both give the same tokens here, or the benchmark fails.
Prints JSON: milliseconds a call, the fastest quarter's slowest of many.
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
from numpy.typing import NDArray

from sterna.base.target import host_target
from sterna.codegen.c import render
from sterna.codegen.c_math import prelude
from sterna.codegen.embed import pool_source
from sterna.codegen.toolchain import compile_library
from sterna.ir.expr import Var
from sterna.kernels.sample import sample
from sterna.runtime.sampling import SampleInput, sample_rows
from sterna.runtime.threads import POOL_BYTES, Team

WAYS = {
    "greedy": (0.0, 0, 1 << 16, 1),
    "temperature": (1.0, 0, 1 << 16, 1),
    "top_p": (1.0, 0, 58982, 1),
    "top_k": (1.0, 40, 1 << 16, 1),
    "top_k, top_p, min_p": (1.0, 40, 58982, 1 << 24),
}
_SECONDS = 1.0


def orders(way: tuple[float, int, int, int], rows: int, vocab: int) -> SampleInput:
    inverse, *limits = way
    keys = np.zeros((rows, 5), np.uint32)
    keys[:, 3] = np.arange(rows)
    return SampleInput(
        vocabulary=vocab,
        rows=np.arange(rows, dtype=np.int32),
        inverse_temperature=np.full(rows, inverse, np.float32),
        limits=np.tile(np.array(limits, np.int32), (rows, 1)),
        keys=keys,
        masked=np.zeros(rows, np.int32),
        allowed=np.zeros((rows, -(-vocab // 32)), np.uint32),
        edit_indptr=np.zeros(rows + 1, np.int32),
        edit_ids=np.zeros(0, np.int32),
        edits=np.zeros((0, 4), np.float32),
    )


class Kernel:
    """The compiled sampler on a team of threads."""

    def __init__(self, library: ctypes.CDLL, names: list[str], scratch: int, threads: int) -> None:
        self.library, self.names = library, names
        self.pool, self.scratch = _aligned(POOL_BYTES), _aligned(scratch * threads)
        library.sterna_work.argtypes = [ctypes.c_void_p, ctypes.c_int32]
        self.team = Team(library.sterna_work, self.pool, threads, self.scratch.ctypes.data, scratch)

    def run(self, logits: NDArray[np.float32], given: SampleInput) -> NDArray[np.int32]:
        out = np.empty(len(given.rows), np.int32)
        own = {"logits": logits, "sampled": out}
        arrays = [own.get(name, getattr(given, name, out)) for name in self.names]
        addresses = [self.pool.ctypes.data, *(a.ctypes.data for a in arrays)]
        args = np.array([*addresses, len(out), 0, given.vocabulary], np.int64)
        self.team.begin()
        self.library.run_sample(ctypes.c_void_p(args.ctypes.data))
        self.team.end()
        return out


def _aligned(size: int) -> NDArray[np.uint8]:
    raw = np.zeros(size + 64, np.uint8)
    return raw[-raw.ctypes.data % 64 :][:size]


def milliseconds(call: Callable[[], Any]) -> float:
    found: list[float] = []
    end = time.perf_counter() + _SECONDS
    while time.perf_counter() < end or len(found) < 3:
        start = time.perf_counter()
        call()
        found.append((time.perf_counter() - start) * 1e3)
    return round(float(np.percentile(found, 25)), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--vocab", type=int, default=128256)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    func, target = sample("sample", options.vocab, Var("m", lo=1)), host_target()
    source = render(func)
    runner = (
        "EXPORT void run_sample(const struct sample_args *a);\n"
        "EXPORT void run_sample(const struct sample_args *a) {\n"
        f"    parallel(a->pool, {source.phases[0]}, a, a->r, 1);\n}}\n"
    )
    logits = np.random.default_rng(0).normal(0, 3, (options.rows, options.vocab))
    logits = np.concatenate([logits, logits[:1]]).astype(np.float32)[: options.rows]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"sample{target.suffix}"
        text = pool_source() + prelude(set(source.widths)) + source.text + "\n" + runner
        compile_library(text, target, path)
        library = ctypes.CDLL(str(path))
    names, scratch = [p.name for p in func.params], -(-source.scratch_bytes // 64) * 64 + 64
    found: dict[str, dict[str, float]] = {}
    for way, limits in WAYS.items():
        given = orders(limits, options.rows, options.vocab)
        found[way] = {"numpy": milliseconds(lambda given=given: sample_rows(logits, given))}
        wanted = sample_rows(logits, given)
        for threads in options.threads:
            kernel = Kernel(library, names, scratch, threads)
            assert np.array_equal(kernel.run(logits, given), wanted), way
            found[way][f"{threads} threads"] = milliseconds(
                lambda kernel=kernel, given=given: kernel.run(logits, given)
            )
            kernel.team.stop()
    result = {"vocab": options.vocab, "rows": options.rows, "milliseconds": found}
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
