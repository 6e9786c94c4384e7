"""How an answer is shown: rendered on a terminal, as it is in a pipe; and what is said below it.

In: a Conversation and a Turn. Out: a View to write to, and lines of text.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TextIO

from sterna.cli.conversation import Conversation, Turn, View
from sterna.cli.say import harmless, styled, styles

_METER = 10  # cells


@dataclass(slots=True)
class PlainView:
    """Text as it comes; reasoning only on a terminal, where it cannot be taken for the answer."""

    stream: TextIO
    _thinking: bool = False

    def text(self, piece: str) -> None:
        if piece and self._thinking:
            self.stream.write("\n\n")
            self._thinking = False
        self.stream.write(harmless(piece) if self.stream.isatty() else piece)
        self.stream.flush()

    def reasoning(self, piece: str) -> None:
        if piece and self.stream.isatty():
            self._thinking = True
            self.stream.write(styled(harmless(piece), "dim", self.stream))
            self.stream.flush()


def view(plain: bool) -> AbstractContextManager[View]:
    """Where the next answer goes: Markdown is rendered on terminals that can, unless `plain`."""
    if plain or not styles(sys.stdout):
        return nullcontext(PlainView(sys.stdout))
    from sterna.cli.markdown import MarkdownView, console  # rich takes a tenth of a second

    return MarkdownView(console())


def remark(conversation: Conversation, turn: Turn) -> str:
    """The line below an answer: its length and speed, and why it ended if not by itself."""
    parts = ["stopped"] if turn.stopped else []
    if turn.usage and turn.timings:
        cached = turn.usage.prompt_tokens_details.cached_tokens
        thought = turn.usage.completion_tokens_details.reasoning_tokens
        parts += [
            f"{turn.usage.completion_tokens} tokens",
            *([f"{thought} of them thinking"] if thought else []),
            f"{turn.timings.decode_tokens_per_s:.1f} tokens/s",
            f"first after {_time(turn.timings.time_to_first_token_s)}",
            f"{cached} of {turn.usage.prompt_tokens} prompt tokens reused",
        ]
    if conversation.window_full(turn):
        parts.append(f"{window_full(conversation)}; /reset starts a new conversation")
    elif turn.finish_reason == "length":
        parts.append("cut off at max_tokens")
    return " · ".join(parts)


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def meter(conversation: Conversation) -> str:
    """How full the context window is."""
    used, window = conversation.used(), conversation.engine.context_window
    return f"context {bar((used or 0) / window)} {'?' if used is None else used} of {window}"


def bar(share: float) -> str:
    """A bar of ten cells; a cell is full when its whole share is used, and begun before."""
    eighths = round(min(1.0, max(0.0, share)) * _METER * 8)
    full, part = divmod(eighths, 8)
    cells = "█" * full + ("▏▎▍▌▋▊▉"[part - 1] if part else "")
    return cells.ljust(_METER, "░")


def window_full(conversation: Conversation) -> str:
    return (
        f"the context window of {conversation.engine.context_window} tokens is full, "
        "the answer ends here"
    )
