"""OpenAI's responses through its own client: whole, streamed, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from running import MODEL, scripted, start

from sterna.engine.api import (
    ChatCompletionChunk,
    ChoiceDelta,
    ChunkChoice,
    FunctionDelta,
    ToolCallDelta,
)
from sterna.serve.errors import HttpError
from sterna.serve.responses import Writer, empty, read
from sterna.serve.responses_input import chat_fields

WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    server = start(scripted())
    yield openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)
    server.stop()


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    given: dict[str, Any] = {"model": MODEL, "input": "hello", "temperature": 0}
    return client.responses.create(**given | fields)


def test_a_response(client: openai.OpenAI) -> None:
    response = ask(client, metadata={"a": "b"}, user="me")
    assert response.output_text == "ok, fine!"
    assert response.status == "completed"
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert (response.metadata, response.user, response.store) == ({"a": "b"}, "me", False)
    cut = ask(client, max_output_tokens=2)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert cut.output_text == "ok"


def test_a_stream_adds_up_to_the_same(client: openai.OpenAI) -> None:
    whole, events = ask(client), list(ask(client, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    deltas = [e.delta for e in events if e.type == "response.output_text.delta"]
    last = events[-1].response
    assert "".join(deltas) == last.output_text == whole.output_text
    assert last.usage == whole.usage or last.usage.input_tokens_details.cached_tokens
    assert events[-1].type == f"response.{whole.status}"


def test_the_clients_stream_helper(client: openai.OpenAI) -> None:
    with client.responses.stream(model=MODEL, input="hello") as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == "ok, fine!"


def test_logprobs(client: openai.OpenAI) -> None:
    response = ask(client, top_logprobs=2, include=["message.output_text.logprobs"])
    part = response.output[0].content[0]
    assert part.logprobs
    assert {len(token.top_logprobs) for token in part.logprobs} == {2}


def test_a_conversation_comes_back_as_it_went(client: openai.OpenAI) -> None:
    first = ask(client)
    items = [{"role": "user", "content": "hello"}, *first.output, {"role": "user", "content": "?"}]
    assert ask(client, input=items).status in ("completed", "incomplete")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"truncation": "auto"}, "truncation"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0]",
        ),
        ({"input": [{"role": "user", "content": "x", "extra": 1}]}, "input[0]"),
        ({"extra_body": {"frequency_penalty": 1}}, "frequency_penalty"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
    ],
)
def test_refused_by_name(client: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, **fields)
    assert refused.value.param is not None
    assert refused.value.param.startswith(param)


def test_calls_and_outputs_become_a_chat() -> None:
    request = read(
        {
            "instructions": "be brief",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
                {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]},
                {"type": "function_call", "call_id": "a", "name": "weather", "arguments": "{}"},
                {"type": "function_call", "call_id": "b", "name": "weather", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "a", "output": "sun"},
                {"type": "function_call_output", "call_id": "b", "output": "rain"},
                {"role": "assistant", "content": "both"},
                {"role": "assistant", "content": "again"},
            ],
            "tools": [WEATHER],
            "tool_choice": {"type": "function", "name": "weather"},
            "text": {"format": {"type": "json_schema", "name": "n", "schema": {}, "strict": True}},
            "max_output_tokens": 9,
        }
    )
    asked = chat_fields(request)
    roles = [message["role"] for message in asked["messages"]]
    assert roles == ["system", "user", "assistant", "tool", "tool", "assistant", "assistant"]
    called = asked["messages"][2]
    assert [call["id"] for call in called["tool_calls"]] == ["a", "b"]
    assert called["reasoning_content"] == "hm"
    assert asked["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
    assert asked["tools"][0]["function"]["parameters"] == WEATHER["parameters"]
    assert asked["response_format"]["json_schema"]["schema"] == {}
    assert asked["max_tokens"] == 9


def chunk(delta: ChoiceDelta, finish: Any = None) -> ChatCompletionChunk:
    choice = ChunkChoice(index=0, delta=delta, finish_reason=finish)
    return ChatCompletionChunk(id="c", model="m", created=0, choices=[choice])


def test_thinking_text_and_calls_are_items_in_order() -> None:
    writer = Writer(empty(read({"input": "x", "tools": [WEATHER]}), "m"))
    opening = FunctionDelta(name="weather", arguments="")
    chunks = [
        chunk(ChoiceDelta(role="assistant", content="")),
        chunk(ChoiceDelta(reasoning_content="let me ")),
        chunk(ChoiceDelta(reasoning_content="see")),
        chunk(ChoiceDelta(content="I ask")),
        chunk(
            ChoiceDelta(
                tool_calls=[ToolCallDelta(index=0, id="call_1", type="function", function=opening)]
            )
        ),
        chunk(
            ChoiceDelta(tool_calls=[ToolCallDelta(index=0, function=FunctionDelta(arguments="{}"))])
        ),
        chunk(
            ChoiceDelta(
                tool_calls=[ToolCallDelta(index=1, id="call_2", type="function", function=opening)]
            )
        ),
        chunk(ChoiceDelta(), "tool_calls"),
    ]
    events = [*writer.begin(), *(e for c in chunks for e in writer.put(c)), *writer.end()]
    kinds = [item.__struct_config__.tag for item in writer.response.output]
    assert kinds == ["reasoning", "message", "function_call", "function_call"]
    assert [item.status for item in writer.response.output] == ["completed"] * 4
    assert writer.response.status == "completed"
    reasoning, message, first, second = writer.response.output
    assert reasoning.content[0].text == "let me see"  # type: ignore[union-attr]
    assert message.content[0].text == "I ask"  # type: ignore[union-attr]
    assert (first.call_id, first.arguments, second.call_id) == ("call_1", "{}", "call_2")  # type: ignore[union-attr]
    added = [e.item for e in events if e.type == "response.output_item.added"]
    assert len(added) == 4
    assert added[1].content == []  # type: ignore[union-attr]


def test_a_failure_is_an_event() -> None:
    writer = Writer(empty(read({"input": "x"}), "m"))
    event = writer.fail(HttpError(503, "no more"))
    assert event.type == "response.failed"
    assert writer.response.error is not None
    assert writer.response.error.message == "no more"
