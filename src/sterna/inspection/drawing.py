"""The marks that charts are made of, as SVG text, and the picture that holds them.

In: places in a picture `WIDTH` wide, and words. Out: elements. Words are escaped; a mark's `told`
is what a browser shows under the pointer. Drawn for a light background.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape

from sterna.inspection.document import one_line

WIDTH = 900
COLOURS = ("#1f6f8b", "#d1603d", "#5b8c5a", "#8a5a9e", "#b8892b", "#6b7280")
INK, SOFT, GRID = "#1c2733", "#5f6b7a", "#e3e8ee"


def legend(names: Iterable[tuple[str, int]], x: float, y: float) -> Iterator[str]:
    for name, i in names:
        yield rect(x, y - 10, 12, 12, COLOURS[i % len(COLOURS)], name)
        yield text(x + 18, y, name)
        x += 40 + 7.5 * len(name)


def picture(height: float, marks: Iterable[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="13">{"".join(marks)}</svg>'
    )


def title(text: str) -> str:
    return f"<title>{escape(one_line(text))}</title>"


def rect(
    x: float, y: float, width: float, height: float, colour: str, told: str, opacity: float = 1.0
) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}" '
        f'fill-opacity="{opacity}" stroke="#ffffff" stroke-width="0.5">{title(told)}</rect>'
    )


def outline(x: float, y: float, width: float, height: float, told: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="none" '
        f'stroke="{SOFT}">{title(told)}</rect>'
    )


def stroke(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}"/>'


def text(x: float, y: float, words: str, anchor: str = "start", colour: str = INK) -> str:
    at = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {at} fill="{colour}">{escape(one_line(words))}</text>'


def line(points: Iterable[tuple[float, float]], colour: str) -> str:
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="2"/>'
