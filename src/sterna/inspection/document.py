"""What a report is made of before it is text or a page, and how numbers are written in it.

Records only: a Report holds Sections, a Section holds Tables, Lines and Charts. They know neither
columns of a terminal nor HTML, and nothing of libraries or models.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells below a head; the first `left` columns are words, the rest numbers.

    `summed`: the last row is a sum of those above.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1
    summed: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """A sentence, or a line of a program; it wraps, and goes on `hanging` columns further in.

    `indent` counts columns. `code` is set for text whose characters should stand in columns.
    """

    text: str
    indent: int = 0
    hanging: int = 0
    code: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """An SVG element with what it shows; text leaves it out."""

    svg: str
    caption: str


Part = Table | Line | Chart


@dataclass(frozen=True, slots=True)
class Section:
    heading: str
    parts: tuple[Part, ...]
    long: bool = False  # a page shows it folded


@dataclass(frozen=True, slots=True)
class Report:
    title: str
    sections: tuple[Section, ...]


def one_line(text: str) -> str:
    """Text of a file as a single line that can be encoded."""
    return " ".join(text.split()).encode("utf-8", "replace").decode()


def size(count: float) -> str:
    """Bytes as people read them: 1.5 GiB. OverflowError for more than a float holds."""
    count = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def decimal(count: float) -> str:
    """A count with a decimal prefix and three digits or so: 1.50 G. OverflowError as `size`."""
    count = float(count)
    if count < 1000:
        return f"{count:.3g}"
    for prefix in ("k", "M", "G", "T"):
        count /= 1000
        if count < 999.5:
            return f"{count:.{max(0, 2 - len(str(int(count))) + 1)}f} {prefix}"
    return f"{count:.0f} T"


def duration(seconds: float) -> str:
    """A time as people read it: 12.3 ms."""
    for unit, scale in (("ns", 1e9), ("µs", 1e6), ("ms", 1e3)):
        if seconds * scale < 1000:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds:.3g} s"
