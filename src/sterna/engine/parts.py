"""What an engine is made of: a loaded model and its text side, ready to be asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sterna.engine.limits import Limits
from sterna.engine.options import SamplingOptions
from sterna.runtime.executable import Executable
from sterna.text.tokenizer import Tokenizer


class Template(Protocol):
    """Messages to the text of a prompt, as the model was trained to see it."""

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str: ...


@dataclass(frozen=True, slots=True)
class Parts:
    """A chat is rendered by `template` or, in MLC's folders without one, by `conv_template`.

    `stop_ids` and `stop_strings` end every answer; callers may add strings of their own.
    """

    executable: Executable
    limits: Limits
    tokenizer: Tokenizer
    template: Template | None
    model_name: str
    defaults: SamplingOptions = field(default_factory=SamplingOptions)
    stop_ids: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()
    conv_template: Mapping[str, Any] | None = None

    @property
    def vocabulary(self) -> int:
        """Ids that can be told apart: a model's rows past the tokenizer's end are padding."""
        return min(self.executable.manifest.model.vocab_size, self.tokenizer.vocab_size)
