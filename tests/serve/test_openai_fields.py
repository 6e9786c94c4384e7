"""Every field that OpenAI's own client knows is supported or refused by name, never ignored.

The fields are read from the types of the installed `openai` package. Each is sent with a value that
none of them takes, so the answer has to be a 400 that names the field.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import (
    chat_completion_content_part_param,
    chat_completion_message_param,
    chat_completion_tool_choice_option_param,
    chat_completion_tool_union_param,
)
from openai.types.chat import (
    completion_create_params as chat_create_params,
)
from openai.types.responses import (
    response_create_params,
    response_input_item_param,
    response_text_config_param,
    tool_choice_allowed_param,
    tool_param,
)
from openai.types.shared_params import reasoning as reasoning_param
from running import HELLO, Running

from sterna.engine.api_request import (
    CHAT_REFUSED,
    COMPLETION_REFUSED,
    ChatRequest,
    CompletionRequest,
)
from sterna.serve.responses_schema import REFUSED, ResponsesRequest
from sterna.serve.schema import EmbeddingsRequest

JUNK = [[["junk"]]]
ROUTES: dict[str, tuple[Any, dict[str, Any], set[str]]] = {
    "/v1/chat/completions": (
        chat_create_params.CompletionCreateParamsStreaming,
        {"messages": HELLO},
        {*ChatRequest.__struct_fields__, *CHAT_REFUSED},
    ),
    "/v1/completions": (
        completion_create_params.CompletionCreateParamsStreaming,
        {"prompt": "hello"},
        {*CompletionRequest.__struct_fields__, *COMPLETION_REFUSED},
    ),
    "/v1/responses": (
        response_create_params.ResponseCreateParamsStreaming,
        {"input": "hello"},
        {*ResponsesRequest.__struct_fields__, *REFUSED},
    ),
    "/v1/embeddings": (
        embedding_create_params.EmbeddingCreateParams,
        {"input": "hello"},
        set(EmbeddingsRequest.__struct_fields__),
    ),
}
# Objects inside a request: the types they may have, and where they stand.
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
INSIDE: dict[str, tuple[str, Any, tuple[str | int, ...]]] = {
    "messages": (CHAT, chat_completion_message_param.ChatCompletionMessageParam, ("messages", 0)),
    "parts": (
        CHAT,
        chat_completion_content_part_param.ChatCompletionContentPartParam,
        ("messages", 0, "content", 0),
    ),
    "tools": (CHAT, chat_completion_tool_union_param.ChatCompletionToolUnionParam, ("tools", 0)),
    "tool_choice": (
        CHAT,
        chat_completion_tool_choice_option_param.ChatCompletionToolChoiceOptionParam,
        ("tool_choice",),
    ),
    "response_format": (CHAT, chat_create_params.ResponseFormat, ("response_format",)),
    "items": (RESPONSES, response_input_item_param.ResponseInputItemParam, ("input", 0)),
    "response tools": (RESPONSES, tool_param.ToolParam, ("tools", 0)),
    "allowed tools": (
        RESPONSES,
        tool_choice_allowed_param.ToolChoiceAllowedParam,
        ("tool_choice",),
    ),
    "text": (RESPONSES, response_text_config_param.ResponseTextConfigParam, ("text",)),
    "reasoning": (RESPONSES, reasoning_param.Reasoning, ("reasoning",)),
}
BASES: dict[str, dict[str, Any]] = {
    CHAT: {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
        "tools": [1],
    },
    RESPONSES: {"input": [{"role": "user", "content": "x"}], "tools": [1]},
}


def typed_dicts(kind: Any) -> Iterator[Any]:
    if hasattr(kind, "__total__"):
        yield kind
    for inner in get_args(kind) if get_origin(kind) is not Literal else ():
        yield from typed_dicts(inner)


def literals(kind: Any) -> tuple[Any, ...]:
    if get_origin(kind) is Literal:
        return get_args(kind)
    return next((found for inner in get_args(kind) if (found := literals(inner))), ())


def fields(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=False)


def placed(base: dict[str, Any], path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    body: Any = copy.deepcopy(base)
    *way, last = path
    at = body
    for step in way:
        at = at[step]
    at[last] = value
    if path[0] != "tools":
        body.pop("tools", None)
    return body


@pytest.mark.parametrize("route", ROUTES)
def test_every_field_of_a_request_has_a_place_or_a_reason(route: str) -> None:
    kind, _, known = ROUTES[route]
    assert sorted(fields(kind).keys() - known) == []


@pytest.mark.parametrize("route", ROUTES)
def test_no_field_is_ignored(null_server: Running, route: str) -> None:
    kind, body, _ = ROUTES[route]
    for name in fields(kind):
        answer = null_server.ask(route, {**body, name: JUNK})
        assert answer.status in (400, 404), f"{name} was ignored"
        told = answer.error["message"]
        assert name in told or (answer.error["param"] or "").startswith(name), (name, told)


@pytest.mark.parametrize("inside", INSIDE)
def test_no_field_of_a_part_is_ignored(null_server: Running, inside: str) -> None:
    route, union, path = INSIDE[inside]
    seen = 0
    for kind in typed_dicts(union):
        hints = fields(kind)
        tag = {
            name: literals(hints[name])[0]
            for name in ("role", "type")
            if name in hints and literals(hints[name])
        }
        for name in hints:
            answer = null_server.ask(route, placed(BASES[route], path, {**tag, name: JUNK}))
            assert answer.status == 400, f"{kind.__name__}.{name} was ignored: {answer.body!r}"
            told = f"{answer.error['message']} {answer.error['param']}"
            refused = tag and any(str(value) in told for value in tag.values())
            assert refused or name in told or str(path[0]) in told, (kind.__name__, name, told)
            seen += 1
    assert seen
