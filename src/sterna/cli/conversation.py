"""A conversation with a chat model: its messages, its options, and one turn after another.

In: what the user writes. Out: pieces of the answer as they come, then a Turn. Knows no terminal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sterna.engine.options import SamplingOptions, override

if TYPE_CHECKING:
    from sterna.engine.api import ChatCompletionChunk, FinishReason, Timings, Usage
    from sterna.engine.engine import Engine


@dataclass(slots=True)
class Turn:
    """One answer. `stopped`: the user broke it off, so there is neither reason nor usage."""

    text: str = ""
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    stopped: bool = False

    def put(self, chunk: ChatCompletionChunk) -> str:
        """Take a chunk in; what it adds to the text."""
        self.usage, self.timings = chunk.usage or self.usage, chunk.timings or self.timings
        added = ""
        for choice in chunk.choices:
            added += choice.delta.content or ""
            self.finish_reason = choice.finish_reason or self.finish_reason
        self.text += added
        return added


@dataclass(slots=True)
class Conversation:
    """`options` are what the user set over the model's own defaults; `turns` are for statistics."""

    engine: Engine
    options: dict[str, Any] = field(default_factory=dict)
    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)

    def answer(self, text: str, write: Callable[[str], object]) -> Turn:
        """Say `text`, pass the answer on piece by piece; Ctrl-C ends the answer and only that.

        RequestError where it cannot be asked; the conversation is then as it was before.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        turn = Turn()
        with self.engine.chat.completions.create(
            messages=self._opening() + asked,
            stream=True,
            stream_options={"include_usage": True},
            **self.options,
        ) as chunks:
            try:
                for chunk in chunks:
                    write(turn.put(chunk))
            except KeyboardInterrupt:
                turn.stopped = True
        if turn.text or not turn.stopped:
            self.messages = [*asked, {"role": "assistant", "content": turn.text}]
        self.turns.append(turn)
        return turn

    def set(self, name: str, value: Any) -> None:
        """Set one option; None goes back to the model's default. RequestError when it is wrong."""
        changed = {key: old for key, old in self.options.items() if key != name}
        if value is not None:
            changed[name] = value
        override(SamplingOptions(), {name: value} | changed)
        self.options = changed

    def reset(self) -> None:
        """Forget what was said; options and system prompt stay."""
        self.messages = []

    def window_full(self, turn: Turn) -> bool:
        """Whether the answer ended because prompt and answer fill the context window."""
        if turn.finish_reason != "length" or turn.usage is None:
            return False
        limit = self.options.get("max_tokens")
        return limit is None or turn.usage.completion_tokens < limit

    def _opening(self) -> list[dict[str, str]]:
        return [{"role": "system", "content": self.system}] if self.system else []
