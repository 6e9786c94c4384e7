"""A conversation with a chat model: its messages, its options, and one turn after another.

In: what the user writes. Out: pieces of the answer to a View as they come, then a Turn. Knows no
terminal.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from sterna.base.errors import RequestError, UsageError
from sterna.engine.options import SamplingOptions, override

if TYPE_CHECKING:
    from sterna.engine.api import ChatCompletionChunk, FinishReason, Timings, Usage
    from sterna.engine.engine import Engine
    from sterna.engine.prefix import Divergence


class View(Protocol):
    """Where an answer is shown while it comes."""

    def text(self, piece: str) -> None: ...

    def reasoning(self, piece: str) -> None: ...


@dataclass(slots=True)
class Turn:
    """One answer. `stopped`: the user broke it off, so there is neither reason nor usage.

    `divergence`: where its prompt left what was in the cache by then.
    """

    divergence: Divergence
    text: str = ""
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    stopped: bool = False

    def put(self, chunk: ChatCompletionChunk, view: View) -> None:
        """Take a chunk in and show what it adds."""
        self.usage, self.timings = chunk.usage or self.usage, chunk.timings or self.timings
        for choice in chunk.choices:
            added = choice.delta.content or ""
            self.text += added
            self.finish_reason = choice.finish_reason or self.finish_reason
            view.reasoning(choice.delta.reasoning_content or "")
            view.text(added)


@dataclass(slots=True)
class Conversation:
    """`options` are what the user set over the model's own defaults; `turns` are for statistics.

    `form`: the `response_format` that answers must have.
    """

    engine: Engine
    options: dict[str, Any] = field(default_factory=dict)
    system: str | None = None
    form: dict[str, Any] | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    model: str | None = None  # an adapter's name, where one was asked for
    _counted: tuple[list[dict[str, Any]], int | None] | None = None

    def answer(self, text: str | list[dict[str, Any]], view: View) -> Turn:
        """Say `text`, or a message's parts, and show the answer; Ctrl-C ends the answer alone.

        RequestError where it cannot be asked; the conversation is then as it was before.
        """
        return self._ask([*self.messages, {"role": "user", "content": text}], view)

    def regenerate(self, view: View) -> Turn:
        """Answer the last question once more; the old answer stays if no new one comes."""
        if not self.messages:
            raise UsageError("there is no answer yet to write again; ask something first")
        return self._ask(self.messages[:-1], view)

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

    def used(self) -> int | None:
        """Tokens of the window that the conversation fills; None: its template refuses it."""
        if not self.messages:
            return 0
        usage = self.turns[-1].usage if self.turns else None
        if usage is not None:
            return usage.total_tokens
        if self._counted is None or self._counted[0] is not self.messages:
            self._counted = self.messages, self._count()
        return self._counted[1]

    def _count(self) -> int | None:
        """What was loaded, or broken off, as the next prompt will have it."""
        try:
            return len(self.engine.chat_ids([*self._opening(), *self.messages]))
        except RequestError:
            return None

    def _opening(self) -> list[dict[str, Any]]:
        return [{"role": "system", "content": self.system}] if self.system else []

    def window_full(self, turn: Turn) -> bool:
        """Whether the answer ended because prompt and answer fill the context window."""
        if turn.finish_reason != "length" or turn.usage is None:
            return False
        limit = self.options.get("max_tokens")
        return limit is None or turn.usage.completion_tokens < limit

    def _ask(self, asked: list[dict[str, Any]], view: View) -> Turn:
        """`asked` ends with a question."""
        form = {} if self.form is None else {"response_format": self.form}
        options: dict[str, Any] = self.options | form
        messages = [*self._opening(), *asked]
        turn = Turn(self.engine.explain_prefix(messages=messages, model=self.model))
        with self.engine.chat.completions.create(
            messages=messages,
            model=self.model,
            stream=True,
            stream_options={"include_usage": True},
            **options,
        ) as chunks:
            try:
                for chunk in chunks:
                    turn.put(chunk, view)
            except KeyboardInterrupt:
                turn.stopped = True
        if turn.text or not turn.stopped:
            self.messages = [*asked, {"role": "assistant", "content": turn.text}]
        self.turns.append(turn)
        return turn
