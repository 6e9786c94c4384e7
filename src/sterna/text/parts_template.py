"""Chat templates that show a message only if its content is a list of parts, as LLaVA's do.

Whether a template is one is found out by trying it. The engine asks through `readable`, and may
then say contents as text whatever the template is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sterna.base.errors import Error
from sterna.text.template import Template

_PROBE = "is this shown?"


@dataclass(frozen=True, slots=True)
class PartsTemplate:
    """A template whose texts become lists of one part."""

    inner: Template

    @property
    def variables(self) -> frozenset[str]:
        return self.inner.variables

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **extra: Any,
    ) -> str:
        return self.inner.render(
            [_in_parts(message) for message in messages],
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            **extra,
        )


def readable(template: Template | None) -> Template | None:
    """The template, or one around it that says texts as it wants them."""
    if template is None or _shows(template):
        return template
    wrapped = PartsTemplate(template)
    return wrapped if _shows(wrapped) else template


def _shows(template: Template) -> bool:
    try:
        return _PROBE in template.render([{"role": "user", "content": _PROBE}])
    except Error:
        return False


def _in_parts(message: Mapping[str, Any]) -> Mapping[str, Any]:
    content = message.get("content")
    if not isinstance(content, str):
        return message
    return {**message, "content": [{"type": "text", "text": content}]}
