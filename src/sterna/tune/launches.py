"""Candidates as launches of work groups: kernels of a device with a queue of its own.

In: built libraries and a kernel's Group. Out: a Runner. The device's memory holds every argument;
weights are there several times and take turns. Launches are queued by the dozen and waited for
once, so that a time is the kernel's and not the queue's. Knows no driver.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sterna.base.artifact import Kernel
from sterna.base.sizes import evaluate
from sterna.ir.compute import Group
from sterna.runtime.bundle import Bundle, read_bundle
from sterna.runtime.devices import open_device
from sterna.runtime.work_groups import Handle, numbered
from sterna.tune.arguments import SLACK, drawn, elements, room
from sterna.tune.build import Candidates
from sterna.tune.race import ROUND_SECONDS, Setup, copies, weights

_TRIES = 3  # waits of a round
_MOST_LAUNCHES = 1024  # queued together

Launches = list[tuple[Handle, str, tuple[str, ...]]]  # with the groups, and the names of the dims


class LaunchRunner:
    """A Runner. It may be used once, as a context; the device is closed at its end."""

    def __init__(
        self, built: Sequence[Candidates], group: Group, setup: Setup, folder: Path
    ) -> None:
        self.group, self.setup = group, setup
        self.device = open_device(setup.target.kind)
        try:
            draw = np.random.default_rng(0)
            given = drawn(group, setup.sizes, draw)
            inputs = [self._placed(data) for data in given]
            self.outputs = [self._placed(room(b, setup.sizes)) for b in group.outputs]
            fixed = weights(group)
            self.ring = [inputs] + [
                [self._placed(given[i]) if i in fixed else a for i, a in enumerate(inputs)]
                for _ in range(copies(group, setup.sizes))
            ]
            self.launches: dict[int, list[Launches]] = {}  # by candidate, for each of the ring
            for number, candidates in enumerate(built):
                path = folder / f"{number}{setup.target.suffix}"
                path.write_bytes(candidates.library)
                self._prepare(read_bundle(path), candidates)
        except BaseException:
            self.device.close()
            raise

    def __enter__(self) -> LaunchRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.device.close()

    def _placed(self, data: np.ndarray[Any, Any]) -> Handle:
        buffer = self.device.allocate(data.nbytes)
        self.device.write(buffer, data)
        return buffer

    def _prepare(self, bundle: Bundle, candidates: Candidates) -> None:
        """Launches of all candidates of a library over each of the ring's arguments."""
        kernels = {k.name: k for k in bundle.manifest.kernels}
        phases = [p for k in kernels.values() for p in k.phases]
        functions = self.device.compile(bundle.code, phases)
        for number, entry in candidates.entries.items():
            (step,) = entry.steps
            kernel = kernels[step.kernel]  # type: ignore[union-attr]
            each = bundle.manifest.part_bytes
            self.launches[number] = [
                self._calls(kernel, functions, [*inputs, *self.outputs], each)
                for inputs in self.ring
            ]

    def _calls(
        self, kernel: Kernel, functions: Mapping[str, Handle], places: list[Handle], each: int
    ) -> Launches:
        calls = []
        for phase in kernel.phases:
            buffers = [
                places[i] if part is None else self._part(places[i], i, part, each)
                for i, part in numbered(phase.buffers)
            ]
            launch = self.device.prepare(functions[phase.symbol], phase, buffers, kernel.dims)
            calls.append((launch, phase.groups, kernel.dims))
        return calls

    def _part(self, whole: Handle, position: int, part: int, each: int) -> Handle:
        """Part of a weight that is bound in parts."""
        buffer = self.group.inputs[position]
        size = elements(buffer, self.setup.sizes) * buffer.dtype.bytes
        return self.device.view(whole, part * each, min(each, size - part * each))

    def _sized(self, candidate: int, at: int, sizes: Mapping[str, int]) -> list[Any]:
        """What the device runs, of the arguments of one turn."""
        turns = self.launches[candidate]
        return [
            (launch, evaluate(groups, sizes), [sizes[d] for d in dims])
            for launch, groups, dims in turns[at % len(turns)]
        ]

    def bits(self, candidate: int) -> bytes:
        found = []
        for sizes in (self.setup.sizes, self.setup.odd):
            rooms = [room(b, self.setup.sizes) for b in self.group.outputs]
            for buffer, zeros in zip(self.outputs, rooms, strict=True):
                self.device.write(buffer, zeros)
            self.device.run(self._sized(candidate, 0, sizes))
            for buffer, out in zip(self.outputs, rooms, strict=True):
                self.device.read(buffer, out)
                found.append(out[:-SLACK].tobytes())
        return b"".join(found)

    def round(self, candidate: int) -> float:
        count = 1
        while self._timed(candidate, count) < ROUND_SECONDS / _TRIES and count < _MOST_LAUNCHES:
            count *= 2
        return float(np.percentile([self._timed(candidate, count) for _ in range(_TRIES)], 25)) / (
            count
        )

    def _timed(self, candidate: int, count: int) -> float:
        """Seconds until `count` calls have ended."""
        calls = [c for at in range(count) for c in self._sized(candidate, at, self.setup.sizes)]
        last = np.empty(4, np.uint8)
        start = time.perf_counter()
        self.device.run(calls)
        self.device.read(self.outputs[0], last)
        return time.perf_counter() - start
