"""A response's request as the chat request that it means.

In: ResponsesRequest. Out: keywords of `chat.completions.create`. Items that one assistant said in
a row (its thinking, its text, its calls) are one message of a chat. HttpError names the item that
cannot be read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from sterna.serve.errors import HttpError
from sterna.serve.responses_schema import (
    ITEMS,
    InputCall,
    InputCallOutput,
    InputItem,
    InputMessage,
    InputReasoning,
    InputText,
    OutputOfCall,
    OutputTextBack,
    ResponsesRequest,
)

Fields = dict[str, Any]

_SAME = (
    *("temperature", "top_p", "parallel_tool_calls", "metadata", "user", "safety_identifier"),
    *("prompt_cache_key", "prompt_cache_retention", "service_tier", "store"),
)


def chat_fields(request: ResponsesRequest) -> Fields:
    """Only fields that were given."""
    found: Fields = {name: getattr(request, name) for name in _SAME}
    found["max_tokens"] = request.max_output_tokens
    if request.reasoning is not None:
        found["reasoning_effort"] = request.reasoning.effort
    if request.include or request.top_logprobs is not None:
        found |= {"logprobs": True, "top_logprobs": request.top_logprobs}
    if request.tools:
        found["tools"] = [_tool(msgspec.to_builtins(tool)) for tool in request.tools]
    found["tool_choice"] = _tool_choice(msgspec.to_builtins(request.tool_choice))
    if request.text is not None and request.text.format is not None:
        found["response_format"] = _format(msgspec.to_builtins(request.text.format))
    given = {name: value for name, value in found.items() if value is not None}
    return {**given, "messages": list(_messages(request))}


def _tool(tool: Fields) -> Fields:
    kind = tool.pop("type")
    return {"type": kind, kind: tool}


def _tool_choice(choice: Any) -> Any:
    if not isinstance(choice, dict):
        return choice
    if choice["type"] == "function":
        return _tool(choice)
    tools = [_tool(tool) for tool in choice["tools"]]
    return {"type": "allowed_tools", "allowed_tools": {"mode": choice["mode"], "tools": tools}}


def _format(form: Fields) -> Fields:
    return _tool(form) if form["type"] == "json_schema" else form


def _messages(request: ResponsesRequest) -> Iterator[Fields]:
    if request.instructions is not None:
        yield {"role": "system", "content": request.instructions}
    if isinstance(request.input, str):
        yield {"role": "user", "content": request.input}
        return
    said: Fields = {}  # by the assistant, in the items before this one
    for item in _items(request.input):
        if _is_assistant(item) and not (said.get("content") and isinstance(item, InputMessage)):
            _add(said, item)
            continue
        if said:
            yield said
            said = {}
        if _is_assistant(item):
            _add(said, item)
        else:
            yield _other(item)
    if said:
        yield said


def _items(items: Sequence[Any]) -> Iterator[InputItem]:
    for index, item in enumerate(items):
        kind = item.get("type", "message")
        if not isinstance(kind, str) or kind not in ITEMS:
            raise HttpError(
                400,
                f"input[{index}] is of type {kind!r}, possible are {', '.join(ITEMS)}",
                f"input[{index}].type",
            )
        try:
            yield msgspec.convert(item, ITEMS[kind])
        except msgspec.ValidationError as error:
            text, _, path = str(error).partition(" - at `$")
            where = f"input[{index}]{path.rstrip('`')}"
            raise HttpError(400, f"{where}: {text[:1].lower()}{text[1:]}", where) from None


def _is_assistant(item: InputItem) -> bool:
    if isinstance(item, InputMessage):
        return item.role == "assistant"
    return not isinstance(item, InputCallOutput)


def _add(said: Fields, item: InputItem) -> None:
    said["role"] = "assistant"
    if isinstance(item, InputMessage):
        said["content"] = _text(item.content)
    elif isinstance(item, InputReasoning):
        thought = "".join(part.text for part in item.content or ())
        said["reasoning_content"] = said.get("reasoning_content", "") + thought
    elif isinstance(item, InputCall):
        function = {"name": item.name, "arguments": item.arguments}
        call = {"id": item.call_id, "type": "function", "function": function}
        said.setdefault("tool_calls", []).append(call)


def _other(item: InputItem) -> Fields:
    if isinstance(item, InputCallOutput):
        return {"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)}
    assert isinstance(item, InputMessage), "calls and reasoning are the assistant's"
    return {"role": item.role, "content": _text(item.content)}


def _text(content: str | list[InputText | OutputTextBack] | list[OutputOfCall]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)
