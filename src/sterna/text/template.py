"""What the engine asks of a chat template, whoever wrote it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Template(Protocol):
    """Messages to the text of a prompt, as the model was trained to see it."""

    @property
    def variables(self) -> frozenset[str]:
        """The names that the template reads from its caller."""

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **extra: Any,
    ) -> str:
        """The prompt; RequestError where the template refuses the conversation."""
