"""Candidates of one kernel built into one library, checked against the shipped schedule, and timed.

In: a Group and plans. Out: seconds for each, or why it has none. Candidates take turns, round by
round, over arguments that no cache holds, so that what else runs on the machine meets them all
alike; a time is the median over rounds of the fastest quarter. Every candidate must give the bits
of the first one: schedules never change what a kernel means. For targets whose entry points are
functions of this process.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.base.artifact import FORMAT, Dim, Entry, KVCache, Launch, Manifest, Model
from sterna.base.artifact import Buffer as ManifestBuffer
from sterna.base.errors import CompileError, UsageError
from sterna.base.target import Target
from sterna.base.version import __version__
from sterna.codegen.renderer import LibraryParts, renderer_of
from sterna.ir.compute import Group
from sterna.ir.expr import Buffer, Expr, Var, const_value, wrap
from sterna.ir.rewrite import free_vars, substitute
from sterna.ir.simplify import simplify
from sterna.passes.cost import Cost
from sterna.program import KernelTable
from sterna.runtime.threads import POOL_BYTES, Team
from sterna.schedule.apply import apply
from sterna.schedule.choose import Plan, schedule

_SLACK = 4096  # bytes behind each argument that vector tails may touch
_RING_BYTES = 128 << 20  # of arguments that take turns, more than caches hold
_ROUND_SECONDS = 0.02  # of one candidate in one round, at least
_ROUNDS = 5
_MOST_COPIES = 64
_NO_MODEL = Model("none", "none", "none", 0, 0, 0, 0)
_NO_CACHE = KVCache(0, 0, 0, 1, "f16", 0)


@dataclass(frozen=True, slots=True)
class Time:
    """Seconds of a call, infinite where `problem` says why there is none.

    `spread` is the range of the middle half of the rounds, as a share of the seconds: what else
    ran on the machine.
    """

    seconds: float
    exact: bool
    problem: str = ""
    spread: float = 0.0


@dataclass(frozen=True, slots=True)
class Setup:
    """On what candidates run: the target, the threads, and the size of each dim by name."""

    target: Target
    threads: int
    sizes: dict[str, int]


def measure(group: Group, plans: Sequence[Plan], setup: Setup) -> list[Time]:
    """A Time for each plan; the first is the one whose bits the others must give.

    Raises UsageError where the first cannot be built, or the target's kernels are not measured.
    """
    try:
        return _measure(group, plans, setup)
    except CompileError as error:  # of the compiler, which does not say by which candidate
        if len(plans) == 1:
            raise
        problem = Time(float("inf"), False, str(error))
    times = measure(group, plans[:1], setup)
    for plan in plans[1:]:
        if len(plans) > 2:
            times.append(measure(group, [plans[0], plan], setup)[1])
        else:
            times.append(problem)
    return times


def _measure(group: Group, plans: Sequence[Plan], setup: Setup) -> list[Time]:
    table = KernelTable(setup.target)
    entries: dict[int, Entry] = {}
    problems: dict[int, str] = {}
    for i, plan in enumerate(plans):
        try:
            func = apply(group, schedule(group, plan))
            kernel = table.add(func, f"candidate_{i}", "", Cost("0", "0"))
        except CompileError as error:
            problems[i] = str(error)
            continue
        scratch = table.kernels[kernel].source.scratch_bytes
        entries[i] = _entry(i, group, kernel, scratch)
    if 0 not in entries:
        raise UsageError(f"the shipped schedule of {group.name} cannot be built: {problems[0]}")
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"candidates{setup.target.suffix}"
        path.write_bytes(_library(table, tuple(entries.values()), setup.target))
        with _Runner(path, group, tuple(entries.values()), setup) as runner:
            times = dict(zip(entries, runner.times(), strict=True))
    return [
        times[i] if i in times else Time(float("inf"), False, problems[i])
        for i in range(len(plans))
    ]


def _entry(index: int, group: Group, kernel: str, scratch: int) -> Entry:
    extents = (d for b in (*group.inputs, *group.outputs) for d in b.shape)
    dims = sorted({v for d in extents for v in free_vars(d)}, key=lambda v: v.name)
    return Entry(
        name=f"candidate_{index}",
        symbol=f"sterna_candidate_{index}",
        dims=tuple(Dim(v.name, v.lo or 0, v.hi or 0) for v in dims),
        inputs=tuple(_buffer(b) for b in group.inputs),
        outputs=tuple(_buffer(b) for b in group.outputs),
        arena=(),
        arena_bytes=0,
        scratch_bytes=scratch,
        steps=(Launch(kernel=kernel, args=tuple(b.name for b in (*group.inputs, *group.outputs))),),
    )


def _buffer(buffer: Buffer) -> ManifestBuffer:
    return ManifestBuffer(name=buffer.name, dtype=buffer.dtype.name, shape=())


def _library(table: KernelTable, entries: tuple[Entry, ...], target: Target) -> bytes:
    if any(k.source.launches for k in table.kernels.values()):
        raise UsageError(
            f"kernels of {target.spec} cannot be tuned yet: they are launched one by one, and only "
            "targets whose entry points are functions are measured"
        )
    manifest = Manifest(
        format=FORMAT, sterna=__version__, target=target.spec, features=target.features,
        model=_NO_MODEL, kv_cache=_NO_CACHE, params=(), entries=entries, kernels=table.manifest(),
    )  # fmt: skip
    return renderer_of(target).build_library(LibraryParts(manifest, table.code(), {}), target)


class _Runner:
    """A loaded library of candidates, and arguments for it."""

    def __init__(self, path: Path, group: Group, entries: tuple[Entry, ...], setup: Setup) -> None:
        self.handle = ctypes.CDLL(str(path))
        self.entries, self.group = entries, group
        sizes = {d.name: setup.sizes[d.name] for d in entries[0].dims}
        self.dims = np.array([*sizes.values()] or [0], np.int64)
        # A size that fills no tile: what is left over must come out right as well.
        self.odd = np.array([s - s // 3 for s in sizes.values()] or [0], np.int64)
        draw = np.random.default_rng(0)
        self.inputs = [_drawn(b, sizes, draw) for b in group.inputs]
        self.outputs = [_room(b, sizes) for b in group.outputs]
        self.ring = self._ring()
        most = max(e.scratch_bytes for e in entries)
        scratch = np.zeros(max(64, most) * setup.threads + 64, np.uint8)
        raw = np.zeros(POOL_BYTES + 64, np.uint8)
        self.pool = raw[-raw.ctypes.data % 64 :][:POOL_BYTES]
        start = -(-scratch.ctypes.data // 64) * 64
        self.kept = (raw, scratch)
        self.functions = [self._function(e) for e in entries]
        work = self.handle.sterna_work
        work.argtypes = [ctypes.c_void_p, ctypes.c_int32]
        self.team = Team(work, self.pool, setup.threads, start, most)

    def __enter__(self) -> _Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.team.stop()
        _close(self.handle)

    def _function(self, entry: Entry) -> Any:
        function = self.handle[entry.symbol]
        function.argtypes = [ctypes.c_void_p] * 4
        function.restype = ctypes.c_int32
        return function

    def _ring(self) -> list[NDArray[np.uint64]]:
        """Pointers of one call after another; weights are other copies in each.

        A step comes to each weight once and finds it in memory; what the kernel before has written
        is in a cache.
        """
        weights = {
            i for i, b in enumerate(self.group.inputs) if not any(free_vars(d) for d in b.shape)
        }
        size = sum(self.inputs[i].nbytes for i in weights)
        count = 1 + min(_MOST_COPIES, _RING_BYTES // size + 1) if weights else 1
        self.copies = [self.inputs] + [
            [a.copy() if i in weights else a for i, a in enumerate(self.inputs)]
            for _ in range(count - 1)
        ]
        return [
            np.array([a.ctypes.data for a in (*inputs, *self.outputs)], np.uint64)
            for inputs in self.copies
        ]

    def call(
        self, function: Any, pointers: NDArray[np.uint64], dims: NDArray[np.int64] | None = None
    ) -> None:
        sizes = self.dims if dims is None else dims
        function(self.pool.ctypes.data, pointers.ctypes.data, None, sizes.ctypes.data)

    def times(self) -> list[Time]:
        """A Time for each candidate; those of other bits take no part in the race."""
        exact = self.check()
        seconds = iter(
            self.time([f for f, fits in zip(self.functions, exact, strict=True) if fits])
        )
        other = Time(float("inf"), False, "it gives other bits than the shipped schedule")
        return [next(seconds) if fits else other for fits in exact]

    def check(self) -> list[bool]:
        """Whether each candidate gives the bits of the first."""
        found: list[list[bytes]] = []
        self.team.begin()
        for function in self.functions:
            bits = []
            for dims in (self.dims, self.odd):
                for out in self.outputs:
                    out[:] = 0
                self.call(function, self.ring[0], dims)
                bits += [out[:-_SLACK].tobytes() for out in self.outputs]
            found.append(bits)
        self.team.end()
        return [one == found[0] for one in found]

    def time(self, functions: Sequence[Any]) -> list[Time]:
        """Median over rounds of the fastest quarter of a round's calls."""
        rounds: list[list[float]] = [[] for _ in functions]
        self.team.begin()
        for _ in range(_ROUNDS):
            for function, seconds in zip(functions, rounds, strict=True):
                seconds.append(float(np.percentile(self._round(function), 25)))
        self.team.end()
        return [_time(r) for r in rounds]

    def _round(self, function: Any) -> list[float]:
        seconds: list[float] = []
        while sum(seconds) < _ROUND_SECONDS or len(seconds) < 3:
            pointers = self.ring[len(seconds) % len(self.ring)]
            start = time.perf_counter()
            self.call(function, pointers)
            seconds.append(time.perf_counter() - start)
        return seconds


def _time(rounds: list[float]) -> Time:
    low, middle, high = (float(q) for q in np.percentile(rounds, (25, 50, 75)))
    return Time(middle, True, spread=(high - low) / max(middle, 1e-12))


def _close(handle: ctypes.CDLL) -> None:
    """Unload the library: candidates by the hundred would otherwise stay in memory."""
    if sys.platform == "win32":
        close = ctypes.WinDLL("kernel32").FreeLibrary
    else:
        close = ctypes.CDLL(None).dlclose
    close.argtypes = [ctypes.c_void_p]
    close(handle._handle)


def _elements(buffer: Buffer, sizes: dict[str, int]) -> int:
    total = 1
    for dim in buffer.shape:
        values: dict[Var, Expr] = {v: wrap(sizes[v.name]) for v in free_vars(dim)}
        total *= int(const_value(simplify(substitute(dim, values))) or 0)
    return total


def _drawn(buffer: Buffer, sizes: dict[str, int], draw: np.random.Generator) -> NDArray[np.uint8]:
    """Random contents: floats of unit scale, integers of any bits."""
    count = _elements(buffer, sizes)
    if buffer.dtype.is_float:
        values = draw.standard_normal(count, np.float32).astype(buffer.dtype.numpy)
    else:
        values = np.frombuffer(draw.bytes(count * buffer.dtype.bytes), buffer.dtype.numpy)
        if buffer.dtype.bits == 32 and buffer.dtype.kind == "int":
            values = values >> 1 & 0x3FFF3FFF  # pairs of 16 bits whose sums stay exact
    return np.concatenate([values.view(np.uint8), np.zeros(_SLACK, np.uint8)])


def _room(buffer: Buffer, sizes: dict[str, int]) -> NDArray[np.uint8]:
    return np.zeros(_elements(buffer, sizes) * buffer.dtype.bytes + _SLACK, np.uint8)
