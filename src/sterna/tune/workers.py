"""Processes apart that build candidates and race them: what crashes there, crashes alone.

In: a Group and plans. Out: a Time for each. Candidates are built by several processes at once and
raced by another while those wait, so that nothing of ours disturbs a measurement. One that stops
its process, or takes far too long, is found by racing each alone, and refused.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

from sterna.base.errors import CompileError, Error, UsageError
from sterna.base.target import Target
from sterna.ir.compute import Group
from sterna.runtime import host
from sterna.schedule.choose import Plan
from sterna.tune.build import Candidates, build
from sterna.tune.functions import FunctionRunner
from sterna.tune.launches import LaunchRunner
from sterna.tune.race import Setup, Time, race

_BUILD_SECONDS = 600.0  # as long as this at most, even on a machine that is busy
_RACE_SECONDS = 120.0
_GRACE_SECONDS = 0.2  # in which a process that was told to go ends by itself


class WorkerLost(Error):
    """A worker process ended, or was ended, in the middle of its work."""


class Workers:
    """Builders, one for each processor, and a racer; processes begin with their first work."""

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or host.usable_cores()
        self._builders = [_Worker() for _ in range(self.threads)]
        self._racer = _Worker()
        self._folder = TemporaryDirectory()  # ours, so that a killed process leaves nothing

    @property
    def machines(self) -> int:
        return 1

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    def close(self) -> None:
        """End all processes, whatever they do. Safe to call twice."""
        for worker in (*self._builders, self._racer):
            worker.close()
        self._folder.cleanup()

    def measure(
        self, group: Group, plans: Sequence[Plan], target: Target, sizes: Mapping[str, int]
    ) -> list[Time]:
        """A Time for each plan; the first is the one whose bits the others must give.

        Raises UsageError where the first cannot be built or run.
        """
        setup = Setup(target, self.threads, dict(sizes))
        built = self._build(group, dict(enumerate(plans)), target)
        refused = {i: problem for part in built for i, problem in part.problems.items()}
        if 0 in refused:
            raise UsageError(f"the shipped schedule of {group.name} cannot be used: {refused[0]}")
        found = self._race(group, [part for part in built if part.entries], setup)
        found |= {i: Time(float("inf"), False, problem) for i, problem in refused.items()}
        return [found[i] for i in range(len(plans))]

    def _build(self, group: Group, plans: Mapping[int, Plan], target: Target) -> list[Candidates]:
        """All plans, a share in each builder; those of a share that fails one by one."""
        count = min(len(self._builders), len(plans))
        shares = [dict(list(plans.items())[i::count]) for i in range(count)]
        for builder, share in zip(self._builders, shares, strict=False):
            builder.begin(_try_build, group, share, target)
        built: list[Candidates] = []
        for builder, share in zip(self._builders, shares, strict=False):
            try:
                part = builder.result(_BUILD_SECONDS)
            except WorkerLost as lost:
                part = str(lost)
            if isinstance(part, Candidates):
                built.append(part)
            elif len(share) == 1:
                built.append(Candidates(b"", {}, dict.fromkeys(share, part)))
            else:
                alone = ({number: plan} for number, plan in share.items())
                built += [c for plan in alone for c in self._build(group, plan, target)]
        return built

    def _race(self, group: Group, built: Sequence[Candidates], setup: Setup) -> dict[int, Time]:
        """A Time for each that was built; where the process is lost, each alone with the first."""
        numbers = sorted(number for part in built for number in part.entries)
        try:
            return self._race_some(group, built, setup, numbers)
        except WorkerLost:
            found: dict[int, Time] = {}
        for number in numbers:
            try:
                found |= self._race_some(group, built, setup, sorted({0, number}))
            except WorkerLost as lost:
                if number == 0:
                    raise UsageError(
                        f"the shipped schedule of {group.name} cannot be used: {lost}"
                    ) from None
                found[number] = Time(float("inf"), False, str(lost))
        return found

    def _race_some(
        self, group: Group, built: Sequence[Candidates], setup: Setup, numbers: Sequence[int]
    ) -> dict[int, Time]:
        self._racer.begin(_race_here, group, built, setup, numbers, self._folder.name)
        times: dict[int, Time] = self._racer.result(_RACE_SECONDS)
        return times


class _Worker:
    """One process, which does what it is told and is begun anew after it was lost."""

    def __init__(self) -> None:
        self._process: BaseProcess | None = None

    def begin(self, work: Callable[..., Any], *args: object) -> None:
        if self._process is None:
            spawning = get_context("spawn")  # not fork: threads of ours may hold locks
            self._pipe, theirs = spawning.Pipe()
            self._process = spawning.Process(target=_serve, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()
        self._pipe.send((work, args))

    def result(self, seconds: float) -> Any:
        """What the work returned; WorkerLost where it did not."""
        try:
            if not self._pipe.poll(seconds):
                self.close()
                raise WorkerLost(f"it did not end in {seconds:.0f} seconds")
            answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            raise WorkerLost(f"it stopped its process ({self.close()})") from None
        if isinstance(answer, _Raised):
            raise WorkerLost(answer.told)
        return answer

    def close(self) -> str:
        """End the process; how it ended, if it did by itself."""
        process, self._process = self._process, None
        if process is None:
            return ""
        self._pipe.close()
        process.join(_GRACE_SECONDS)
        process.kill()
        process.join()
        code = process.exitcode or 0
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"


@dataclass(frozen=True, slots=True)
class _Raised:
    """An exception of a worker: its words, for not every exception can be sent."""

    told: str


def _serve(pipe: Connection) -> None:
    """The life of a worker process: work in, answer out, until nobody is there."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to us as well
    while True:
        try:
            work, args = pipe.recv()
        except EOFError:
            return
        try:
            answer = work(*args)
        except Exception as error:
            answer = _Raised(f"{type(error).__name__}: {error}")
        pipe.send(answer)


def _try_build(group: Group, plans: Mapping[int, Plan], target: Target) -> Candidates | str:
    """See `build`; the compiler's words where it fails."""
    try:
        return build(group, plans, target)
    except CompileError as error:
        return str(error)


def _race_here(
    group: Group,
    built: Sequence[Candidates],
    setup: Setup,
    numbers: Sequence[int],
    where: str,
) -> dict[int, Time]:
    runner_of = LaunchRunner if setup.target.group_threads else FunctionRunner
    with (
        TemporaryDirectory(dir=where) as folder,
        runner_of(built, group, setup, Path(folder)) as runner,
    ):
        return race(runner, numbers)
