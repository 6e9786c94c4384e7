"""A Report as text for a terminal of 100 columns: aligned tables, wrapped lines, no charts."""

from __future__ import annotations

import textwrap
from itertools import zip_longest

from sterna.inspection.document import Chart, Line, Part, Report, Section, Table

WIDTH = 100
_GAP = "  "


def to_text(report: Report) -> str:
    """The whole report, without a line end after the last line."""
    blocks = [report.title, *(_section(section) for section in report.sections)]
    return "\n\n".join(blocks)


def _section(section: Section) -> str:
    lines = [section.heading, "-" * min(WIDTH, len(section.heading))]
    previous: Part | None = None
    for part in section.parts:
        if isinstance(part, Chart):
            continue
        if isinstance(part, Table) and previous is not None:
            lines.append("")
        lines += _table(part) if isinstance(part, Table) else _line(part)
        previous = part
    return "\n".join(lines)


def _line(line: Line) -> list[str]:
    first = " " * line.indent
    wrapped = textwrap.wrap(
        line.text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=first + " " * line.hanging,
        break_on_hyphens=False,
    )
    return wrapped or [""]


def _table(table: Table) -> list[str]:
    rows = [table.head, *table.rows]
    widths = _widths(rows, table.left)
    rule = _GAP.join("-" * width for width in widths)
    lines = [*_row(table.head, widths, table.left), rule] if any(table.head) else []
    for i, row in enumerate(table.rows):
        if table.summed and i == len(table.rows) - 1:
            lines.append(rule)
        lines += _row(row, widths, table.left)
    return lines


def _widths(rows: list[tuple[str, ...]], left: int) -> list[int]:
    """As wide as the widest cell; where that is too much, the widest columns of words give way."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    over = sum(widths) + len(_GAP) * (len(widths) - 1) - WIDTH
    while over > 0:
        widest = max(range(left), key=lambda i: widths[i])
        if widths[widest] <= 8:
            break
        widths[widest] -= 1
        over -= 1
    return widths


def _row(row: tuple[str, ...], widths: list[int], left: int) -> list[str]:
    cells = [textwrap.wrap(cell, width) or [""] for cell, width in zip(row, widths, strict=True)]
    lines = []
    for pieces in zip_longest(*cells, fillvalue=""):
        shown = [
            piece.ljust(width) if i < left else piece.rjust(width)
            for i, (piece, width) in enumerate(zip(pieces, widths, strict=True))
        ]
        lines.append(_GAP.join(shown).rstrip())
    return lines
