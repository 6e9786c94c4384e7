"""`sterna tune`: measure schedules of a model's kernels on this machine, for `compile` to use."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sterna.base.cache import write_atomic
from sterna.base.errors import UsageError
from sterna.base.target import Target, parse_target
from sterna.cli.arguments import Subparsers, add_verb, number
from sterna.cli.compile import add_settings, model_folder, settings_of
from sterna.cli.progress import shown
from sterna.cli.say import harmless, note

if TYPE_CHECKING:
    from sterna.jit import Report
    from sterna.tune.database import Database
    from sterna.tune.ray_workers import RayWorkers
    from sterna.tune.session import Budget, Progress
    from sterna.tune.workers import Workers

_TRIALS = 64
_EXAMPLE = """\
  sterna tune ./dist/M --trials 32
  sterna tune ./dist/M --minutes 20 --report tuned.html
  sterna tune ./dist/M --activations i8
  sterna tune --export plans.json
  sterna tune --import plans.json"""


def add(verbs: Subparsers) -> None:
    parser = add_verb(
        verbs,
        "tune",
        "find faster schedules for a model's kernels on this machine",
        "Measure how each kernel of a converted model can be scheduled, and keep the times; "
        "`sterna compile`, chat and serve use the best from then on. Results do not change by a "
        "bit. Ctrl-C keeps what was measured, and the same command goes on from there.",
        _EXAMPLE,
    )
    parser.add_argument("model", metavar="MODEL", nargs="?", help="a converted model folder")
    parser.add_argument("--target", default="cpu", help="one that runs here (default: cpu)")
    add_settings(parser)
    limits = parser.add_mutually_exclusive_group()
    limits.add_argument(
        "--trials",
        type=number(int),
        metavar="N",
        help=f"plans measured for each kernel, earlier ones counted (default: {_TRIALS})",
    )
    limits.add_argument("--minutes", type=number(float), metavar="M", help="stop after so long")
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="measure on all machines of a Ray cluster that are like this one, such as `auto`",
    )
    parser.add_argument("--database", metavar="FILE", help="where plans lie (default: the cache)")
    parser.add_argument("--import", dest="load", metavar="FILE", help="first take plans from FILE")
    parser.add_argument("--export", metavar="FILE", help="write the best plans as JSON at the end")
    parser.add_argument("--report", metavar="FILE", help="write a page on every kernel (HTML)")
    parser.add_argument(
        "--table",
        metavar="FILE",
        help="write a schedule table with the knobs that are best for all kernels together",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    target = parse_target(args.target)
    if args.model is None and not (args.load or args.export):
        raise UsageError("no model is named; give a converted model's folder")
    limits = args.trials is not None or args.minutes is not None
    shape = args.activations or args.kv_dtype or args.overrides
    if args.model is None and (args.report or args.table or limits or shape):
        raise UsageError(
            "--report, --table, --trials, --minutes, --activations, --kv-dtype and --overrides "
            "need a model; give its folder"
        )
    from sterna.tune.database import Database, here

    database = Database(Path(args.database).expanduser() if args.database else None)
    where = here(target)
    if args.load:
        count = database.load(where, Path(args.load).expanduser())
        note(f"took {count} plans from {args.load}")
    code = 0 if args.model is None else _tune(args, target, database)
    if args.export:
        note(f"wrote {database.export(where, Path(args.export).expanduser())} plans")
    return code


def _tune(args: argparse.Namespace, target: Target, database: Database) -> int:
    from sterna.base.artifact import CompileOptions
    from sterna.tune.database import here
    from sterna.tune.session import kernels_of, tune

    folder, budget = model_folder(args.model), _budget(args)
    kernels = kernels_of(folder, target, CompileOptions(**settings_of(args)))
    foreign = database.foreign(here(target))
    if foreign:
        note(f"{foreign} tuned plans of another Sterna are ignored")
    interrupted = False
    try:
        with shown() as report, _workers(args.ray, target) as workers:
            report("tune", f"{len(kernels)} kernels of {folder.name} for {target.spec}", 0, 0)
            tune(kernels, target, database, budget, workers, report=_reporter(report))
            if args.table:
                _write_table(Path(args.table).expanduser(), kernels, target, database, workers)
    except KeyboardInterrupt:
        interrupted = True
    _summary(kernels)
    if args.report:
        _write_report(Path(args.report).expanduser(), folder, target, kernels)
    if interrupted:
        note(f"stopped; what was measured is kept in {database.path}, run it again to go on")
    return 130 if interrupted else 0


def _workers(address: str | None, target: Target) -> Workers | RayWorkers:
    """Processes of this machine, or of all that are like it in a cluster."""
    if address is None:
        from sterna.tune.workers import Workers

        return Workers()
    from sterna.tune.ray_workers import RayWorkers

    workers = RayWorkers(address, target)
    note(f"{workers.machines} machines of the cluster measure")
    for device in workers.left_out:
        note(f"{harmless(device)} is not like this machine and takes no part")
    return workers


def _budget(args: argparse.Namespace) -> Budget:
    from sterna.tune.session import Budget

    if args.minutes is not None:
        if not 0 < args.minutes < float("inf"):
            raise UsageError(f"--minutes is {args.minutes}, possible is more than 0")
        return Budget(trials=None, minutes=args.minutes)
    trials = _TRIALS if args.trials is None else args.trials
    if trials < 1:
        raise UsageError(f"--trials is {trials}, possible is 1 or more")
    return Budget(trials=trials)


def _reporter(report: Report) -> Callable[[Progress, float, float], None]:
    """A bar with the kernel at hand and what was won for it."""
    from sterna.inspection.document import duration

    def told(kernel: Progress, done: float, total: float) -> None:
        gain = kernel.before / kernel.after
        detail = f"{kernel.op}: {duration(kernel.after)}, {gain:.2f} times as fast as shipped"
        report("tune", detail, round(1000 * done / total), 1000)

    return told


def _summary(kernels: list[Progress]) -> None:
    """The steps before and after on stdout; a word on a machine whose times scatter."""
    from sterna.inspection.document import duration
    from sterna.tune.session import NOISY, step_seconds

    measured = [k for k in kernels if k.shipped in k.times]
    after = step_seconds(measured, after=True)
    for entry, before in step_seconds(measured).items():
        print(
            f"{entry}: the kernels of a step took {duration(before)}, take "
            f"{duration(after[entry])} ({before / after[entry]:.2f} times as fast)"
        )
    better = sum(k.best != k.shipped for k in measured)
    trials, refused = sum(len(k.times) for k in measured), sum(k.refused for k in measured)
    print(f"{better} of {len(kernels)} kernels have a better plan, {trials} plans were measured")
    if len(measured) < len(kernels):
        note(f"{len(kernels) - len(measured)} kernels were not reached, and no step counts them")
    if refused:
        note(f"{refused} plans were refused: they could not be built, or gave other bits")
    noisy = sum(k.noise > NOISY for k in measured)
    if 2 * noisy > len(measured):
        note(
            f"times scattered by more than {NOISY:.0%} in {noisy} of {len(measured)} kernels: "
            "something else runs on this machine, so small gains may be none"
        )


def _write_table(
    path: Path,
    kernels: list[Progress],
    target: Target,
    database: Database,
    workers: Workers | RayWorkers,
) -> None:
    from sterna.tune.session import measure_also
    from sterna.tune.table import tuned_row, write_table

    changes = tuned_row(
        kernels, target, lambda k, plans: measure_also(k, plans, target, database, workers)
    )
    write_table(path, target, changes)
    for c in changes:
        knobs = ", ".join(f"{n} {c.before[n]} to {v}" for n, v in c.after.items()
                          if v != c.before[n])  # fmt: skip
        note(f"{c.rule}: {knobs}; {c.gain:.2f} times as fast over {c.kernels} kernels")
    note(f"wrote {path}" if changes else f"wrote {path}: no knobs are better than the shipped ones")


def _write_report(path: Path, folder: Path, target: Target, kernels: list[Progress]) -> None:
    from sterna.inspection.page import to_page
    from sterna.inspection.peaks import measure_peaks
    from sterna.tune.device_peaks import device_peaks
    from sterna.tune.report import tuning_report

    title = harmless(f"{folder.name} tuned for {target.spec}")
    peaks = device_peaks(target) if target.group_threads else measure_peaks()
    write_atomic(path, to_page(tuning_report(title, kernels, peaks)).encode())
    note(f"wrote {path}")
