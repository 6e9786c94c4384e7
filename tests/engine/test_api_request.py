"""Requests as types: what the OpenAPI document says of them is what is checked."""

import dataclasses
import json

import jsonschema_rs
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna.base.errors import RequestError
from sterna.engine.api import Choice, Message
from sterna.engine.api_request import (
    CHAT_REFUSED,
    COMPLETION_REFUSED,
    ChatRequest,
    CompletionRequest,
    read_chat,
    read_completion,
    sampling_of,
)
from sterna.engine.options import SamplingOptions

ASK = [{"role": "user", "content": "x"}]
# Every field that OpenAI documents for the two routes.
CHAT = """audio frequency_penalty function_call functions logit_bias logprobs
max_completion_tokens max_tokens messages metadata modalities model n parallel_tool_calls prediction
presence_penalty prompt_cache_key prompt_cache_retention reasoning_effort response_format
safety_identifier seed service_tier stop store stream stream_options temperature tool_choice tools
top_logprobs top_p user verbosity web_search_options""".split()
COMPLETION = """best_of echo frequency_penalty logit_bias logprobs max_tokens model n
presence_penalty prompt seed stop stream stream_options suffix temperature top_p user""".split()
SCALARS = [f for f in dataclasses.fields(SamplingOptions) if f.metadata["kind"] in (int, float)]


def schema(kind):
    (_,), components = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    return {"$ref": f"#/$defs/{kind.__name__}", "$defs": components}


CHAT_SCHEMA = jsonschema_rs.validator_for(schema(ChatRequest))


def test_every_documented_field_is_supported_or_refused_by_name():
    chat = {*ChatRequest.__struct_fields__, *CHAT_REFUSED}
    assert [name for name in CHAT if name not in chat] == []
    completion = {*CompletionRequest.__struct_fields__, *COMPLETION_REFUSED}
    assert [name for name in COMPLETION if name not in completion] == []


@pytest.mark.parametrize("name", CHAT_REFUSED)
def test_refused_fields_say_why_and_null_is_nothing(name):
    with pytest.raises(RequestError, match=f"{name} is not supported: ") as caught:
        read_chat({"messages": ASK, name: {}})
    assert caught.value.param == name
    read_chat({"messages": ASK, name: None})


@pytest.mark.parametrize("option", SCALARS, ids=lambda option: option.name)
def test_ranges_are_those_of_the_options(option):
    lo, hi = option.metadata["lo"], option.metadata["hi"]
    probes = [v for v in (lo, hi) if v is not None and abs(v) < 2**63]
    outside = [lo - 1] if lo is not None and abs(lo) < 2**62 else []
    outside += [hi + 1] if hi is not None and hi < 2**62 else []
    extra = {"logprobs": True} if option.name == "top_logprobs" else {}
    for value in [*probes, *outside, "x", [], True]:
        request = {"messages": ASK, option.name: value} | extra
        assert CHAT_SCHEMA.is_valid(request) == fits(request), request


def fits(request):
    try:
        read_chat(request)
    except RequestError:
        return False
    return True


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-3, 3) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner,
                                                               max_size=2),
    max_leaves=4,
)  # fmt: skip
CHECKED_BY_TYPE = sorted(
    {*ChatRequest.__struct_fields__} - {f.name for f in dataclasses.fields(SamplingOptions)}
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.sampled_from([n for n in CHECKED_BY_TYPE if n != "messages"]), json_values)
def test_types_and_document_agree(name, value):
    request = {"messages": ASK, name: value}
    assert CHAT_SCHEMA.is_valid(request) == fits(request), request


def test_sampling_options_are_taken_over():
    request = read_chat(
        {"messages": ASK, "temperature": 0, "stop": "x", "logit_bias": {"3": 1}, "n": 2}
    )
    assert sampling_of(request) == {
        "temperature": 0,
        "stop": ("x",),
        "logit_bias": {3: 1.0},
        "n": 2,
    }
    assert sampling_of(read_chat({"messages": ASK, "max_completion_tokens": 7})) == {
        "max_tokens": 7
    }
    completion = read_completion({"prompt": "x", "logprobs": 3})
    assert sampling_of(completion) == {"logprobs": True, "top_logprobs": 3}


def test_results_print_as_openai_has_them():
    message = Message(role="assistant", content="x", refusal=None)
    choice = Choice(index=0, message=message, finish_reason="stop")
    plain = json.loads(choice.model_dump_json())
    assert plain["message"] == {"role": "assistant", "content": "x", "refusal": None}
    read_chat({"messages": [*ASK, message]})
