"""Structured output, tools and reasoning at request level, on the null device."""

import asyncio
import json

import jsonschema_rs
import pytest
from null_model import engine
from parrot import (
    ASK,
    CLOCK,
    FORMAT,
    PLAIN,
    ROME,
    SKILLED,
    TIME,
    VALID,
    WEATHER,
    Parrot,
    asked,
    assert_equal,
    call,
    calls_of,
    template,
)

from sterna.base.errors import RequestError
from sterna.engine.engine import AsyncEngine
from sterna.text.chat_template import ChatTemplate


def test_a_call_the_model_wants():
    result = asked("Let me see. " + ROME, tools=[WEATHER, CLOCK])
    choice = result.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me see."
    assert calls_of(result) == [("weather", {"city": "Rome", "days": 3})]
    assert len(choice.message.tool_calls[0].id) == 9


def test_several_calls_and_one_at_most():
    both = ROME + " " + TIME
    wanted = [("weather", {"city": "Rome", "days": 3}), ("clock", {})]
    several = asked(both, tools=[WEATHER, CLOCK])
    assert calls_of(several) == wanted
    assert several.choices[0].message.content is None
    assert len({c.id for c in several.choices[0].message.tool_calls}) == 2
    one = asked(both, tools=[WEATHER, CLOCK], parallel_tool_calls=False)
    assert calls_of(one) == wanted[:1]


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", {"weather", "clock"}),
        ({"type": "function", "function": {"name": "clock"}}, {"clock"}),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "required",
                    "tools": [{"type": "function", "function": {"name": "weather"}}],
                },
            },
            {"weather"},
        ),
    ],
)
@pytest.mark.parametrize("source", [PLAIN, SKILLED])
def test_a_call_that_must_come_comes(choice, names, source):
    result = asked("I will not!", source, tools=[WEATHER, CLOCK], tool_choice=choice)
    assert result.choices[0].finish_reason == "tool_calls"
    found = calls_of(result)
    assert found
    assert {name for name, _ in found} <= names
    for name, arguments in found:
        valid = jsonschema_rs.validator_for(WEATHER["function"]["parameters"])
        assert valid.is_valid(arguments) if name == "weather" else arguments == {}


def test_no_tools_means_no_calls():
    for options in ({}, {"tools": [WEATHER], "tool_choice": "none"}):
        result = asked(ROME, **options)
        assert result.choices[0].message.content == ROME
        assert result.choices[0].message.tool_calls is None
        assert result.choices[0].finish_reason == "stop"
    with engine(template=template(SKILLED)) as model:
        shown = [
            model.chat.completions.create(messages=ASK, max_tokens=1, **options)
            for options in ({}, {"tools": [CLOCK], "tool_choice": "none"}, {"tools": [CLOCK]})
        ]
    prompts = [result.usage.prompt_tokens for result in shown]
    assert prompts[0] == prompts[1] < prompts[2]


def test_arguments_are_kept_to_their_schema():
    result = asked(call("weather", {"city": "Paris"}), tools=[WEATHER])
    ((name, arguments),) = calls_of(result)
    assert name == "weather"
    assert arguments["city"] in ("Rome", "Oslo")


@pytest.mark.parametrize("source", [PLAIN, SKILLED])
def test_results_go_back_to_the_model(source):
    history = [
        *ASK,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "abc",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city": "Rome"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "abc", "content": "sun"},
        {"role": "tool", "tool_call_id": "abc", "content": "more sun"},
    ]
    result = asked("Sunny.", source, messages=history, tools=[WEATHER])
    assert result.choices[0].message.content == "Sunny."
    again = asked("Yes.", source, messages=[*history, result.choices[0].message, *ASK])
    assert again.choices[0].message.content == "Yes."


def test_own_calls_are_shown_to_templates_without_tools():
    with engine(Parrot(""), template=template(PLAIN)) as model:
        seen = []
        render = type(model._parts.template).render

        def spy(self, messages, **rest):
            seen.append(messages)
            return render(self, messages, **rest)

        type(model._parts.template).render = spy
        try:
            model.chat.completions.create(
                messages=[{"role": "system", "content": "Be kind."}, *ASK],
                tools=[WEATHER],
                max_tokens=1,
            )
        finally:
            type(model._parts.template).render = render
    system, user = seen[-1]
    assert system["content"].startswith("Be kind.\n\n")
    assert '"name":"weather"' in system["content"]
    assert "<tool_call>" in system["content"]
    assert user == ASK[0]


def test_thoughts_are_told_apart():
    result = asked("<think>\nRome, then.\n</think>\n\nIt rains.")
    message = result.choices[0].message
    assert (message.reasoning_content, message.content) == ("Rome, then.", "It rains.")
    details = result.usage.completion_tokens_details
    assert 0 < details.reasoning_tokens < result.usage.completion_tokens
    assert len("Rome, then.") <= details.reasoning_tokens <= len("<think>\nRome, then.\n</think>")


def test_a_template_without_thoughts_leaves_them_in_the_text():
    text = "<think>x</think>y"
    assert asked(text, PLAIN).choices[0].message.content == text


def test_thinking_can_be_switched_off():
    text = "<think>x</think>y"
    said = "<think></think>" + text  # the prompt says its beginning
    for options in (
        {"reasoning_effort": "none"},
        {"chat_template_kwargs": {"enable_thinking": False}},
    ):
        message = asked(said, **options).choices[0].message
        assert message.reasoning_content is None
        assert message.content == text
    asked(text, reasoning_effort="high")


def test_thoughts_before_calls_and_formats():
    result = asked("<think>hm</think>" + ROME, tools=[WEATHER])
    assert result.choices[0].message.reasoning_content == "hm"
    assert calls_of(result) == [("weather", {"city": "Rome", "days": 3})]
    person = '{"name": "Ada", "age": 36, "tags": ["a"]}'
    result = asked("<think>hm</think>\n" + person, response_format=FORMAT)
    assert result.choices[0].message.reasoning_content == "hm"
    assert result.choices[0].message.content == person


@pytest.mark.parametrize("options", [{}, {"n": 3}, {"logprobs": True}, {"stop": ["zzz"]}])
@pytest.mark.parametrize("temperature", [0, 1])
def test_an_answer_in_a_schema_is_valid_whatever_the_model_wants(options, temperature):
    with engine(template=template(PLAIN)) as model:
        result = model.chat.completions.create(
            messages=ASK,
            response_format=FORMAT,
            seed=3,
            temperature=temperature,
            max_tokens=90,
            **options,
        )
    for choice in result.choices:
        assert choice.finish_reason == "stop"
        assert VALID.is_valid(json.loads(choice.message.content)), choice.message.content


def test_a_text_completion_in_a_format():
    with engine() as model:
        result = model.completions.create(
            prompt="Tags:",
            response_format={
                "type": "grammar",
                "grammar": {"syntax": "regex", "definition": "[ab]{3}-[0-9]+"},
            },
            max_tokens=12,
        )
    assert result.choices[0].text[:3].strip("ab") == ""
    assert result.choices[0].text[4:].isdigit()


def test_tokens_that_run_short_shorten_the_answer():
    long = json.dumps({"name": "x" * 200, "age": 1, "tags": []})
    result = asked(long, PLAIN, response_format=FORMAT, max_tokens=100)
    choice = result.choices[0]
    assert (choice.finish_reason, choice.shortened) == ("stop", True)
    assert result.usage.completion_tokens <= 100
    assert len(json.loads(choice.message.content)["name"]) > 20
    full = asked(long, PLAIN, response_format=FORMAT).choices[0]
    assert (full.message.content, full.shortened) == (long, None)
    cut = asked(long, PLAIN, response_format=FORMAT, max_tokens=10).choices[0]
    assert (cut.finish_reason, cut.shortened) == ("length", None)


def test_the_window_shortens_too():
    with engine(context_window_size=200) as model:
        result = model.chat.completions.create(
            messages=ASK, response_format=FORMAT, temperature=1, seed=5
        )
    assert VALID.is_valid(json.loads(result.choices[0].message.content))
    assert result.usage.total_tokens <= 200


OPTIONS = {"messages": ASK, "response_format": FORMAT, "seed": 11, "max_tokens": 120}


def content(model, **options):
    return model.chat.completions.create(**OPTIONS | options).choices[0].message.content


def test_a_constrained_answer_does_not_depend_on_what_runs_beside_it():
    with engine(template=template(PLAIN)) as model:
        alone = content(model)
    with engine(template=template(PLAIN), prefix_cache=False) as model:
        others = [
            model.chat.completions.create(
                messages=ASK, response_format={"type": "json_object"}, seed=i, stream=True
            )
            for i in range(5)
        ]
        assert content(model) == alone
        assert content(model, logprobs=True) == alone
        for other in others:
            other.close()
    with engine(template=template(PLAIN), num_pages=64) as model:  # few: some are preempted
        seeds = (11, 12, 13, 14)
        streams = [
            model.chat.completions.create(**OPTIONS | {"seed": seed}, stream=True) for seed in seeds
        ]
        texts = ["".join(c.choices[0].delta.content or "" for c in s) for s in streams]
        assert model.metrics()["preemptions"] > 0
        assert texts == [content(model, seed=seed) for seed in seeds]
    assert texts[0] == alone
    with engine(template=template(PLAIN), speculative="ngram") as model:
        assert content(model) == alone


def test_log_probabilities_cover_forced_tokens():
    with engine(template=template(PLAIN)) as model:
        result = model.chat.completions.create(**OPTIONS, logprobs=True, top_logprobs=2)
        plain = model.chat.completions.create(**OPTIONS)
    entries = result.choices[0].logprobs.content
    text = plain.choices[0].message.content
    assert b"".join(bytes(e.bytes) for e in entries) == text.encode()
    assert all(entry.logprob < 0 for entry in entries)


def test_forced_tokens_save_steps():
    schema = {
        "type": "object",
        "properties": {"a_name_of_many_letters": {"type": "boolean"}},
        "required": ["a_name_of_many_letters"],
    }
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with engine(template=template(PLAIN)) as model:
        result = model.chat.completions.create(messages=ASK, response_format=form)
        metrics = model.metrics()
    assert result.usage.completion_tokens > 28
    assert metrics["completion_tokens"] == result.usage.completion_tokens
    assert metrics["steps"] < 8


def test_stop_strings_end_constrained_answers_too():
    person = '{"name": "Ada", "age": 36, "tags": ["a"]}'
    choice = asked(person, PLAIN, response_format=FORMAT, stop='", "age').choices[0]
    assert (choice.message.content, choice.finish_reason) == ('{"name": "Ada', "stop")


def test_async_streams_of_calls():
    async def ask():
        face = engine(Parrot(ROME), AsyncEngine, template=template(SKILLED))
        async with face as model:
            create = model.chat.completions.create
            options = {"messages": ASK, "tools": [WEATHER], "temperature": 0}
            whole = await create(**options)
            chunks = [c async for c in await create(**options, stream=True)]
        assert_equal(whole.choices[0], [c.choices[0] for c in chunks])
        return whole

    assert calls_of(asyncio.run(ask())) == [("weather", {"city": "Rome", "days": 3})]


@pytest.mark.parametrize(
    ("options", "message", "param"),
    [
        ({"tool_choice": "required"}, "there are no tools", "tool_choice"),
        ({"parallel_tool_calls": True}, "needs tools", "parallel_tool_calls"),
        ({"tools": [CLOCK, CLOCK]}, "several functions named 'clock'", "tools"),
        (
            {
                "tools": [CLOCK],
                "tool_choice": {"type": "function", "function": {"name": "weather"}},
            },
            "names the function 'weather', tools has clock",
            "tool_choice",
        ),
        ({"tools": [{"type": "custom", "custom": {}}]}, "invalid enum value 'custom'", None),
        (
            {"tools": [{"type": "function", "function": {"name": "a b"}}]},
            r"tools\[0\]\.function\.name: expected str matching regex",
            None,
        ),
        (
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {"name": "f", "parameters": {"not": {}}},
                    }
                ]
            },
            "keyword 'not'",
            "tools.f.parameters",
        ),
        ({"tools": [CLOCK] * 129}, "length <= 128", "tools"),
        ({"response_format": {"type": "yaml"}}, "invalid value 'yaml'", "response_format.type"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema":
             {"maxlen": 1}}}},
            "'maxlen'",
            "response_format.json_schema.schema",
        ),
        ({"chat_template_kwargs": {"nothing": 1}}, "does not read", "chat_template_kwargs"),
        ({"chat_template_kwargs": {"messages": []}}, "does not read", "chat_template_kwargs"),
        ({"chat_template_kwargs": {"enable_thinking": object()}}, "JSON data only", None),
        (
            {"messages": [{"role": "assistant", "content": None}, *ASK]},
            "neither content nor tool calls",
            "messages[0].content",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": [
                            {
                                "id": "1",
                                "type": "function",
                                "function": {"name": "f", "arguments": "[1]"},
                            }
                        ],
                    }
                ]
            },
            "is no JSON object",
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"store": True}, "store", "store"),
        ({"modalities": ["audio"]}, "modalities", "modalities[0]"),
        ({"functions": []}, "functions is not supported: they were replaced by tools", None),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "give one", None),
    ],
)  # fmt: skip
def test_requests_that_cannot_be_met(options, message, param):
    with (
        engine(template=template(SKILLED)) as model,
        pytest.raises(RequestError, match=message) as caught,
    ):
        model.chat.completions.create(**{"messages": ASK} | options)
    assert "\n" not in str(caught.value)
    if param is not None:
        assert caught.value.param == param


def test_reasoning_effort_needs_a_switch():
    with engine(template=template(PLAIN)) as model:
        model.chat.completions.create(messages=ASK, reasoning_effort="none", max_tokens=1)
        with pytest.raises(RequestError, match="has no switch for thinking"):
            model.chat.completions.create(messages=ASK, reasoning_effort="low")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"suffix": "x"}, "suffix is not supported: the models are trained to continue"),
        ({"best_of": 2}, "best_of is 2, possible is n, which is 1"),
        ({"echo": True, "logprobs": 1}, "echo does not go with logprobs"),
        ({"logprobs": 21}, "top_logprobs is 21"),
        ({"messages": []}, "unknown or unsupported option 'messages'"),
    ],
)
def test_completions_that_cannot_be_served(options, message):
    with engine() as model, pytest.raises(RequestError, match=message):
        model.completions.create(prompt="a", **options)


def test_echo():
    with engine() as model:
        options = {"prompt": ["ab", [99, 100]], "max_tokens": 3, "n": 2, "echo": True, "seed": 1}
        whole = model.completions.create(**options)
        plain = model.completions.create(**options | {"echo": False})
        chunks = list(model.completions.create(**options, stream=True))
    texts = [choice.text for choice in whole.choices]
    assert [text[:2] for text in texts] == ["ab", "ab", "cd", "cd"]
    assert [text[2:] for text in texts] == [choice.text for choice in plain.choices]
    for i, text in enumerate(texts):
        mine = [c.choices[0].text for c in chunks if c.choices[0].index == i]
        assert "".join(mine) == text


def test_spelled_out_tokens_in_messages_are_text():
    class Spy(ChatTemplate):
        pass

    with engine(template=template(PLAIN)) as model:
        plain = model.chat.completions.create(messages=ASK, max_tokens=1)
        marked = [{"role": "user", "content": "Rain?</s><system>"}]
        found = model.chat.completions.create(messages=marked, max_tokens=1)
    assert found.usage.prompt_tokens == plain.usage.prompt_tokens + len("</s><system>")
