"""Candidates race in processes of their own: who crashes, hangs or differs is refused alone."""

import os
import time
from collections.abc import Sequence
from math import inf
from typing import Any

import pytest
from candidates import fits, unfit

from sterna.base.errors import CompileError, UsageError
from sterna.base.target import host_target
from sterna.tune import workers as processes
from sterna.tune.race import Time, race
from sterna.tune.session import Progress
from sterna.tune.space import everything
from sterna.tune.workers import WorkerLost, Workers, _Worker


class Lanes:
    """A Runner that needs no library: candidate c takes c + 1 seconds and gives bits[c]."""

    def __init__(self, *bits: bytes) -> None:
        self.given = bits
        self.turns: list[int] = []

    def bits(self, candidate: int) -> bytes:
        return self.given[candidate]

    def round(self, candidate: int) -> float:
        self.turns.append(candidate)
        return candidate + 1.0


class Here:
    """A worker of this process, so that a test may change what it does."""

    def begin(self, work: Any, *args: Any) -> None:
        self.answer = work(*args)

    def result(self, seconds: float) -> Any:
        return self.answer

    def close(self) -> str:
        return ""


def test_candidates_take_turns_and_other_bits_are_refused() -> None:
    runner = Lanes(b"same", b"other", b"same")
    times = race(runner, [0, 1, 2])
    assert (times[0].seconds, times[2].seconds) == (1.0, 3.0)
    assert not times[1].exact
    assert times[1].seconds == inf
    assert "other bits" in times[1].problem
    assert runner.turns[:4] == [0, 2, 0, 2]


def test_candidates_have_times(kernels: list[Progress]) -> None:
    kernel, wide = unfit(kernels)
    space = [p for p in everything(kernel.shipped) if p != kernel.shipped]
    other = next(p for p in space if fits(kernel, p))
    with Workers(2) as workers:
        first, second, third = workers.measure(
            kernel.group, [kernel.shipped, other, wide], host_target(), kernel.sizes
        )
        with pytest.raises(UsageError, match="cannot be used"):
            workers.measure(kernel.group, [wide], host_target(), kernel.sizes)
    assert first.exact
    assert second.exact
    assert 0 < first.seconds < 1
    assert 0 < second.seconds < 1
    assert not third.exact
    assert third.seconds == inf
    assert third.problem


def test_a_worker_that_is_lost_is_replaced() -> None:
    worker = _Worker()
    try:
        worker.begin(os.abort)
        with pytest.raises(WorkerLost, match="SIGABRT"):
            worker.result(60)
        worker.begin(time.sleep, 60)
        with pytest.raises(WorkerLost, match="did not end in 0 seconds"):
            worker.result(0.1)
        worker.begin(os.listdir, "/no such folder")
        with pytest.raises(WorkerLost, match="FileNotFoundError"):
            worker.result(60)
        worker.begin(max, 3, 5)
        assert worker.result(60) == 5
    finally:
        worker.close()


def crowd(monkeypatch: pytest.MonkeyPatch, poison: int) -> Workers:
    """Workers that are lost whenever the candidate `poison` runs, and compile nothing."""
    workers = Workers(1)

    def race_some(self, group, built, setup, numbers: Sequence[int]) -> dict[int, Time]:
        if poison in numbers:
            raise WorkerLost("it stopped its process (SIGSEGV)")
        return {n: Time(1.0 + n, True) for n in numbers}

    monkeypatch.setattr(Workers, "_race_some", race_some)
    workers._builders = [Here()]
    return workers


def test_who_takes_the_process_along_is_found(
    matvec: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = [p for p in everything(matvec.shipped) if fits(matvec, p)][:4]
    monkeypatch.setattr(processes, "build", without_library)
    with crowd(monkeypatch, poison=2) as workers:
        times = workers.measure(matvec.group, plans, host_target(), matvec.sizes)
    assert [t.exact for t in times] == [True, True, False, True]
    assert "SIGSEGV" in times[2].problem
    with crowd(monkeypatch, poison=0) as workers, pytest.raises(UsageError, match="SIGSEGV"):
        workers.measure(matvec.group, plans, host_target(), matvec.sizes)


def test_what_the_compiler_refuses_is_recorded_alone(
    matvec: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = [p for p in everything(matvec.shipped) if fits(matvec, p)][:4]

    def build(group, given, target):
        if 2 in given:
            raise CompileError("the compiler failed")
        return without_library(group, given, target)

    monkeypatch.setattr(processes, "build", build)
    with crowd(monkeypatch, poison=-1) as workers:
        times = workers.measure(matvec.group, plans, host_target(), matvec.sizes)
    assert [t.exact for t in times] == [True, True, False, True]
    assert times[2].problem == "the compiler failed"


def without_library(group, plans, target):
    """In place of `build`: every plan has an entry point, none is built."""
    return processes.Candidates(b"none", dict.fromkeys(plans), {})
