"""Tuning a model: its kernels one after another, the ones that take most of a step first.

In: a model folder, a target, a budget. Out: rows in the database, and a summary of each kernel.
What the database has already is not measured again, so a session goes on where one was
interrupted. Knows no command line.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sterna.base.artifact import CompileOptions
from sterna.base.errors import Unavailable, UsageError
from sterna.base.target import Target, host_target, is_of_host
from sterna.checkpoint.model_folder import open_model
from sterna.compiler import Source, compile_source
from sterna.inspection.costs import launches, typical_dims
from sterna.ir.compute import Group
from sterna.ir.equal import digest
from sterna.ir.expr import Load
from sterna.ir.rewrite import free_vars, loads, visit
from sterna.runtime import host
from sterna.runtime.devices import parse_device
from sterna.schedule.choose import Plan, plan_of
from sterna.tune.database import Database, Row, here
from sterna.tune.propose import propose
from sterna.tune.race import Time
from sterna.tune.space import can_tune

_BATCH = 8  # candidates measured together on one machine
_MOST_ROWS = 128  # of a prefill kernel when it is measured
_FINALS = 3  # at most so often the best are measured again, side by side with the shipped plan
_FINALISTS = 4
NOISY = 0.1  # a spread of the shipped plan's rounds that makes small gains doubtful


@dataclass(frozen=True, slots=True)
class Budget:
    """When to stop: trials of each kernel, or minutes in all; None for no such limit."""

    trials: int | None = 64
    minutes: float | None = None


@dataclass(slots=True)
class Progress:
    """One kernel so far. `launches` of it make up a step of each entry point that uses it."""

    op: str
    kernel: str  # digest of the Group
    group: Group
    shipped: Plan
    launches: dict[str, int]
    sizes: dict[str, int]
    times: dict[Plan, float] = field(default_factory=dict)  # infinite for what is refused
    noise: float = 0.0  # the largest spread of the shipped plan's rounds

    @property
    def before(self) -> float:
        return self.times.get(self.shipped, float("inf"))

    @property
    def best(self) -> Plan:
        return min(self.times, key=self.times.__getitem__, default=self.shipped)

    @property
    def after(self) -> float:
        return self.times.get(self.best, float("inf"))

    @property
    def refused(self) -> int:
        """Candidates that could not be built or gave other bits."""
        return sum(t == float("inf") for t in self.times.values())


class Measurer(Protocol):
    """Who builds and times candidates: processes of this machine, or of several alike."""

    @property
    def machines(self) -> int: ...

    def measure(
        self, group: Group, plans: Sequence[Plan], target: Target, sizes: Mapping[str, int]
    ) -> list[Time]:
        """A Time for each plan; the first is the one whose bits the others must give."""
        ...


Report = Callable[[Progress, float, float], None]  # kernel, share of the budget done, and in all


def kernels_of(
    folder: Path, target: Target, options: CompileOptions | None = None
) -> list[Progress]:
    """Kernels of a model that can be tuned here; UsageError for a target that is not measured."""
    check_measurable(target)
    return tunable(
        compile_source(open_model(folder, weights=False), target, options or CompileOptions()),
        target,
    )


def check_measurable(target: Target) -> None:
    """Raise where this machine cannot time kernels of a target."""
    if target.group_threads:
        parse_device(target.kind)  # Unavailable says what is missing
        return
    if target.carried:
        raise UsageError(
            f"{target.spec} carries programs for several machines; tune for one of them, such as "
            f"{target.carried[-1]}"
        )
    if not is_of_host(target):
        raise UsageError(
            f"kernels of {target.spec} cannot be measured on this machine, which runs "
            f"{host_target().spec}; tune there, and bring the plans with --export and --import"
        )
    found = host.cpu_features()
    missing = [f for f in target.features if found is not None and f not in found]
    if missing:
        raise Unavailable(
            f"kernels of {target.spec} cannot be measured: this CPU lacks {', '.join(missing)}"
        )


def tune(
    kernels: list[Progress],
    target: Target,
    database: Database,
    budget: Budget,
    measurer: Measurer,
    *,
    seed: int = 0,
    report: Report | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Measure candidates for each kernel, keep every time in the database and in `kernels`.

    An interrupt passes through; what was measured until then is kept. `clock` tells seconds.
    """
    draw = random.Random(seed)
    session = _Session(kernels, target, database, budget, measurer, report, draw, clock)
    session.recall()
    session.baseline()
    session.search()


def measure_also(
    kernel: Progress, plans: Sequence[Plan], target: Target, database: Database, measurer: Measurer
) -> None:
    """Measure plans of a kernel that have no time yet, whatever the budget."""
    session = _Session([kernel], target, database, Budget(), measurer, None, random.Random(0))
    missing = [p for p in plans if p not in kernel.times]
    for start in range(0, len(missing), _BATCH):
        session.try_out(kernel, missing[start : start + _BATCH])


@dataclass(slots=True)
class _Session:
    kernels: list[Progress]
    target: Target
    database: Database
    budget: Budget
    measurer: Measurer
    report: Report | None
    draw: random.Random
    clock: Callable[[], float] = time.monotonic
    begun: float = field(init=False)
    finished: int = 0

    def __post_init__(self) -> None:
        self.begun = self.clock()

    def recall(self) -> None:
        for kernel in self.kernels:
            for row in self.database.rows(here(self.target), kernel.kernel):
                kernel.times[row.plan] = row.seconds if row.exact else float("inf")

    def baseline(self) -> None:
        """The shipped plan of every kernel; then the kernels by their share of a step."""
        for kernel in self.kernels:
            left = self.left()
            if left is not None and left <= 0:
                break
            if kernel.shipped not in kernel.times:
                self.try_out(kernel, [])
        weights = step_shares(self.kernels)
        self.kernels.sort(key=lambda k: (-weights[k.kernel], k.op, k.kernel))

    def search(self) -> None:
        weights = step_shares(self.kernels)
        for i, kernel in enumerate(self.kernels):
            rest = sum(weights[k.kernel] for k in self.kernels[i:]) or 1.0
            left = self.left()
            end = None if left is None else self.clock() + left * weights[kernel.kernel] / rest
            known = len(kernel.times)
            self.search_one(kernel, end)
            if len(kernel.times) > known:
                self.confirm(kernel)
            self.finished += 1
            self.tell(kernel)

    def search_one(self, kernel: Progress, end: float | None) -> None:
        most = self.budget.trials
        while most is None or len(kernel.times) < most:
            if end is not None and self.clock() >= end:
                return
            batch = _BATCH * self.measurer.machines
            count = batch if most is None else min(batch, most - len(kernel.times))
            plans = propose(kernel.shipped, kernel.times, count, self.draw)
            if not plans:
                return
            self.try_out(kernel, plans)

    def confirm(self, kernel: Progress) -> None:
        """The best of many noisy times is a lucky one: race the best again, and believe that."""
        sure = {kernel.shipped}
        for _ in range(_FINALS):
            if kernel.best in sure:
                return
            ranked = sorted(kernel.times, key=kernel.times.__getitem__)
            last = [p for p in ranked if p not in sure and kernel.times[p] < float("inf")]
            self.try_out(kernel, last[:_FINALISTS])
            sure.update(last[:_FINALISTS])

    def try_out(self, kernel: Progress, plans: list[Plan]) -> None:
        """Measure plans beside the shipped one; times of batches compare by the shipped plan's."""
        shipped, *others = self.measurer.measure(
            kernel.group, [kernel.shipped, *plans], self.target, kernel.sizes
        )
        kernel.noise = max(kernel.noise, shipped.spread)
        rows = []
        if kernel.shipped not in kernel.times:
            rows.append(_row(kernel, kernel.shipped, shipped, 1.0))
        scale = kernel.times.get(kernel.shipped, shipped.seconds) / shipped.seconds
        rows += [_row(kernel, p, t, scale) for p, t in zip(plans, others, strict=True)]
        self.database.add(here(self.target), rows)
        kernel.times.update((row.plan, row.seconds) for row in rows)
        self.tell(kernel)

    def left(self) -> float | None:
        """Seconds of the budget that are left."""
        minutes = self.budget.minutes
        return None if minutes is None else self.begun + 60 * minutes - self.clock()

    def tell(self, kernel: Progress) -> None:
        if self.report is None:
            return
        left, minutes, trials = self.left(), self.budget.minutes, self.budget.trials
        if left is not None and minutes is not None:
            self.report(kernel, min(60 * minutes, 60 * minutes - left), 60 * minutes)
        elif trials is not None:
            done = sum(min(trials, len(k.times)) for k in self.kernels[self.finished :])
            self.report(kernel, self.finished * trials + done, len(self.kernels) * trials)


def _row(kernel: Progress, plan: Plan, time: Time, scale: float) -> Row:
    return Row(kernel.kernel, kernel.op, plan, time.seconds * scale, time.exact)


def step_seconds(kernels: list[Progress], *, after: bool = False) -> dict[str, float]:
    """Seconds of the measured kernels in one step of each entry point."""
    steps: dict[str, float] = {}
    for kernel in kernels:
        took = kernel.after if after else kernel.before
        for entry, count in kernel.launches.items():
            steps[entry] = steps.get(entry, 0.0) + count * took
    return steps


def step_shares(kernels: list[Progress]) -> dict[str, float]:
    """Each kernel's largest share of any entry point's step, by its digest."""
    timed = [k for k in kernels if k.shipped in k.times]
    steps = step_seconds(timed)
    shares = {k.kernel: [n * k.before / steps[e] for e, n in k.launches.items()] for k in timed}
    return {k.kernel: max(shares.get(k.kernel, ()), default=0.0) for k in kernels}


def tunable(source: Source, target: Target) -> list[Progress]:
    """Kernels whose rules have knobs; one that several entry points launch is there once."""
    found: dict[str, Progress] = {}
    for point in source.entries:
        counts = launches(point.entry)
        most = {d.name: min(d.hi, _MOST_ROWS) for d in point.entry.dims}
        dims = typical_dims(point.entry, source.manifest, 0)
        dims = {name: min(size, most.get(name, size)) for name, size in dims.items()}
        for title, group in point.scheduled.items():
            shipped, identity = plan_of(group, target), digest(group)
            if not can_tune(shipped) or _reads_by_data(group):
                continue
            op = source.table.kernels[title].op
            kernel = found.setdefault(identity, Progress(op, identity, group, shipped, {}, {}))
            before = kernel.launches.get(point.entry.name, 0)
            kernel.launches[point.entry.name] = before + counts.get(title, 0)
            for name in _dims(group):
                kernel.sizes[name] = max(kernel.sizes.get(name, 1), dims[name])
    return list(found.values())


def _dims(group: Group) -> set[str]:
    shapes = (d for b in (*group.inputs, *group.outputs) for d in b.shape)
    return {v.name for d in shapes for v in free_vars(d)}


def _reads_by_data(group: Group) -> bool:
    """Whether an input says where another is read: random inputs would lead anywhere."""
    places = (i for c in group.computes for v in c.values for load in loads(v) for i in load.index)
    return any(isinstance(n, Load) for i in places for n in visit(i))
