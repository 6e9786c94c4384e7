"""An answer on the terminal as it comes, its Markdown rendered.

In: pieces of text. Out: complete blocks, printed once for good, and below them the block that still
grows, drawn anew as it does. What a model writes is text: no HTML, no hidden links, no control
characters. Knows rich, no engine.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import ClassVar, Self

from markdown_it import MarkdownIt
from rich import markdown
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.rule import Rule
from rich.segment import Segment
from rich.syntax import Syntax
from rich.text import Text
from rich.theme import Theme

from sterna.cli.say import harmless

_FRAME_S = 1 / 15  # between two drawings, at least
_SHARE = 4  # of the time, drawing takes one part at most
_THEME = Theme(
    {
        "markdown.code": "cyan",
        "markdown.h1": "bold underline",
        "markdown.h2": "bold underline",
        "markdown.h3": "bold",
        "markdown.h4": "bold",
        "markdown.h5": "bold dim",
        "markdown.h6": "bold dim",
        "markdown.item.bullet": "cyan",
        "markdown.item.number": "cyan",
        "markdown.block_quote": "italic",
    }
)
# Tags that a model writes are text: rich would show nothing in their place.
_PARSER = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
_UNDECIDED = re.compile(r"(?:^|\n)[ \t]*[-=*_`#>|+~:\d.]+[ \t]*\Z")  # may begin any kind of block


def console() -> Console:
    """The terminal's, with this module's styles."""
    return Console(theme=_THEME, highlight=False, markup=False, emoji=False)


def blocks(text: str) -> list[str]:
    """The text cut where its outermost blocks begin: later text changes none but the last."""
    lines = text.split("\n")
    starts = [
        token.map[0]
        for token in _PARSER.parse(text)
        if token.level == 0 and token.map and token.nesting >= 0
    ]
    cuts = [0, *starts[1:], len(lines)]
    parts = ["\n".join(lines[start:end]) for start, end in pairwise(cuts)]
    return [f"{part}\n" for part in parts[:-1]] + parts[-1:]


class MarkdownView:
    """Shows one answer, inside a `with` statement; reasoning comes dimmed, before it."""

    def __init__(self, screen: Console) -> None:
        self._screen = screen
        self._live = Live(
            Text("…", style="dim"), console=screen, auto_refresh=False, transient=True
        )
        self._render: Callable[[str], RenderableType] = _thought
        self._open = ""
        self._printed = False  # something stands above the open block
        self._next = 0.0

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._settle(all_of_it=True)
        self._live.stop()

    def reasoning(self, piece: str) -> None:
        self._put(piece, _thought)

    def text(self, piece: str) -> None:
        self._put(piece, _Answer)

    def _put(self, piece: str, render: Callable[[str], RenderableType]) -> None:
        if not piece:
            return
        if render is not self._render:
            self._settle(all_of_it=True)
            self._render = render
        self._open += harmless(piece)
        began = time.perf_counter()
        if began >= self._next:
            self._settle()
            self._live.update(self._growing(), refresh=True)
            now = time.perf_counter()
            self._next = now + max(_FRAME_S, (_SHARE - 1) * (now - began))

    def _growing(self) -> RenderableType:
        decided = _UNDECIDED.sub("", self._open)
        if not decided.strip():
            return Text("")
        return _Block(self._render(decided), self._printed, max(1, self._screen.height - 2))

    def _settle(self, all_of_it: bool = False) -> None:
        """Print the blocks that are complete for good, or all of them."""
        found = blocks(self._open)
        self._open = "" if all_of_it else found.pop()
        for block in filter(str.strip, found):
            self._live.update(Text(""))
            self._screen.print(_Block(self._render(block), self._printed), end="")
            self._printed = True


def _thought(text: str) -> RenderableType:
    return Text(text.strip("\n"), style="dim italic")


class _Heading(markdown.Heading):
    """At the left, without a box."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.justify = "left"
        yield self.text


class _Code(markdown.CodeBlock):
    """Between two lines and not indented, so that what is copied is the code."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        name = "" if self.lexer_name == "text" else self.lexer_name
        code = str(self.text).rstrip()
        yield Rule(Text(name, style="dim"), style="dim", align="left")
        yield Syntax(
            code, self.lexer_name, theme="ansi_dark", word_wrap=True, background_color="default"
        )
        yield Rule(style="dim")


class _Answer(markdown.Markdown):
    elements: ClassVar[dict[str, type[markdown.MarkdownElement]]] = {
        **markdown.Markdown.elements,
        "heading_open": _Heading,
        "fence": _Code,
        "code_block": _Code,
    }

    def __init__(self, text: str) -> None:
        super().__init__("", hyperlinks=False)  # an address is shown, never hidden behind a word
        self.markup = text
        self.parsed = _PARSER.parse(text)


@dataclass(frozen=True, slots=True)
class _Block:
    """Text without empty lines around it, but one above where `spaced`.

    `most`: only so many of its last lines, for that is where a block grows that is too tall.
    """

    content: RenderableType
    spaced: bool
    most: int | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = [_trimmed(x) for x in console.render_lines(self.content, options, pad=False)]
        while lines and not lines[-1]:
            lines.pop()
        while lines and not lines[0]:
            lines.pop(0)
        shown = [list[Segment]()] * self.spaced + lines
        for line in shown if self.most is None else shown[-self.most :]:
            yield from line
            yield Segment.line()


def _trimmed(line: list[Segment]) -> list[Segment]:
    """Without the spaces at the end: they would be copied, and wrap when a window shrinks."""
    kept = list(line)
    while kept and not kept[-1].text.strip():
        kept.pop()
    if kept:
        text, style, control = kept[-1]
        kept[-1] = Segment(text.rstrip(), style, control)
    return kept
