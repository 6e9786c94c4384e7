"""Tuning a model: its kernels one after another, the slowest with the most to win first.

In: a model folder, a target, a budget. Out: rows in the database, and a summary of each kernel.
What the database has already is not measured again, so a session goes on where one was
interrupted. Knows no command line.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sterna.base.artifact import Entry, Repeat
from sterna.base.target import Target
from sterna.checkpoint.model_folder import open_model
from sterna.compiler import CompileOptions, Source, compile_source
from sterna.ir.bounds import bounds
from sterna.ir.compute import Group
from sterna.ir.equal import digest
from sterna.ir.expr import Load
from sterna.ir.rewrite import free_vars, loads, visit
from sterna.runtime import host
from sterna.schedule.choose import Plan, plan_of
from sterna.tune.database import Database, Row, Where
from sterna.tune.measure import Setup, measure
from sterna.tune.propose import propose
from sterna.tune.space import can_tune

_BATCH = 8  # candidates built into one library
_MOST_ROWS = 128  # of a prefill kernel when it is measured


@dataclass(frozen=True, slots=True)
class Budget:
    """When to stop: trials of each kernel, or minutes in all; None for no such limit."""

    trials: int | None = 64
    minutes: float | None = None


@dataclass(slots=True)
class Progress:
    """One kernel so far. `launches` of it make up a step of the entry points that use it."""

    op: str
    kernel: str  # digest of the Group
    group: Group
    shipped: Plan
    launches: int
    sizes: dict[str, int]
    times: dict[Plan, float] = field(default_factory=dict)
    noise: float = 0.0  # how far two measurements of the shipped plan lay apart
    refused: int = 0  # candidates that could not be built or gave other bits

    @property
    def before(self) -> float:
        return self.times.get(self.shipped, float("inf"))

    @property
    def best(self) -> Plan:
        return min(self.times, key=self.times.__getitem__, default=self.shipped)

    @property
    def after(self) -> float:
        return self.times.get(self.best, float("inf"))


Report = Callable[[Progress, int, int], None]  # kernel, kernels done, kernels in all


def here(target: Target) -> Where:
    """What times of this machine are times of."""
    return Where(target.spec, f"{host.cpu_name()}, {host.usable_cores()} threads")


def tune(
    folder: Path,
    target: Target,
    database: Database,
    budget: Budget,
    *,
    options: CompileOptions | None = None,
    seed: int = 0,
    report: Report | None = None,
) -> list[Progress]:
    """Measure candidates for every kernel that rules schedule; the kernels with their times."""
    source = compile_source(open_model(folder, weights=False), target, options or CompileOptions())
    kernels = tunable(source, target)
    where = here(target)
    end = None if budget.minutes is None else time.monotonic() + 60 * budget.minutes
    draw = random.Random(seed)
    for done, kernel in enumerate(kernels):
        for row in database.rows(where, kernel.kernel):
            kernel.times[row.plan] = row.seconds if row.exact else float("inf")
        share = None if end is None else (end - time.monotonic()) / (len(kernels) - done)
        _tune_one(kernel, target, database, where, budget, share, draw)
        if report is not None:
            report(kernel, done + 1, len(kernels))
    return kernels


def tunable(source: Source, target: Target) -> list[Progress]:
    """Kernels with knobs, the ones launched most often first."""
    counts = _launches(source.manifest.entries)
    found = []
    for title, group in source.table.groups.items():
        shipped = plan_of(group, target)
        if can_tune(shipped) and not _reads_by_data(group):
            found.append(
                Progress(title, digest(group), group, shipped, counts.get(title, 0), _sizes(group))
            )
    return sorted(found, key=lambda k: (-k.launches, k.op))


def _reads_by_data(group: Group) -> bool:
    """Whether an input says where another is read: random inputs would lead anywhere."""
    places = (i for c in group.computes for load in loads(c.body) for i in load.index)
    return any(isinstance(n, Load) for i in places for n in visit(i))


def _tune_one(
    kernel: Progress,
    target: Target,
    database: Database,
    where: Where,
    budget: Budget,
    seconds: float | None,
    draw: random.Random,
) -> None:
    setup = Setup(target, host.usable_cores(), kernel.sizes)
    end = None if seconds is None else time.monotonic() + seconds
    while budget.trials is None or len(kernel.times) < budget.trials:
        if end is not None and time.monotonic() >= end:
            return
        count = _BATCH if budget.trials is None else min(_BATCH, budget.trials - len(kernel.times))
        plans = [
            p for p in propose(kernel.shipped, kernel.times, count, draw) if p != kernel.shipped
        ]
        if not plans and kernel.shipped in kernel.times:
            return
        found = measure(kernel.group, [kernel.shipped, *plans], setup)
        scale = _scale(kernel, found[0].seconds)
        rows = []
        for plan, one in zip([kernel.shipped, *plans], found, strict=True):
            took = one.seconds * scale
            if plan == kernel.shipped and plan in kernel.times:
                continue
            kernel.times[plan] = took if one.exact else float("inf")
            kernel.refused += not one.exact
            rows.append(Row(kernel.kernel, kernel.op, plan, kernel.times[plan], one.exact))
        database.add(where, rows)


def _scale(kernel: Progress, shipped: float) -> float:
    """What a batch's times are multiplied with, so that batches compare by the shipped plan."""
    first = kernel.times.get(kernel.shipped)
    if first is None:
        return 1.0
    kernel.noise = max(kernel.noise, abs(shipped / first - 1))
    return first / shipped


def _launches(entries: tuple[Entry, ...]) -> dict[str, int]:
    """How often a kernel is launched in one step of each entry point."""
    counts: dict[str, int] = {}
    for entry in entries:
        for step in entry.steps:
            times, body = (step.count, step.body) if isinstance(step, Repeat) else (1, (step,))
            for launch in body:
                counts[launch.kernel] = counts.get(launch.kernel, 0) + times
    return counts


def _sizes(group: Group) -> dict[str, int]:
    """The size of each dim when the kernel is measured: its bound, within reason."""
    sizes = {}
    for buffer in (*group.inputs, *group.outputs):
        for dim in buffer.shape:
            for var in free_vars(dim):
                most = bounds(var)[1]
                sizes[var.name] = _MOST_ROWS if most is None else max(1, min(int(most), _MOST_ROWS))
    few = {name: 1 for name, size in sizes.items() if size <= 2}  # decode is one row as a rule
    return sizes | few
