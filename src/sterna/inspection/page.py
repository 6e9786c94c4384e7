"""A Report as one HTML page that needs nothing else: no scripts, fonts, images or requests."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from sterna.inspection.document import Chart, Line, Part, Report, Section, Table

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2733; background: #fff;
       max-width: 1000px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; border-bottom: 2px solid #1f6f8b; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th { text-align: left; color: #5f6b7a; font-weight: 600; }
th, td { padding: .2rem .9rem .2rem 0; border-bottom: 1px solid #e3e8ee; vertical-align: top; }
th.n, td.n { text-align: right; white-space: nowrap; }
tr.sum td { font-weight: 600; border-top: 2px solid #5f6b7a; }
code { display: block; font: .85rem/1.5 ui-monospace, monospace; overflow-wrap: anywhere;
       white-space: pre-wrap; text-indent: -2ch; padding-left: 2ch; }
p { margin: .3rem 0; color: #5f6b7a; }
figure { margin: 1rem 0; } figcaption { color: #5f6b7a; font-size: .9rem; }
svg { width: 100%; height: auto; } summary { cursor: pointer; color: #1f6f8b; }
nav a { color: #1f6f8b; margin-right: 1rem; text-decoration: none; white-space: nowrap; }
"""
# A title or name from a stranger's file is escaped; the policy is the second wall.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def to_page(report: Report) -> str:
    """The whole page."""
    title = escape(report.title)
    links = (
        f'<a href="#s{i}">{escape(section.heading)}</a>'
        for i, section in enumerate(report.sections)
    )
    sections = "\n".join(_section(i, section) for i, section in enumerate(report.sections))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title><style>{_STYLE}</style></head>\n<body><h1>{title}</h1>\n"
        f"<nav>{' '.join(links)}</nav>\n{sections}\n</body></html>\n"
    )


def _section(index: int, section: Section) -> str:
    heading = f'<h2 id="s{index}">{escape(section.heading)}</h2>'
    body = "\n".join(_part(part) for part in section.parts)
    if section.long:
        body = f"<details><summary>show</summary>\n{body}\n</details>"
    return f"<section>{heading}\n{body}\n</section>"


def _part(part: Part) -> str:
    match part:
        case Table():
            return f'<div class="scroll"><table>{"".join(_rows(part))}</table></div>'
        case Line(code=True):
            return f'<code style="margin-left:{part.indent}ch">{escape(part.text)}</code>'
        case Line():
            return f"<p>{escape(part.text)}</p>"
        case Chart():
            return f"<figure>{part.svg}<figcaption>{escape(part.caption)}</figcaption></figure>"


def _rows(table: Table) -> Iterator[str]:
    if any(table.head):
        yield f"<thead><tr>{_cells('th', table.head, table.left)}</tr></thead>"
    for i, row in enumerate(table.rows):
        last = table.summed and i == len(table.rows) - 1
        yield f"<tr{' class=sum' if last else ''}>{_cells('td', row, table.left)}</tr>"


def _cells(tag: str, cells: tuple[str, ...], left: int) -> str:
    return "".join(
        f"<{tag}{'' if i < left else ' class=n'}>{escape(cell)}</{tag}>"
        for i, cell in enumerate(cells)
    )
