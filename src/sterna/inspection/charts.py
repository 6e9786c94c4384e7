"""The charts of a page, as SVG with nothing outside it: roofline, memory, weights, arena.

In: costs, plans and weights. Out: an <svg> element as text, drawn for a light background. Every
mark has a title, which a browser shows under the pointer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import ceil, floor, log10, prod

from sterna.base.artifact import Entry, Launch, Manifest
from sterna.base.dtype import dtype
from sterna.inspection import drawing
from sterna.inspection.costs import KernelCost, StepCost
from sterna.inspection.document import decimal, size
from sterna.inspection.peaks import Peaks
from sterna.inspection.weights import GROUPS, Weight, split
from sterna.runtime.memory import MemoryPlan, largest_shape

_MAX_BUFFERS = 400
_NAMED_SHARE = 0.02  # of a step: smaller circles have no number, only a title


def roofline(costs: tuple[StepCost, ...], peaks: Peaks) -> str:
    """Kernels at their intensity under the roofs, log by log; circles by share of the step."""
    numbered = list(_numbered(costs))
    drawn = [(i, number, c) for i, number, c in numbered if c.launches * c.flops * c.bytes]
    intensities = [c.flops / c.bytes for _, _, c in drawn] + [peaks.ridge]
    x0, x1 = floor(log10(min(intensities)) - 0.2), ceil(log10(max(intensities)) + 0.2)
    lowest = peaks.bandwidth * 10.0**x0
    y0, y1 = floor(log10(lowest)), ceil(log10(peaks.flops) + 0.1)
    plot = _Plot(70, 30, drawing.WIDTH - 90, 400, (x0, x1), (y0, y1))
    marks = [*_axes(plot, "FLOP/byte", "FLOP/s"), _roof(plot, peaks)]
    marks += _points(plot, costs, drawn, peaks)
    marks += drawing.legend(((cost.entry.name, i) for i, cost in enumerate(costs)), 90, 50)
    return drawing.picture(480, marks)


def memory_bars(manifest: Manifest, empty: MemoryPlan) -> str:
    """Total memory at an empty cache and at quarters of the window, by purpose."""
    window, kv = max(0, manifest.model.context_window_size), manifest.kv_cache
    contexts = sorted({window * i // 4 for i in range(5)})
    caches = [-(-context // kv.page_size) * kv.page_bytes for context in contexts]
    working = empty.arena + empty.scratch + empty.io
    names = ("weights", "KV cache", "arena, scratch, inputs and outputs")
    bars = [
        (f"{context:,} tokens", list(zip(names, (empty.weights, cache, working), strict=True)))
        for context, cache in zip(contexts, caches, strict=True)
    ]
    longest = max(sum(part for _, part in parts) for _, parts in bars)
    marks: list[str] = []
    for row, (label, parts) in enumerate(bars):
        marks += _stacked(40 + 34 * row, label, parts, longest)
    marks += drawing.legend(zip(names, range(3), strict=True), 130, 14)
    return drawing.picture(50 + 34 * len(bars), marks)


def weight_bars(weights: list[Weight]) -> str:
    """Bytes of each group over the bytes that fp16 would take, an outline."""
    groups = sorted(split(weights, lambda w: w.group).items(), key=lambda g: GROUPS.index(g[0]))
    bars = [(g, sum(w.bytes for w in ws), sum(w.fp16_bytes for w in ws)) for g, ws in groups]
    longest = max((max(stored, fp16) for _, stored, fp16 in bars), default=0) or 1
    marks: list[str] = []
    for row, (group, stored, fp16) in enumerate(bars):
        y, scale = 10 + 34 * row, (drawing.WIDTH - 330) / longest
        title = f"{group}: {size(stored)}, in fp16 {size(fp16)}"
        marks.append(drawing.text(120, y + 17, group, anchor="end"))
        marks.append(drawing.rect(130, y + 4, stored * scale, 18, drawing.COLOURS[0], title))
        marks.append(drawing.outline(130, y, fp16 * scale, 26, title))
        end = 138 + max(stored, fp16) * scale
        marks.append(
            drawing.text(end, y + 17, f"{size(stored)} of {size(fp16)}", colour=drawing.SOFT)
        )
    return drawing.picture(20 + 34 * len(bars), marks)


def arena_map(entry: Entry) -> str:
    """Buffers of an arena: places along, launches down; a repeat's body is drawn once."""
    lives = _lives(entry)
    buffers = [buffer for buffer in entry.arena if buffer.name in lives][:_MAX_BUFFERS]
    steps = 1 + max((last for _, last in lives.values()), default=0)
    height, total = max(120, min(480, 14 * steps)), max(1, entry.arena_bytes)
    across, down = (drawing.WIDTH - 90) / total, height / steps
    marks = [
        drawing.outline(70, 10, drawing.WIDTH - 90, height, f"arena, {size(entry.arena_bytes)}")
    ]
    for i, buffer in enumerate(buffers):
        nbytes = prod(largest_shape(buffer, entry)) * dtype(buffer.dtype).bytes
        first, last = lives[buffer.name]
        x, y, width = 70 + buffer.offset * across, 10 + first * down, nbytes * across
        title = f"{buffer.name}: {size(nbytes)} at {size(buffer.offset)}, launches {first}-{last}"
        tall = (last - first + 1) * down
        marks.append(
            drawing.rect(
                x, y, width, tall, drawing.COLOURS[i % len(drawing.COLOURS)], title, opacity=0.75
            )
        )
        if width > 9 * len(buffer.name) and tall >= 12:
            marks.append(
                drawing.text(x + width / 2, y + tall / 2 + 4, buffer.name, "middle", "#ffffff")
            )
    marks.append(drawing.text(70, height + 28, "0 B", colour=drawing.SOFT))
    marks.append(
        drawing.text(drawing.WIDTH - 20, height + 28, size(entry.arena_bytes), "end", drawing.SOFT)
    )
    marks.append(drawing.text(60, 22, "first", "end", drawing.SOFT))
    marks.append(drawing.text(60, height + 6, "last", "end", drawing.SOFT))
    return drawing.picture(height + 40, marks)


class _Plot:
    """A logarithmic frame; `x` and `y` map values to places in it."""

    def __init__(
        self, left: float, top: float, width: float, height: float,
        xs: tuple[int, int], ys: tuple[int, int],
    ) -> None:  # fmt: skip
        self.left, self.top, self.right, self.bottom = left, top, left + width, top + height
        self.xs, self.ys = xs, ys

    def x(self, value: float) -> float:
        along = (log10(value) - self.xs[0]) / (self.xs[1] - self.xs[0])
        return self.left + along * (self.right - self.left)

    def y(self, value: float) -> float:
        up = (log10(value) - self.ys[0]) / (self.ys[1] - self.ys[0])
        return self.bottom - up * (self.bottom - self.top)


def _numbered(costs: tuple[StepCost, ...]) -> Iterator[tuple[int, int, KernelCost]]:
    """(index of the entry, number in the tables, cost) of every kernel."""
    number = 1
    for i, cost in enumerate(costs):
        for kernel in cost.kernels:
            yield i, number, kernel
            number += 1


def _axes(plot: _Plot, x_title: str, y_title: str) -> Iterator[str]:
    for power in range(plot.xs[0], plot.xs[1] + 1):
        x = plot.x(10.0**power)
        yield drawing.stroke(x, plot.top, x, plot.bottom, drawing.GRID)
        yield drawing.text(x, plot.bottom + 18, f"{10.0**power:g}", "middle", drawing.SOFT)
    for power in range(plot.ys[0], plot.ys[1] + 1):
        y = plot.y(10.0**power)
        yield drawing.stroke(plot.left, y, plot.right, y, drawing.GRID)
        yield drawing.text(plot.left - 8, y + 4, _tick(power), "end", drawing.SOFT)
    yield drawing.text((plot.left + plot.right) / 2, plot.bottom + 38, x_title, "middle")
    yield drawing.text(plot.left - 62, plot.top - 10, y_title)


def _tick(power: int) -> str:
    thousands, rest = divmod(power, 3)
    prefixes = ("", "k", "M", "G", "T", "P")
    return f"{10**rest} {prefixes[thousands]}" if 0 <= thousands < 6 else f"1e{power}"


def _roof(plot: _Plot, peaks: Peaks) -> str:
    start = 10.0 ** plot.xs[0]
    corners = [(start, start * peaks.bandwidth), (peaks.ridge, peaks.flops)]
    corners.append((10.0 ** plot.xs[1], peaks.flops))
    return drawing.line([(plot.x(x), plot.y(y)) for x, y in corners], drawing.INK)


def _points(
    plot: _Plot,
    costs: tuple[StepCost, ...],
    drawn: Iterable[tuple[int, int, KernelCost]],
    peaks: Peaks,
) -> Iterator[str]:
    """Circles on the roof; their numbers stand below, each where no other number does."""
    steps = [sum(_least(peaks, one) for one in cost.kernels) for cost in costs]
    taken: list[tuple[float, float]] = []
    labels: list[str] = []  # drawn last, so that no circle hides a number
    for i, number, cost in sorted(drawn, key=lambda point: point[2].flops / point[2].bytes):
        intensity, share = cost.flops / cost.bytes, _least(peaks, cost) / steps[i]
        bound = min(peaks.flops, intensity * peaks.bandwidth)
        x, y = plot.x(intensity), plot.y(bound)
        title = (
            f"{number} {costs[i].entry.name} {cost.kernel.name}: {intensity:.2f} FLOP/byte, "
            f"at most {decimal(bound)}FLOP/s, {share:.1%} of the step"
        )
        radius = 4 + 14 * share**0.5
        label = y + radius + 14
        while any(abs(x - a) < 22 and abs(label - b) < 13 for a, b in taken):
            label += 13
        colour = drawing.COLOURS[i % len(drawing.COLOURS)]
        yield (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{colour}" '
            f'fill-opacity="0.65" stroke="{colour}">{drawing.title(title)}</circle>'
        )
        if share >= _NAMED_SHARE and label < plot.bottom:
            taken.append((x, label))
            labels.append(drawing.text(x, label, str(number), "middle", colour))
    yield from labels


def _least(peaks: Peaks, cost: KernelCost) -> float:
    return cost.launches * peaks.seconds(cost.flops, cost.bytes)


def _lives(entry: Entry) -> dict[str, tuple[int, int]]:
    """(first, last) launch that a buffer is kept for; what a repeat reads anew lives to its end."""
    found: dict[str, tuple[int, int]] = {}
    at = 0
    for step in entry.steps:
        body = (step,) if isinstance(step, Launch) else step.body
        for i, launch in enumerate(body):
            for name in launch.args:
                first = found[name][0] if name in found else at + i
                found[name] = (first, at + i if first >= at else at + len(body) - 1)
        at += len(body)
    return found


def _stacked(y: float, label: str, parts: list[tuple[str, int]], longest: int) -> Iterator[str]:
    scale, x = (drawing.WIDTH - 230) / max(1, longest), 130.0
    yield drawing.text(120, y + 15, label, "end")
    for i, (name, count) in enumerate(parts):
        yield drawing.rect(
            x, y, count * scale, 22, drawing.COLOURS[i], f"{label}: {name} {size(count)}"
        )
        x += count * scale
    yield drawing.text(x + 8, y + 15, size(sum(count for _, count in parts)), colour=drawing.SOFT)
