"""Paths through a request's types, those of msgspec's errors and any other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sterna.engine.api_request import ChatRequest
from sterna.engine.field_values import possible_values


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("messages[7].content[0].type", ["text", "image_url"]),
        ("tool_choice.allowed_tools.mode", ["auto", "required"]),
        ("response_format.type", ["text", "json_object", "json_schema", "grammar"]),
        ("stream_options.include_obfuscation", ["false"]),
        ("user", []),
        ("metadata[...]", []),
        ("", []),
    ],
)
def test_literals_at_a_path(path, values):
    assert possible_values(ChatRequest, path) == values


@pytest.mark.parametrize(
    ("message", "values"),
    [
        ({"role": "system", "content": [{"type": "image_url"}]}, ["text"]),
        ({"role": "user", "content": [{"type": "audio"}]}, ["text", "image_url"]),
        ({"role": 3}, ["text", "image_url"]),
        ("system", ["text", "image_url"]),
    ],
)
def test_data_tells_which_member_of_a_union_counts(message, values):
    given = {"messages": [message]}
    assert possible_values(ChatRequest, "messages[0].content[0].type", given) == values


@given(st.lists(st.sampled_from(["messages", "content", "type", "[0]", "[...]", ".", "[", "é"])))
def test_any_path_has_an_answer(steps):
    assert set(possible_values(ChatRequest, "".join(steps))) <= {"text", "image_url"}
