"""What the engine asks of a model's text side; sterna.text has it, tests bring a tiny one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sterna.engine.options import SamplingOptions
from sterna.runtime.executable import Executable


class Tokenizer(Protocol):
    """Text to token ids and back."""

    @property
    def eos_ids(self) -> frozenset[int]: ...

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...


class ChatTemplate(Protocol):
    """Messages to the text of a prompt."""

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str: ...


@dataclass(frozen=True, slots=True)
class Parts:
    """A model ready to be asked: everything the engine is made of."""

    executable: Executable
    tokenizer: Tokenizer
    template: ChatTemplate | None
    model_name: str
    defaults: SamplingOptions = field(default_factory=SamplingOptions)
    stop_ids: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()  # the chat template's own, beside the caller's
