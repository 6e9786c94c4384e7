"""`sterna serve` as a process with a real model: tools and schemas through OpenAI's client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest
from running import Process, sterna_serve

pytestmark = pytest.mark.slow
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "the weather of some days in a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "enum": ["Oslo", "Rome"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 7},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
NAMED = {"type": "function", "function": {"name": "weather"}}
QUESTION: Any = [{"role": "user", "content": "What is the weather?"}]


@pytest.fixture(scope="module")
def client(demo_process: Process) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{demo_process.url}/v1", api_key="any", max_retries=0)


def ask(client: openai.OpenAI, process: Process, **fields: Any) -> Any:
    given = {"model": process.model, "messages": QUESTION, "temperature": 0, "max_tokens": 120}
    return client.chat.completions.create(**given | fields)


def valid(arguments: str) -> bool:
    found = json.loads(arguments)
    return found["city"] in ("Oslo", "Rome") and found["days"] in range(1, 8) and len(found) == 2


def test_an_answer(client: openai.OpenAI, demo_process: Process) -> None:
    question = [{"role": "user", "content": "What is 12 + 30?"}]
    assert "42" in ask(client, demo_process, messages=question).choices[0].message.content


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}]
)
def test_tools(client: openai.OpenAI, demo_process: Process, choice: Any) -> None:
    fields = {"tools": [WEATHER], "tool_choice": choice}
    (made,) = ask(client, demo_process, **fields).choices
    assert made.finish_reason in ("tool_calls", "stop")
    first = made.message.tool_calls[0]
    assert (first.type, first.function.name) == ("function", "weather")
    assert valid(first.function.arguments)
    pieces = ""
    for chunk in ask(client, demo_process, stream=True, **fields):
        for call in chunk.choices[0].delta.tool_calls or ():
            pieces += (call.function.arguments or "") if call.index == 0 else ""
    assert pieces == first.function.arguments
    answered = [
        *QUESTION,
        made.message,
        *(
            {"role": "tool", "tool_call_id": c.id, "content": "sun"}
            for c in made.message.tool_calls
        ),
    ]
    again = ask(client, demo_process, messages=answered, tools=[WEATHER], tool_choice="none")
    assert again.choices[0].message.tool_calls is None


def test_a_schema_through_the_parser(client: openai.OpenAI, demo_process: Process) -> None:
    class Day(pydantic.BaseModel):
        warm: bool
        degrees: int

    given: Any = {"model": demo_process.model, "messages": QUESTION, "temperature": 0}
    made = client.chat.completions.parse(response_format=Day, **given)
    assert isinstance(made.choices[0].message.parsed, Day)
    text = client.responses.parse(
        model=demo_process.model, input="What is the weather?", text_format=Day, temperature=0
    )
    assert isinstance(text.output_parsed, Day)


def test_a_schema_that_cannot_be_enforced(client: openai.OpenAI, demo_process: Process) -> None:
    schema = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    with pytest.raises(openai.BadRequestError, match="uniqueItems"):
        ask(client, demo_process, response_format=form)


def test_calls_in_a_response(client: openai.OpenAI, demo_process: Process) -> None:
    tool: Any = {"type": "function", "strict": True, **WEATHER["function"]}
    given: Any = {"model": demo_process.model, "input": "What is the weather?", "temperature": 0}
    made = client.responses.create(tools=[tool], tool_choice="required", **given)
    calls: Any = [item for item in made.output if item.type == "function_call"]
    assert calls
    assert all(valid(call.arguments) for call in calls)
    outputs = [
        {"type": "function_call_output", "call_id": c.call_id, "output": "sun"} for c in calls
    ]
    items = [{"role": "user", "content": "What is the weather?"}, *made.output, *outputs]
    again = client.responses.create(**given | {"input": items, "max_output_tokens": 20})
    assert again.output_text


def test_reuse_is_told(client: openai.OpenAI, demo_process: Process) -> None:
    question: Any = [{"role": "user", "content": "Tell me a story of a very small dog. " * 4}]
    first, second = (ask(client, demo_process, messages=question, max_tokens=4) for _ in range(2))
    assert first.choices[0].message == second.choices[0].message
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert second.usage.prompt_tokens - 1 >= cached > second.usage.prompt_tokens // 2


def test_a_fingerprint_is_told(client: openai.OpenAI, demo_process: Process) -> None:
    prints = {ask(client, demo_process, max_tokens=2).system_fingerprint for _ in range(2)}
    assert len(prints) == 1
    assert None not in prints


def test_a_port_that_is_taken(demo_process: Process) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sterna", "serve", "--port", str(demo_process.port)],
        env=demo_process.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "choose another with --port" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_null_device_needs_no_model(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src"),
        "STERNA_CACHE": str(tmp_path / "cache"),
    }
    process, url = sterna_serve(environment, "--device", "null", "one=null", "two=null")
    try:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="any")
        assert [model.id for model in client.models.list()] == ["one", "two"]
        asked: Any = [{"role": "user", "content": "hello"}]
        one, two = (
            client.chat.completions.create(model=model, messages=asked, temperature=0)
            for model in ("one", "two")
        )
        assert one.choices[0].message.content == two.choices[0].message.content
        assert one.choices[0].finish_reason == "stop"
    finally:
        process.terminate()
        assert process.wait(30) == 0
        assert process.stderr is not None
        process.stderr.close()
    assert not (tmp_path / "cache").exists(), "nothing was made"
