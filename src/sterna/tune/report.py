"""The report on a tuned model: each kernel before and after, its part of a step, the roofline.

In: kernels with their times, and the peaks of the machine that timed them. Out: a Report, which
`inspection.page` writes as one file. It measures nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from math import ceil, floor, isfinite, log10

from sterna.base.sizes import evaluate
from sterna.inspection import drawing
from sterna.inspection.document import (
    Chart,
    Line,
    Report,
    Section,
    Table,
    decimal,
    duration,
)
from sterna.inspection.peaks import Peaks
from sterna.passes.cost import group_cost
from sterna.schedule.choose import Plan
from sterna.tune.session import NOISY, Progress, step_seconds

_LEFT, _TOP, _WIDTH, _HEIGHT = 70, 30, drawing.WIDTH - 90, 400


def tuning_report(title: str, kernels: list[Progress], peaks: Peaks) -> Report:
    """Kernels in the order given; those without a time are counted and left out."""
    timed = [k for k in kernels if isfinite(k.before)]
    sections = [
        Section("Steps", (_steps(timed), *_remarks(kernels, timed, peaks))),
        Section("Kernels", (_kernels(timed, peaks),)),
        Section("Where a step's time goes", (_shares(timed),)),
        Section("Plans", (_plans(timed),), long=True),
    ]
    if timed:
        sections.insert(2, Section("Roofline", (_roofline(timed, peaks),)))
    return Report(title, tuple(sections))


def _steps(kernels: list[Progress]) -> Table:
    after = step_seconds(kernels, after=True)
    rows = tuple(
        (entry, duration(before), duration(after[entry]), f"{before / after[entry]:.2f}")
        for entry, before in step_seconds(kernels).items()
    )
    return Table(("step", "before", "after", "times as fast"), rows)


def _remarks(kernels: list[Progress], timed: list[Progress], peaks: Peaks) -> Iterator[Line]:
    yield Line(
        "Sums of the kernels that have knobs, at the sizes below; attention and the like are "
        f"left out. Peaks measured here: {decimal(peaks.bandwidth)}B/s, "
        f"{decimal(peaks.flops)}FLOP/s of f32."
    )
    noisy = sum(k.noise > NOISY for k in timed)
    if noisy:
        yield Line(f"Times of {noisy} kernels scattered by more than {NOISY:.0%}.")
    if len(timed) < len(kernels):
        yield Line(f"{len(kernels) - len(timed)} kernels were not reached.")


def _kernels(kernels: list[Progress], peaks: Peaks) -> Table:
    head = ("", "kernel", "size", "launches", "before", "after", "times as fast", "of its roof",
            "plans", "refused", "spread")  # fmt: skip
    return Table(head, tuple(_row(i, k, peaks) for i, k in enumerate(kernels, 1)), left=4)


def _row(index: int, kernel: Progress, peaks: Peaks) -> tuple[str, ...]:
    flops, moved = work(kernel)
    return (
        str(index),
        kernel.op,
        ", ".join(f"{name} = {size}" for name, size in sorted(kernel.sizes.items())),
        ", ".join(f"{entry} {count}" for entry, count in kernel.launches.items()),
        duration(kernel.before),
        duration(kernel.after),
        f"{kernel.before / kernel.after:.2f}",
        f"{peaks.seconds(flops, moved) / kernel.after:.0%}",
        str(len(kernel.times)),
        str(kernel.refused),
        f"{kernel.noise:.0%}",
    )


def work(kernel: Progress) -> tuple[int, int]:
    """Operations and bytes of one launch at the sizes that were measured."""
    cost = group_cost(kernel.group)
    return evaluate(cost.flops, kernel.sizes), evaluate(cost.bytes, kernel.sizes)


def _shares(kernels: list[Progress]) -> Chart:
    """A bar a step before and after, cut by kernel; both at the scale of before."""
    marks: list[str] = []
    y = 10.0
    for entry, whole in step_seconds(kernels).items():
        for after in (False, True):
            marks.append(
                drawing.text(_LEFT + 60, y + 15, f"{entry} {'after' if after else 'before'}", "end")
            )
            marks += _bar(kernels, entry, whole, y, after)
            y += 26
        y += 12
    return Chart(
        drawing.picture(y, marks), "Numbers are those of the table; the pointer shows names."
    )


def _bar(kernels: list[Progress], entry: str, whole: float, y: float, after: bool) -> Iterator[str]:
    x, wide = _LEFT + 70.0, (_WIDTH - 80) / whole
    for i, kernel in enumerate(kernels):
        seconds = kernel.launches.get(entry, 0) * (kernel.after if after else kernel.before)
        if not seconds:
            continue
        told = f"{i + 1} {kernel.op}: {duration(seconds)}, {seconds / whole:.1%} of the step before"
        colour = drawing.COLOURS[i % len(drawing.COLOURS)]
        yield drawing.rect(x, y, seconds * wide, 22, colour, told)
        if seconds * wide > 20:
            yield drawing.text(x + seconds * wide / 2, y + 15, str(i + 1), "middle", "#ffffff")
        x += seconds * wide


def _roofline(kernels: list[Progress], peaks: Peaks) -> Chart:
    """Operations a byte against operations a second, measured: before hollow, after filled."""
    points = []
    for i, kernel in enumerate(kernels, 1):
        flops, moved = work(kernel)
        if flops and moved:
            points.append((i, kernel, flops, flops / moved))
    rates = [f / k.before for _, k, f, _ in points] + [f / k.after for _, k, f, _ in points]
    across = [a for *_, a in points] + [peaks.ridge]
    x0, x1 = floor(log10(min(across)) - 0.2), ceil(log10(max(across)) + 0.2)
    y0, y1 = floor(log10(min([*rates, peaks.flops]))), ceil(log10(max([*rates, peaks.flops])) + 0.1)

    def place(intensity: float, rate: float) -> tuple[float, float]:
        right = (log10(intensity) - x0) / (x1 - x0)
        up = (log10(rate) - y0) / (y1 - y0)
        return _LEFT + right * _WIDTH, _TOP + (1 - up) * _HEIGHT

    marks = [*_grid(x0, x1, y0, y1)]
    start = max(10.0**x0, 10.0**y0 / peaks.bandwidth)
    roof = [(start, start * peaks.bandwidth), (peaks.ridge, peaks.flops), (10.0**x1, peaks.flops)]
    marks.append(drawing.line([place(*corner) for corner in roof], drawing.INK))
    for i, kernel, flops, intensity in points:
        marks += _point(
            i,
            kernel,
            place(intensity, flops / kernel.before),
            place(intensity, flops / kernel.after),
        )
    return Chart(
        drawing.picture(_TOP + _HEIGHT + 50, marks),
        "Measured operations a second over operations a byte, before (hollow) and after (filled), "
        "under the peaks of memory and arithmetic.",
    )


def _grid(x0: int, x1: int, y0: int, y1: int) -> Iterator[str]:
    bottom, right = _TOP + _HEIGHT, _LEFT + _WIDTH
    for power in range(x0, x1 + 1):
        x = _LEFT + (power - x0) / (x1 - x0) * _WIDTH
        yield drawing.stroke(x, _TOP, x, bottom, drawing.GRID)
        yield drawing.text(x, bottom + 18, f"{10.0**power:g}", "middle", drawing.SOFT)
    for power in range(y0, y1 + 1):
        y = bottom - (power - y0) / (y1 - y0) * _HEIGHT
        yield drawing.stroke(_LEFT, y, right, y, drawing.GRID)
        yield drawing.text(_LEFT - 8, y + 4, decimal(10.0**power), "end", drawing.SOFT)
    yield drawing.text((_LEFT + right) / 2, bottom + 38, "FLOP/byte", "middle")
    yield drawing.text(8, _TOP - 10, "FLOP/s")


def _point(
    number: int, kernel: Progress, before: tuple[float, float], after: tuple[float, float]
) -> Iterator[str]:
    colour = drawing.COLOURS[(number - 1) % len(drawing.COLOURS)]
    gain = kernel.before / kernel.after
    told = drawing.title(
        f"{number} {kernel.op}: {duration(kernel.after)}, {gain:.2f} times as fast"
    )
    for (x, y), opacity in ((before, 0.0), (after, 0.8)):
        yield (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{colour}" fill-opacity="{opacity}" '
            f'stroke="{colour}">{told}</circle>'
        )
    yield drawing.text(after[0] + 9, after[1] + 4, str(number), colour=colour)


def _plans(kernels: list[Progress]) -> Table:
    rows = tuple(
        (str(i), k.op, _plan(k.shipped), "as shipped" if k.best == k.shipped else _plan(k.best))
        for i, k in enumerate(kernels, 1)
    )
    return Table(("", "kernel", "shipped", "best"), rows, left=4)


def _plan(plan: Plan) -> str:
    return f"{plan.rule} " + ", ".join(f"{k} {v}" for k, v in asdict(plan.knobs).items())
