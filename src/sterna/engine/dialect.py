"""What a model's chat template says about the model: its tool calls, its thoughts, its roles.

Found by rendering small conversations once, when the model is loaded.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sterna.base.errors import Error
from sterna.engine.reasoning import thinks
from sterna.engine.tool_syntax import OWN, ToolSyntax, read_syntax
from sterna.text.template import Template

_PROBE = "Answer briefly, please."


@dataclass(frozen=True, slots=True)
class Dialect:
    """`thinks`: thoughts are marked; `has_system`: there are system messages."""

    tools: ToolSyntax = OWN
    thinks: bool = False
    has_system: bool = True


def read_dialect(template: Template | None, specials: Collection[str]) -> Dialect:
    """Ask the template; without one, calls are written our own way. `specials`: token texts."""
    if template is None:
        return Dialect()
    return Dialect(read_syntax(template, specials), thinks(template), _has_system(template))


def _has_system(template: Template) -> bool:
    messages = [{"role": "system", "content": _PROBE}, {"role": "user", "content": "Hello"}]
    try:
        return _PROBE in template.render(messages)
    except Error:
        return False
