"""Answers taken apart: thoughts, speech and calls, however the text is cut into pieces."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna.base.errors import RequestError
from sterna.engine.chat_parser import ChatParser
from sterna.engine.dialect import read_dialect
from sterna.engine.reasoning import Start, start_of, thinks
from sterna.engine.tool_syntax import OWN, ToolSyntax, read_syntax
from sterna.text.chat_template import ChatTemplate

NATIVE = {
    "Qwen-Qwen2.5-7B-Instruct",
    "Qwen-Qwen3-0.6B",
    "meta-llama-Llama-3.1-8B-Instruct",
    "meta-llama-Llama-3.2-3B-Instruct",
    "mistralai-Mistral-Nemo-Instruct-2407",
}
THINKING = {
    "HuggingFaceTB-SmolLM3-3B",
    "Qwen-Qwen3-0.6B",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B",
}
SPECIALS = ["<|im_end|>", "<|eot_id|>", "<|eom_id|>", "</s>", "[TOOL_CALLS]", "<end_of_turn>"]
MISTRAL = ToolSyntax(
    '{"name": "', '", "arguments": ', '"}', "[TOOL_CALLS][", ", ", "]", before_id=', "id": "'
)
LLAMA = ToolSyntax('{"name": "', '", "parameters": ', "}", separator="", several=False)
CALLS = [("weather", '{"city": "}\\"</tool_call>"}'), ("clock", "{}")]


def template(shared: Path, name: str) -> ChatTemplate:
    source = (shared / "chat-templates" / f"{name}.jinja").read_text()
    return ChatTemplate({"default": source}, {"bos_token": "<s>", "eos_token": "</s>"})


def names(shared: Path) -> list[str]:
    return sorted(path.stem for path in (shared / "chat-templates").glob("*.jinja"))


def with_ids(syntax: ToolSyntax, calls: list[tuple[str, str]]) -> str:
    if syntax.before_id is None:
        return syntax.written(calls)
    texts = [
        f"{syntax.before_name}{n}{syntax.between}{a}{syntax.before_id}abcdefgh{i}{syntax.after}"
        for i, (n, a) in enumerate(calls)
    ]
    return syntax.begin + syntax.separator.join(texts) + syntax.end


def parsed(text: str, start: Start, tools: ToolSyntax | None, cuts: list[int] = ()):
    """(thought, speech, calls) of a text that comes in pieces."""
    parser, thought, speech, calls = ChatParser(start, tools), "", "", []
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    pieces = [parser.put(text[a:b]) for a, b in pairwise(places)] + [parser.finish()]
    for piece in pieces:
        thought += piece.thought
        speech += piece.speech
        for call in piece.calls:
            if call.name is not None:
                assert call.index == len(calls)
                calls.append([call.name, ""])
            calls[call.index][1] += call.arguments
    return thought, speech, [tuple(call) for call in calls]


CASES = [
    ("Hello.  ", Start.SPEECH, None, ("", "Hello.  ", [])),
    ("<think>x</think>y", Start.SPEECH, None, ("", "<think>x</think>y", [])),
    ("<think>\nhm\n</think>\n\nyes ", Start.EITHER, None, ("hm", "yes ", [])),
    ("  yes <think>", Start.EITHER, None, ("", "  yes <think>", [])),
    ("<thin", Start.EITHER, None, ("", "<thin", [])),
    ("", Start.EITHER, None, ("", "", [])),
    ("hm\n</think>\n\nyes", Start.THOUGHT, None, ("hm", "yes", [])),
    ("never </thin", Start.THOUGHT, None, ("never </thin", "", [])),
    ("a </think> b </think> c", Start.THOUGHT, None, ("a", "b </think> c", [])),
    ("a <tool b ", Start.SPEECH, OWN, ("", "a <tool b ", [])),
    (OWN.written(CALLS), Start.SPEECH, OWN, ("", "", CALLS)),
    ("Let me see.\n\n" + OWN.written(CALLS), Start.SPEECH, OWN, ("", "Let me see.", CALLS)),
    ("<think>t</think>\n" + OWN.written(CALLS), Start.EITHER, OWN, ("t", "", CALLS)),
    (with_ids(MISTRAL, CALLS), Start.SPEECH, MISTRAL, ("", "", CALLS)),
    (LLAMA.written(CALLS[:1]), Start.SPEECH, LLAMA, ("", "", CALLS[:1])),
    ("See " + LLAMA.written(CALLS[:1]), Start.SPEECH, LLAMA,
     ("", "See " + LLAMA.written(CALLS[:1]), [])),
    ("t</think> " + LLAMA.written(CALLS[:1]), Start.THOUGHT, LLAMA, ("t", "", CALLS[:1])),
    ('<tool_call>\n{"name": "f", "arguments": {"a": [1, {"b', Start.SPEECH, OWN,
     ("", "", [("f", '{"a": [1, {"b')])),
]  # fmt: skip


@pytest.mark.parametrize(("text", "start", "tools", "wanted"), CASES)
def test_parts(text, start, tools, wanted):
    assert parsed(text, start, tools) == wanted
    assert parsed(text, start, tools, list(range(len(text)))) == wanted


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(CASES), st.lists(st.integers(0, 120), max_size=6))
def test_cuts_do_not_matter(case, cuts):
    text, start, tools, wanted = case
    assert parsed(text, start, tools, cuts) == wanted


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<tool_call>", '\n{"name": "', '"', " ", "x",
                              '", "arguments": ', "{", "}", "\n"]), max_size=12),
    st.sampled_from(list(Start)),
    st.sampled_from([None, OWN, LLAMA, MISTRAL]),
    st.lists(st.integers(0, 60), max_size=4),
)  # fmt: skip
def test_any_text_is_taken_apart_the_same_however_cut(words, start, tools, cuts):
    text = "".join(words)
    assert parsed(text, start, tools, cuts) == parsed(text, start, tools)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(
            st.from_regex(r"[a-zA-Z0-9_-]{1,12}", fullmatch=True),
            st.dictionaries(st.text(max_size=4), st.recursive(
                st.none() | st.booleans() | st.integers() | st.text(max_size=6),
                lambda inner: st.lists(inner, max_size=2), max_leaves=3), max_size=3),
        ),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from([OWN, LLAMA, MISTRAL]),
)  # fmt: skip
def test_what_is_written_is_read_again(calls, syntax):
    written = [(name, json.dumps(arguments)) for name, arguments in calls]
    written = written if syntax.several else written[:1]
    assert parsed(with_ids(syntax, written), Start.SPEECH, syntax) == ("", "", written)


def test_every_template_is_understood(shared):
    native = {n for n in names(shared) if read_syntax(template(shared, n), SPECIALS).native}
    thinking = {n for n in names(shared) if thinks(template(shared, n))}
    assert (native, thinking) == (NATIVE, THINKING)


@pytest.mark.parametrize("name", sorted(NATIVE))
def test_calls_as_a_template_writes_them_are_read(shared, name):
    """What the template makes of an answer with calls is taken apart to the same calls."""
    jinja = template(shared, name)
    syntax = read_syntax(jinja, SPECIALS)
    count = 2 if syntax.several else 1
    calls = [("weather", '{"city": "Zürich"}'), ("clock", '{"zone": {"utc": [1, 2]}}')][:count]
    rendered = [
        {
            "id": f"abcdefgh{i}",
            "type": "function",
            "function": {"name": n, "arguments": a if syntax.text_arguments else json.loads(a)},
        }
        for i, (n, a) in enumerate(calls)
    ]
    user = {"role": "user", "content": "Rain?"}
    tool = {"type": "function", "function": {"name": "weather", "parameters": {}}}
    prompt = jinja.render([user], tools=[tool])
    answer = {"role": "assistant", "content": "", "tool_calls": rendered}
    text = jinja.render([user, answer], tools=[tool], add_generation_prompt=False)
    assert text.startswith(prompt)
    body = text.removeprefix(prompt)
    assert parsed(body, Start.EITHER if thinks(jinja) else Start.SPEECH, syntax)[2] == calls


def test_starts(shared):
    hello = [{"role": "user", "content": "Hello"}]
    wanted = {
        "Qwen-Qwen3-0.6B": (Start.EITHER, Start.SPEECH),
        "HuggingFaceTB-SmolLM3-3B": (Start.EITHER, Start.SPEECH),
        "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": (Start.THOUGHT, Start.THOUGHT),
        "Qwen-Qwen2.5-7B-Instruct": (Start.SPEECH, Start.SPEECH),
    }
    for name, starts in wanted.items():
        jinja = template(shared, name)
        prompts = [jinja.render(hello), jinja.render(hello, enable_thinking=False)]
        assert tuple(start_of(prompt, thinks(jinja)) for prompt in prompts) == starts


def test_dialects(shared):
    gemma = read_dialect(template(shared, "google-gemma-2-2b-it"), SPECIALS)
    assert (gemma.tools, gemma.has_system) == (OWN, False)
    assert read_dialect(None, []).tools is OWN


class Refusing:
    """A template that takes nothing."""

    variables = frozenset({"messages"})

    def render(self, messages, **_):
        raise RequestError("no")


def test_a_template_that_refuses_everything_says_nothing():
    dialect = read_dialect(Refusing(), [])
    assert (dialect.tools, dialect.thinks, dialect.has_system) == (OWN, False, False)
