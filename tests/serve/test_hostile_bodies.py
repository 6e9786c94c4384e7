"""Bodies that nobody sends in good faith: each is a 400 with a sentence, never a 500."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running import HELLO, Running

CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
DEEP = b"[" * 10**6 + b"]" * 10**6


def with_field(name: str, value: bytes) -> bytes:
    plain = json.dumps({"messages": HELLO, "max_tokens": 2}).encode()
    return plain[:-1] + b', "%b": %b}' % (name.encode(), value)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"1",
        b'"messages"',
        DEEP,
        b"[" * 10**6,
        b'{"messages": ' + DEEP + b"}",
        b'{"unknown": ' + DEEP + b"}",
        b'{"a":' * 10**5,
        with_field("tools", DEEP),
        with_field("metadata", b'{"a":' * 500 + b"1" + b"}" * 500),
        with_field("temperature", b"NaN"),
        with_field("temperature", b"-Infinity"),
        with_field("temperature", b"1e999"),
        with_field("temperature", b"true"),
        with_field("temperature", b'"1"'),
        with_field("max_tokens", b"9" * 5000),
        with_field("max_tokens", b"1" * 30 + b".5"),
        with_field("max_tokens", b"0"),
        with_field("max_tokens", b"-1"),
        with_field("max_tokens", b"1.5"),
        with_field("seed", b"9" * 40),
        with_field("n", b"0"),
        with_field("n", b"100000"),
        with_field("n", b"1" * 5000),
        with_field("logit_bias", b'{"-1": 1}'),
        with_field("logit_bias", b'{"99999999999": 1}'),
        with_field("logit_bias", b'{"1": 1e300}'),
        with_field("top_logprobs", b"5"),
        with_field("stop", b"[" + b",".join([b'"x"'] * 100) + b"]"),
        with_field("stop", b'"\\ud800"'),
        with_field("stream", b'"yes"'),
        with_field("stream_options", b"3"),
        with_field("messages", b"[]"),
        with_field("messages", b'[{"role": "user", "content": "\\ud800"}]'),
        with_field("messages", b'[{"role": "user", "content": "\xed\xa0\x80"}]'),
        with_field("messages", b'[{"role": "user", "content": "\xff"}]'),
        with_field("messages", b'[{"role": "user"}]'),
        with_field("messages", b'[{"role": "user", "content": [{"type": "image_url"}]}]'),
        with_field("messages", b"{}"),
        with_field("model", b"[]"),
        with_field("self", b"1"),
        with_field("kwargs", b"1"),
        with_field("audio", b"{}"),
        with_field("store", b"true"),
        with_field("", b"1"),
        b"\xef\xbb\xbf{}",
        b"\x00",
        b"{}" * 2,
    ],
    ids=lambda body: str(body[:60]),
)
def test_a_body_is_refused(null_server: Running, body: bytes) -> None:
    refused = null_server.ask(CHAT, body)
    assert refused.status in (400, 404), refused.body
    assert refused.error["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": ""},
        {"prompt": []},
        {"prompt": [[]]},
        {"prompt": [1, "a", [2]]},
        {"prompt": [-1]},
        {"prompt": [10**10]},
        {"prompt": [True]},
        {"prompt": "x", "suffix": "y"},
        {"prompt": "x", "best_of": 3},
        {"prompt": "x", "logprobs": 21},
        {"prompt": "x" * 300},
        {"prompt": None},
        {"prompt": ["a"] * 2000},
        {"prompt": ["a"] * 20, "n": 100},
    ],
    ids=lambda fields: str(fields)[:60],
)
def test_a_completion_is_refused(null_server: Running, fields: dict[str, Any]) -> None:
    refused = null_server.ask(TEXT, fields)
    assert refused.status == 400, refused.body
    assert refused.error["type"] == "invalid_request_error"


def test_the_window_is_named_with_the_prompts_length(null_server: Running) -> None:
    error = null_server.ask(TEXT, {"prompt": "x" * 300}).error
    assert "300" in error["message"]
    assert "256" in error["message"]
    assert error["code"] == "context_length_exceeded"


def test_other_kinds_of_body(null_server: Running) -> None:
    body = json.dumps({"messages": HELLO}).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        assert null_server.ask(CHAT, body, headers={"content-type": kind}).status == 415
    packed = {"content-encoding": "gzip"}
    assert null_server.ask(CHAT, body, headers=packed).status == 415


def test_routes_and_methods(null_server: Running) -> None:
    for path in ("/", "/nothing", "/v1", "/v1/chat/completions/", "/..%2f..%2fetc/passwd"):
        missing = null_server.ask(path)
        assert missing.status == 404, path
        assert missing.error["message"]
    wrong = null_server.ask(CHAT)
    assert (wrong.status, wrong.headers["allow"]) == (405, "POST")
    assert null_server.ask("/v1/models/absent").error["code"] == "model_not_found"


def test_tokens_there_and_back(null_server: Running) -> None:
    text = "naïve \U0001f600"
    made = null_server.ask("/tokenize", {"prompt": text, "return_token_strs": True}).json
    assert made["count"] == len(made["tokens"]) == len(made["token_strs"])
    assert null_server.ask("/detokenize", {"tokens": made["tokens"]}).json == {"prompt": text}
    chat = null_server.ask("/tokenize", {"messages": HELLO}).json["tokens"]
    assert bytes(chat).decode() == "user: hello\nassistant:"
    both = {"prompt": "x", "messages": HELLO}
    for wrong in ({}, both, {"prompt": "x", "tools": []}, {"messages": [{"role": 1}]}):
        assert null_server.ask("/tokenize", wrong).status == 400
    for wrong in ([-1], [10**9], ["a"], [1.5], [300]):
        assert null_server.ask("/detokenize", {"tokens": wrong}).status == 400


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
names = st.sampled_from(
    [
        "messages",
        "prompt",
        "input",
        "tools",
        "tool_choice",
        "response_format",
        "stop",
        "stream",
        "logit_bias",
        "temperature",
        "n",
        "max_tokens",
        "logprobs",
        "model",
        "stream_options",
        "text",
    ]
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    path=st.sampled_from([CHAT, TEXT, RESPONSES, "/tokenize", "/detokenize"]),
    fields=st.dictionaries(names, anything, max_size=4),
)
def test_no_body_is_our_mistake(null_server: Running, path: str, fields: dict[str, Any]) -> None:
    body = {"max_tokens": 2, "messages": HELLO} | fields if path == CHAT else fields
    status = null_server.ask(path, body).status
    assert status in (200, 400, 404)
