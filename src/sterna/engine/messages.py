"""A request's messages as the plain data that chat templates take.

In: typed messages, the tools on offer and the dialect of the model. Out: dictionaries. Where the
template knows no tools they are written into the conversation: what they are and how to call them
into the system message, calls and results into the turns of assistant and user. Renders nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from sterna.base.errors import RequestError
from sterna.engine import api_request as ask
from sterna.engine.dialect import Dialect
from sterna.engine.offer import plain_tools
from sterna.engine.tool_syntax import OWN, ToolSyntax

Plain = dict[str, Any]

_RESULT = "<tool_response>\n{}\n</tool_response>"


def plain_messages(
    messages: Sequence[ask.Message],
    tools: Sequence[ask.FunctionDefinition],
    dialect: Dialect,
) -> list[Plain]:
    """Messages for the template; `tools` are those that it does not show by itself."""
    names: dict[str, str] = {}
    plain = [_message(i, m, dialect.tools, names) for i, m in enumerate(messages)]
    if dialect.tools.native:
        return plain
    plain = list(_merged_results(plain))
    return _with_tools(plain, tools, dialect) if tools else plain


def _message(index: int, message: ask.Message, syntax: ToolSyntax, names: dict[str, str]) -> Plain:
    """One message; `names` collects the tools' names by the ids of their calls."""
    match message:
        case ask.SystemMessage() | ask.DeveloperMessage():
            return _named(message, {"role": "system", "content": _text(message.content)})
        case ask.UserMessage():
            return _named(message, {"role": "user", "content": _content(message.content)})
        case ask.AssistantMessage():
            names |= {call.id: call.function.name for call in message.tool_calls or ()}
            return _named(message, _assistant(index, message, syntax))
        case ask.ToolMessage():
            return _result(message, syntax, names)


def _assistant(index: int, message: ask.AssistantMessage, syntax: ToolSyntax) -> Plain:
    where = f"messages[{index}]"
    if message.content is None and not message.tool_calls:
        raise RequestError(f"{where} has neither content nor tool calls", f"{where}.content")
    plain: Plain = {"role": "assistant", "content": _text(message.content or "")}
    if message.reasoning_content:
        plain["reasoning_content"] = message.reasoning_content
    if not message.tool_calls:
        return plain
    parsed = [
        _arguments(f"{where}.tool_calls[{i}].function.arguments", call.function.arguments)
        for i, call in enumerate(message.tool_calls)
    ]
    if not syntax.native:
        calls = [(call.function.name, call.function.arguments) for call in message.tool_calls]
        plain["content"] = "\n".join(filter(None, (plain["content"], OWN.written(calls))))
        return plain
    plain["tool_calls"] = [
        {
            "id": call.id,
            "type": "function",
            "function": {
                "name": call.function.name,
                "arguments": call.function.arguments if syntax.text_arguments else arguments,
            },
        }
        for call, arguments in zip(message.tool_calls, parsed)
    ]
    return plain


def _arguments(where: str, text: str) -> Plain:
    try:
        return msgspec.json.decode(text, type=Plain)
    except (msgspec.DecodeError, RecursionError) as error:
        raise RequestError(f"{where} is no JSON object ({error})", where) from None


def _result(message: ask.ToolMessage, syntax: ToolSyntax, names: dict[str, str]) -> Plain:
    content = _text(message.content)
    if not syntax.native:
        return {"role": "user", "content": _RESULT.format(content), "result": True}
    name = message.name or names.get(message.tool_call_id)
    plain = {"role": "tool", "content": content, "tool_call_id": message.tool_call_id}
    return plain | ({"name": name} if name else {})


def _merged_results(messages: Iterable[Plain]) -> Iterable[Plain]:
    """Results that follow each other are one turn: many templates want turns to alternate."""
    merged: list[Plain] = []
    for message in messages:
        if message.get("result") and merged and merged[-1].get("result"):
            merged[-1]["content"] += "\n" + message["content"]
        else:
            merged.append(message)
    return ({k: v for k, v in message.items() if k != "result"} for message in merged)


def _with_tools(
    messages: list[Plain], tools: Sequence[ask.FunctionDefinition], dialect: Dialect
) -> list[Plain]:
    """Put the tools into the first system message, or before the first words of the user."""
    described = _described(tools)
    role = "system" if dialect.has_system else "user"
    for message in messages:
        if message["role"] == role:
            message["content"] = _joined(message["content"], described, last=role == "system")
            return messages
    return [{"role": role, "content": described}, *messages]


def _joined(content: str | list[Plain], added: str, *, last: bool) -> str | list[Plain]:
    """A message's content with a paragraph more, before it or behind."""
    if isinstance(content, str):
        return "\n\n".join([content, added] if last else [added, content])
    text = {"type": "text", "text": f"\n\n{added}" if last else f"{added}\n\n"}
    return [*content, text] if last else [text, *content]


def _described(tools: Sequence[ask.FunctionDefinition]) -> str:
    lines = [msgspec.json.encode(tool["function"]).decode() for tool in plain_tools(tools)]
    example = OWN.written([("NAME", "{...}")])
    return "\n".join(
        [
            "You can call these functions, given with JSON schemas of their arguments:",
            *lines,
            f"To call one, answer with its name and its arguments like this:\n{example}",
        ]
    )


def _text(content: ask.Text) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _content(content: ask.Content) -> str | list[Plain]:
    """Text, or the parts of a message with images, of which templates see the places alone."""
    if isinstance(content, str):
        return content
    if not any(isinstance(part, ask.ImagePart) for part in content):
        return "".join(part.text for part in content if isinstance(part, ask.TaggedText))
    return [
        {"type": "image"}
        if isinstance(part, ask.ImagePart)
        else {"type": "text", "text": part.text}
        for part in content
    ]


def image_urls(messages: Sequence[ask.Message]) -> dict[str, str]:
    """The images of a conversation in order, by the names of their fields."""
    return {
        f"messages[{i}].content[{j}].image_url.url": part.image_url.url
        for i, message in enumerate(messages)
        if isinstance(message, ask.UserMessage) and not isinstance(message.content, str)
        for j, part in enumerate(message.content)
        if isinstance(part, ask.ImagePart)
    }


def _named(message: ask.Message, plain: Plain) -> Plain:
    return plain | ({"name": message.name} if message.name else {})
