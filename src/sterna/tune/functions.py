"""Candidates as functions of this process: libraries that a CPU runs.

In: built libraries and a kernel's Group. Out: a Runner. All libraries share one pool of threads,
for a pool is a record in memory that every library knows. A candidate that runs wild takes the
process with it; `workers` gives it one of its own.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.base.artifact import Entry
from sterna.ir.compute import Group
from sterna.runtime.threads import POOL_BYTES, Team
from sterna.tune.arguments import SLACK, drawn, room
from sterna.tune.build import Candidates
from sterna.tune.race import ROUND_SECONDS, Setup, copies, weights


class FunctionRunner:
    """A Runner. It may be used once, as a context; libraries lie in `folder` as long."""

    def __init__(
        self, built: Sequence[Candidates], group: Group, setup: Setup, folder: Path
    ) -> None:
        self.group = group
        paths = [folder / f"{i}{setup.target.suffix}" for i in range(len(built))]
        for path, candidates in zip(paths, built, strict=True):
            path.write_bytes(candidates.library)
        self.handles = [ctypes.CDLL(str(path)) for path in paths]
        self.functions = {
            number: _function(handle, entry)
            for handle, candidates in zip(self.handles, built, strict=True)
            for number, entry in candidates.entries.items()
        }
        entries = [entry for candidates in built for entry in candidates.entries.values()]
        names = [d.name for d in entries[0].dims]
        self.dims = np.array([setup.sizes[n] for n in names] or [0], np.int64)
        self.odd = np.array([setup.odd[n] for n in names] or [0], np.int64)
        draw = np.random.default_rng(0)
        self.inputs = drawn(group, setup.sizes, draw)
        self.outputs = [room(b, setup.sizes) for b in group.outputs]
        self.ring = self._ring(copies(group, setup.sizes))
        most = max(e.scratch_bytes for e in entries)
        scratch = np.zeros(max(64, most) * setup.threads + 64, np.uint8)
        raw = np.zeros(POOL_BYTES + 64, np.uint8)
        self.pool = raw[-raw.ctypes.data % 64 :][:POOL_BYTES]
        start = -(-scratch.ctypes.data // 64) * 64
        self.kept = (raw, scratch)
        work = self.handles[0].sterna_work
        work.argtypes = [ctypes.c_void_p, ctypes.c_int32]
        self.team = Team(work, self.pool, setup.threads, start, most)

    def __enter__(self) -> FunctionRunner:
        self.team.begin()
        return self

    def __exit__(self, *_: object) -> None:
        self.team.end()
        self.team.stop()
        for handle in self.handles:
            _close(handle)

    def _ring(self, count: int) -> list[NDArray[np.uint64]]:
        """Pointers of one call after another; the first call's are those that bits come from."""
        fixed = weights(self.group)
        self.copies = [self.inputs] + [
            [a.copy() if i in fixed else a for i, a in enumerate(self.inputs)] for _ in range(count)
        ]
        return [
            np.array([a.ctypes.data for a in (*inputs, *self.outputs)], np.uint64)
            for inputs in self.copies
        ]

    def call(self, function: Any, pointers: NDArray[np.uint64], dims: NDArray[np.int64]) -> None:
        function(self.pool.ctypes.data, pointers.ctypes.data, None, dims.ctypes.data)

    def bits(self, candidate: int) -> bytes:
        found = []
        for dims in (self.dims, self.odd):
            for out in self.outputs:
                out[:] = 0
            self.call(self.functions[candidate], self.ring[0], dims)
            found += [out[:-SLACK].tobytes() for out in self.outputs]
        return b"".join(found)

    def round(self, candidate: int) -> float:
        function, seconds = self.functions[candidate], list[float]()
        while sum(seconds) < ROUND_SECONDS or len(seconds) < 3:
            pointers = self.ring[len(seconds) % len(self.ring)]
            start = time.perf_counter()
            self.call(function, pointers, self.dims)
            seconds.append(time.perf_counter() - start)
        return float(np.percentile(seconds, 25))


def _function(handle: ctypes.CDLL, entry: Entry) -> Any:
    function = handle[entry.symbol]
    function.argtypes = [ctypes.c_void_p] * 4
    function.restype = ctypes.c_int32
    return function


def _close(handle: ctypes.CDLL) -> None:
    """Unload the library: candidates by the hundred would otherwise stay in memory."""
    if sys.platform == "win32":
        close = ctypes.WinDLL("kernel32").FreeLibrary
    else:
        close = ctypes.CDLL(None).dlclose
    close.argtypes = [ctypes.c_void_p]
    close(handle._handle)
