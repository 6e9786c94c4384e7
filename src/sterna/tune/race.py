"""A race of candidates: each checked against the first, then timed in turns.

In: something that runs candidates. Out: seconds for each, or why it has none. Candidates take
turns, round by round, so that what else runs on the machine meets them all alike; a time is the
median over rounds. Every candidate must give the bits of the first one, which is the schedule that
ships: schedules never change what a kernel means. Knows no device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sterna.base.target import Target
from sterna.ir.compute import Group
from sterna.ir.rewrite import free_vars
from sterna.tune.arguments import elements

ROUND_SECONDS = 0.02  # of one candidate in one round, at least
_ROUNDS = 5
_RING_BYTES = 128 << 20  # of arguments that take turns, more than caches hold
_MOST_COPIES = 64


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
    sizes: Mapping[str, int]

    @property
    def odd(self) -> Mapping[str, int]:
        """Sizes that fill no tile: what is left over must come out right as well."""
        return {name: size - size // 3 for name, size in self.sizes.items()}


class Runner(Protocol):
    """Runs candidates by their numbers, over arguments it has drawn."""

    def bits(self, candidate: int) -> bytes:
        """All outputs, at the sizes of the setup and at odd ones."""
        ...

    def round(self, candidate: int) -> float:
        """Seconds of a call: a low quantile over calls of ROUND_SECONDS in all."""
        ...


def race(runner: Runner, candidates: Sequence[int]) -> dict[int, Time]:
    """A Time for each candidate; those of other bits than the first's are not timed."""
    wanted = runner.bits(candidates[0])
    exact = [c for c in candidates if c == candidates[0] or runner.bits(c) == wanted]
    rounds: dict[int, list[float]] = {c: [] for c in exact}
    for _ in range(_ROUNDS):
        for candidate, seconds in rounds.items():
            seconds.append(runner.round(candidate))
    other = Time(float("inf"), False, "it gives other bits than the shipped schedule")
    return {c: _time(rounds[c]) if c in rounds else other for c in candidates}


def _time(rounds: list[float]) -> Time:
    low, middle, high = (float(q) for q in np.percentile(rounds, (25, 50, 75)))
    return Time(middle, True, spread=(high - low) / max(middle, 1e-12))


def weights(group: Group) -> set[int]:
    """Inputs whose size no step changes. A step comes to each once and finds it in memory."""
    return {i for i, b in enumerate(group.inputs) if not any(free_vars(d) for d in b.shape)}


def copies(group: Group, sizes: Mapping[str, int]) -> int:
    """How many copies of the weights take turns, so that no cache holds those of a call."""
    size = sum(elements(b, sizes) * b.dtype.bytes for i, b in enumerate(group.inputs)
               if i in weights(group))  # fmt: skip
    return min(_MOST_COPIES, _RING_BYTES // size + 1) if size else 1
