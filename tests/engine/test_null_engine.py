"""The engine that a user gets who asks for the null device: everything but a model."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from sterna import Embedder, Engine
from sterna.base.errors import Error, RequestError, UsageError
from sterna.engine.null_model import NULL
from sterna.engine.options import EngineOptions

ASK = [{"role": "user", "content": "Is anybody there?"}]


@pytest.fixture(scope="module")
def engine():
    with Engine(device=NULL, mode="server") as engine:
        yield engine


def said(engine, **fields):
    return engine.chat.completions.create(messages=ASK, **fields).choices[0].message.content


def test_an_answer_is_words_and_always_the_same(engine):
    greedy = [said(engine, temperature=0, max_tokens=60, ignore_eos=True) for _ in range(2)]
    assert greedy[0] == greedy[1]
    assert 50 < len(greedy[0]) <= 60  # an end that is ignored is no letter
    assert " " in greedy[0]
    assert set(greedy[0]) <= set("abcdefghijklmnopqrstuvwxyz ")
    seeded = [said(engine, seed=seed, max_tokens=60, ignore_eos=True) for seed in (1, 1, 2)]
    assert seeded[0] == seeded[1] != seeded[2]
    with Engine(device=NULL) as other:
        assert said(other, temperature=0, max_tokens=60, ignore_eos=True) == greedy[0]


def test_answers_end(engine):
    answer = engine.chat.completions.create(messages=ASK, n=8, seed=3)
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}


def test_other_questions_have_other_answers(engine):
    asked = [f"question {i}" for i in range(20)]

    def one(prompt):
        return (
            engine.completions.create(prompt=prompt, temperature=0, max_tokens=24).choices[0].text
        )

    alone = [one(prompt) for prompt in asked]
    assert len(set(alone)) == len(asked)
    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(one, asked)) == alone


def test_tools_and_schemas_hold(engine):
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    tool = {"type": "function", "function": {"name": "count", "parameters": schema}}
    answer = engine.chat.completions.create(messages=ASK, tools=[tool], tool_choice="required")
    for call in answer.choices[0].message.tool_calls:
        assert call.function.name == "count"
        assert json.loads(call.function.arguments)["n"] in (1, 2)
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    assert json.loads(said(engine, response_format=form)) in ({"n": 1}, {"n": 2})


@pytest.mark.parametrize(
    "asked",
    [
        lambda: Engine("./some/model", device=NULL),
        lambda: Engine(model_lib="./some.so", device=NULL),
        lambda: Engine(device=NULL, options=EngineOptions(kv_dtype="q8")),
        lambda: Engine(device=NULL, options=EngineOptions(threads=2)),
        lambda: Embedder(NULL, device=NULL),
    ],
)
def test_what_needs_a_model_is_refused(asked):
    with pytest.raises((RequestError, UsageError), match=r"null|embeddings"):
        asked()


def test_memory_bounds_its_cache():
    with Engine(device=NULL, options=EngineOptions(memory=64 * 128)) as engine:
        assert engine.metrics()["pages_total"] == 64
    with pytest.raises(Error, match="room"):
        Engine(device=NULL, options=EngineOptions(memory=1))
