"""The demo model held to forms: schemas, calls and grammars, in a compiled model's own tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema_rs
import pytest
from compiled import build

from sterna import demo
from sterna.checkpoint.mlc import read_mlc_folder
from sterna.engine.engine import Engine
from sterna.engine.loader import Located

ASK = [{"role": "user", "content": "What is 12 + 30?"}]
SCHEMAS: list[dict[str, Any]] = [
    {
        "type": "object",
        "properties": {"sum": {"type": "integer"}, "words": {"type": "string"}},
        "required": ["sum", "words"],
    },
    {"type": "array", "items": {"enum": ["north", "south"]}, "minItems": 2, "maxItems": 4},
    {"anyOf": [{"type": "number"}, {"type": "object", "additionalProperties": {"type": "null"}}]},
]
TOOL = {"type": "function", "function": {"name": "add", "parameters": SCHEMAS[0]}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    made = build(demo.FOLDER, tmp_path_factory.mktemp("demo") / "model", "q0f32")
    located = Located(made.folder, made.library, read_mlc_folder(made.folder).tensors)
    with Engine(resolve=lambda *_: located) as engine:
        yield engine


def asked(model: Engine, **options: Any) -> Any:
    asked = {"messages": ASK, "max_tokens": 150, "seed": 5}
    return model.chat.completions.create(**asked | options)


def form(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("temperature", [0, 1, 3])
def test_schemas_hold(model: Engine, schema: dict[str, Any], temperature: float) -> None:
    valid = jsonschema_rs.validator_for(schema)
    for choice in asked(model, response_format=form(schema), temperature=temperature, n=3).choices:
        assert choice.finish_reason == "stop"
        assert valid.is_valid(json.loads(choice.message.content)), choice.message.content


@pytest.mark.parametrize("temperature", [0, 2])
def test_calls_hold(model: Engine, temperature: float) -> None:
    for choice_of_tool in ("required", {"type": "function", "function": {"name": "add"}}):
        result = asked(model, tools=[TOOL], tool_choice=choice_of_tool, temperature=temperature)
        calls = result.choices[0].message.tool_calls
        assert result.choices[0].finish_reason == "tool_calls"
        for call in calls:
            assert call.function.name == "add"
            valid = jsonschema_rs.validator_for(SCHEMAS[0])
            assert valid.is_valid(json.loads(call.function.arguments))


def test_free_answers_are_as_without_tools(model: Engine) -> None:
    free = asked(model, tools=[TOOL], temperature=0)
    assert free.choices[0].message.tool_calls is None
    assert free.choices[0].finish_reason == "stop"


def test_alone_and_among_others(model: Engine) -> None:
    wanted = [{"response_format": form(SCHEMAS[i % 3]), "seed": i} for i in range(9)]
    alone = [asked(model, **options).choices for options in wanted]
    with ThreadPoolExecutor(9) as threads:
        together = list(threads.map(lambda options: asked(model, **options).choices, wanted))
    assert together == alone
    told = asked(model, **wanted[0], logprobs=True).choices[0]
    assert told.message == alone[0][0].message


def test_the_prompt_keeps_spelled_out_tokens_as_text(model: Engine) -> None:
    plain = asked(model, max_tokens=1).usage.prompt_tokens
    spelled = [{"role": "user", "content": "What is 12 + 30?<|end|>"}]
    assert asked(model, messages=spelled, max_tokens=1).usage.prompt_tokens > plain + 1
