"""Which tools an answer may or must call, out of a request's `tools` and `tool_choice`.

In: a chat request. Out: an `Offer`, or None where no tool can be called; RequestError for choices
that cannot be met. Knows no templates and no grammars.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from sterna.base.errors import RequestError
from sterna.engine import api_request as ask


@dataclass(frozen=True, slots=True)
class Offer:
    """The model is shown all tools and may call those in `callable`."""

    shown: tuple[ask.FunctionDefinition, ...]
    callable: tuple[ask.FunctionDefinition, ...]
    must: bool
    several: bool


def offer_of(request: ask.ChatFields) -> Offer | None:
    """With `tool_choice` none the model is not even shown the tools."""
    tools = tuple(tool.function for tool in request.tools or ())
    choice = request.tool_choice
    if not tools:
        _refuse_without_tools(request)
        return None
    repeated = [name for name, n in Counter(tool.name for tool in tools).items() if n > 1]
    if repeated:
        raise RequestError(f"tools has several functions named {repeated[0]!r}", "tools")
    several = request.parallel_tool_calls is not False
    if choice == "none":
        return None
    if isinstance(choice, ask.NamedTool):
        return Offer(tools, _named(tools, [choice.function.name]), must=True, several=False)
    if isinstance(choice, ask.AllowedToolsChoice):
        allowed = choice.allowed_tools
        names = [tool.function.name for tool in allowed.tools]
        return Offer(tools, _named(tools, names), allowed.mode == "required", several)
    return Offer(tools, tools, choice == "required", several)


def plain_tools(tools: Sequence[ask.FunctionDefinition]) -> list[dict[str, Any]]:
    """Tools as templates take them: OpenAI's objects, without what was not given."""
    return [{"type": "function", "function": _plain(tool)} for tool in tools]


def _plain(tool: ask.FunctionDefinition) -> dict[str, Any]:
    given = msgspec.structs.asdict(tool)
    given["parameters"] = tool.parameters or {"type": "object", "properties": {}}
    return {key: value for key, value in given.items() if value is not None and key != "strict"}


def _named(
    tools: Sequence[ask.FunctionDefinition], names: Sequence[str]
) -> tuple[ask.FunctionDefinition, ...]:
    known = {tool.name: tool for tool in tools}
    for name in names:
        if name not in known:
            raise RequestError(
                f"tool_choice names the function {name!r:.80}, tools has {', '.join(known)}",
                "tool_choice",
            )
    return tuple(known[name] for name in dict.fromkeys(names))


def _refuse_without_tools(request: ask.ChatFields) -> None:
    if request.tool_choice not in (None, "none", "auto"):
        raise RequestError("tool_choice asks for a call, but there are no tools", "tool_choice")
    if request.parallel_tool_calls is not None:
        raise RequestError("parallel_tool_calls needs tools", "parallel_tool_calls")
