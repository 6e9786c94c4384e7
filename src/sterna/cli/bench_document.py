"""A benchmark as a document: tables for the terminal, and the same with plots as one page.

In: a BenchReport, and what changed against a baseline. Out: a Report as `sterna inspect` has them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import ceil, floor, isfinite, log10
from statistics import stdev

from sterna.cli.bench_report import BenchReport, Change, Metric, PhaseReport
from sterna.inspection import drawing
from sterna.inspection.document import (
    Chart,
    Line,
    Part,
    Report,
    Section,
    Table,
    decimal,
    duration,
    size,
)


def document(
    report: BenchReport, changes: Sequence[Change], tolerance: float, failures: Mapping[str, int]
) -> Report:
    """Everything that was found; charts appear on a page only."""
    sections = [Section("Measured", tuple(_measured(report)))]
    if report.phases:
        sections.append(Section("Against the machine", tuple(_phases(report.phases))))
        sections += [_kernels(phase) for phase in report.phases if phase.kernels]
    if failures:
        rows = tuple((why, str(count)) for why, count in failures.items())
        sections.append(Section("Failures", (Table(("answer", "requests"), rows),)))
    if changes:
        sections.append(Section("Against the baseline", (_changes(changes, tolerance),)))
    return Report(f"{report.subject}, Sterna {report.sterna}", tuple(sections))


def _measured(report: BenchReport) -> Iterator[Part]:
    settings = ", ".join(f"{name} {_told(value)}" for name, value in report.settings.items())
    yield Line(settings)
    if report.kind == "rates":
        yield _rates(report.metrics)
        yield Chart(_bars(report.metrics), "Tokens a second: the median, and every sample")
        return
    rows = tuple((m.name, _value(m)) for m in report.metrics if " p" not in m.name)
    yield Table(("", ""), rows)
    if report.quantiles:
        yield _latencies(report.quantiles)
        yield Chart(_curves(report.quantiles), "Share of all that took at most so long")


def _told(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _rates(metrics: Sequence[Metric]) -> Table:
    rows = tuple(
        (
            m.name,
            f"{m.value:.2f}",
            f"{stdev(m.samples):.2f}" if len(m.samples) > 1 else "-",
            str(len(m.samples)),
        )
        for m in metrics
    )
    return Table(("test", "tokens/s", "±", "samples"), rows)


def _latencies(quantiles: Mapping[str, Sequence[float]]) -> Table:
    shares = (50, 95, 99, 100)
    rows = tuple((name, *(duration(q[share]) for share in shares)) for name, q in quantiles.items())
    return Table(("time", "p50", "p95", "p99", "longest"), rows)


def _phases(phases: Sequence[PhaseReport]) -> Iterator[Part]:
    rows = tuple(
        (
            p.name,
            size(p.bytes),
            f"{decimal(p.flops)}FLOP",
            duration(p.seconds),
            f"{decimal(p.bytes_per_s)}B/s",
            f"{p.of_copy:.1%}",
            f"{decimal(p.flops_per_s)}FLOP/s",
            f"{p.of_peak:.1%}",
        )
        for p in phases
    )
    head = ("test", "moves", "computes", "in", "", "of copying", "", "of multiplying")
    yield Table(head, rows)
    yield Line(
        f"What the library's own formulas say of one decode step, of all answers that are written "
        f"at once, or of a whole prompt. Copying "
        f"and multiplying were measured just before, on all cores with numpy: "
        f"{decimal(phases[0].copy_bytes_per_s)}B/s and "
        f"{decimal(phases[0].peak_flops_per_s)}FLOP/s of float32."
    )


def _kernels(phase: PhaseReport) -> Section:
    """Where the time of a phase goes."""
    inside = sum(kernel.seconds for kernel in phase.kernels)
    whole = inside + phase.host

    def row(name: str, launches: str, seconds: float, *rates: str) -> tuple[str, ...]:
        return (name, launches, duration(seconds), f"{seconds / whole:.1%}", *(rates or ("", "")))

    rows = [
        row(
            k.name,
            str(k.launches),
            k.seconds,
            f"{decimal(k.bytes / k.seconds)}B/s",
            f"{decimal(k.flops / k.seconds)}FLOP/s",
        )
        for k in phase.kernels
        if k.seconds
    ]
    rows.append(row("host", "", phase.host))
    head = ("kernel", "launches", "in", "", "", "")
    return Section(
        f"The time of {phase.name}",
        (
            Table(head, (*rows, row("together", "", whole)), summed=True),
            Line(
                f"Timed in a library of its own, {phase.name} once. In the kernels the main thread "
                f"waited {duration(phase.waiting)} ({phase.waiting / whole:.1%}) for others: forks "
                "and barriers. The host's part is what a step takes beside its kernels."
            ),
        ),
    )


def _changes(changes: Sequence[Change], tolerance: float) -> Table:
    rows = tuple(
        (c.metric.name, _number(c.before, c.metric), _value(c.metric), _verdict(c, tolerance))
        for c in changes
    )
    return Table(("", "was", "is", ""), rows)


def _verdict(change: Change, tolerance: float) -> str:
    if change.share == 0:
        return "the same"
    if change.share < 0:
        return f"{-change.share:.1%} better"
    return f"{change.share:.1%} worse{': REGRESSION' if change.share > tolerance else ''}"


def _value(metric: Metric) -> str:
    return _number(metric.value, metric)


def _number(value: float, metric: Metric) -> str:
    if metric.unit == "s":
        return duration(value)
    return f"{value:.0f} requests" if metric.unit == "requests" else f"{value:.2f} {metric.unit}"


def _bars(metrics: Sequence[Metric]) -> str:
    longest = max(max((m.value, *m.samples)) for m in metrics) or 1.0
    scale = (drawing.WIDTH - 260) / longest
    marks: list[str] = []
    for row, m in enumerate(metrics):
        y = 10 + 34 * row
        told = f"{m.name}: {m.value:.2f} {m.unit}"
        marks.append(drawing.text(90, y + 17, m.name, "end"))
        marks.append(drawing.rect(100, y + 3, m.value * scale, 20, drawing.COLOURS[0], told, 0.75))
        for sample in m.samples:
            x = 100 + sample * scale
            marks.append(drawing.stroke(x, y, x, y + 26, drawing.INK))
        end = 108 + max((m.value, *m.samples)) * scale
        marks.append(drawing.text(end, y + 17, f"{m.value:.1f} {m.unit}", colour=drawing.SOFT))
    return drawing.picture(20 + 34 * len(metrics), marks)


def _curves(quantiles: Mapping[str, Sequence[float]]) -> str:
    """Cumulative shares over time, which is logarithmic."""
    left, top, right, bottom = 60.0, 40.0, drawing.WIDTH - 20.0, 340.0
    times = [max(t, 1e-6) for values in quantiles.values() for t in values if isfinite(t)]
    x0, x1 = floor(log10(min(times))), ceil(log10(max(times)))
    x1 = max(x1, x0 + 1)

    def x(seconds: float) -> float:
        return left + (log10(max(seconds, 1e-6)) - x0) / (x1 - x0) * (right - left)

    def y(share: float) -> float:
        return bottom - share * (bottom - top)

    marks = [*drawing.legend(((name, i) for i, name in enumerate(quantiles)), left, 20)]
    for power in range(x0, x1 + 1):
        at = x(10.0**power)
        marks.append(drawing.stroke(at, top, at, bottom, drawing.GRID))
        marks.append(drawing.text(at, bottom + 18, duration(10.0**power), "middle", drawing.SOFT))
    for percent in (0, 50, 95, 99):
        at = y(percent / 100)
        marks.append(drawing.stroke(left, at, right, at, drawing.GRID))
        if percent != 99:  # it would cover 95
            marks.append(drawing.text(left - 8, at + 4, f"{percent} %", "end", drawing.SOFT))
    for i, values in enumerate(quantiles.values()):
        points = [(x(value), y(share / (len(values) - 1))) for share, value in enumerate(values)]
        marks.append(drawing.line(points, drawing.COLOURS[i % len(drawing.COLOURS)]))
    return drawing.picture(bottom + 30, marks)
