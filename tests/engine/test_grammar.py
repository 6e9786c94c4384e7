"""Grammars: whatever is drawn at random from their masks satisfies them; bad ones are refused."""

import contextlib
import json
import re
import time
from pathlib import Path

import jsonschema_rs
import numpy as np
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st
from null_model import EOS, VOCAB, ByteTokenizer
from random_schemas import larger, leaves
from schema_cases import SCHEMAS

from sterna.base.errors import RequestError
from sterna.engine import api_request as ask
from sterna.engine.grammar import Grammars
from sterna.engine.grammar_source import literal, of_format, of_tools
from sterna.engine.json_schema import ENFORCED, enforceable
from sterna.engine.offer import Offer
from sterna.engine.reasoning import Start
from sterna.engine.tool_syntax import OWN, ToolSyntax, read_syntax
from sterna.text.chat_template import ChatTemplate
from sterna.text.tokenizer import Tokenizer

DEMO = Path(__file__).parents[2] / "src" / "sterna" / "demo"
MISTRAL = ToolSyntax(
    '{"name": "', '", "arguments": ', '"}', "[TOOL_CALLS][", ", ", "]", before_id=', "id": "'
)
LLAMA = ToolSyntax('{"name": "', '", "parameters": ', "}", several=False)
WEATHER = ask.FunctionDefinition(
    name="weather",
    parameters={
        "type": "object",
        "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer"}},
        "required": ["city"],
    },
)
CLOCK = ask.FunctionDefinition(name="clock")


class Marked(ByteTokenizer):
    """Bytes, and `[TOOL_CALLS]` as a special token."""

    vocab_size = VOCAB + 1
    special_tokens = {"</s>": EOS, "[TOOL_CALLS]": VOCAB}  # noqa: RUF012

    def id_to_piece(self, token_id):
        return b"[TOOL_CALLS]" if token_id == VOCAB else super().id_to_piece(token_id)


@pytest.fixture(scope="module")
def demo() -> Grammars:
    tokenizer = Tokenizer.load(DEMO)
    return Grammars(tokenizer, tokenizer.vocab_size, frozenset(tokenizer.eos_ids))


@pytest.fixture(scope="module")
def bytewise() -> Grammars:
    return Grammars(ByteTokenizer(), VOCAB, frozenset({EOS}))


def schema_format(schema):
    return ask.JsonSchemaFormat(json_schema=ask.JsonSchema(name="x", schema=schema))


def grammar_format(syntax, definition):
    return ask.GrammarFormat(grammar=ask.GrammarDefinition(syntax=syntax, definition=definition))


def compiled(grammars, form, start=Start.SPEECH):
    source = of_format(form, start, {})
    return grammars.compile(source, "response_format")


def drawn(grammars, grammar, seed, limit=300):
    """Tokens at random, as an answer of `limit` tokens would take them; their bytes."""
    rng, constraint, tokens = np.random.default_rng(seed), grammar.start(), []
    while not constraint.finished:
        allowed = constraint.allowed()
        token = int(rng.choice(np.flatnonzero(allowed)))
        if token in grammars._end_ids:
            break
        constraint.advance(token)
        tokens.append(token)
        way_out = constraint.way_out()
        assert way_out is not None, "no way out"
        if not constraint._ending and len(tokens) + len(way_out) > limit - 30:
            constraint.end(way_out)
    return b"".join(grammars._tokens.tokens[i] for i in tokens)


def accepts(grammar, data: bytes) -> bool:
    """Whether these bytes, a token each, are an answer."""
    constraint = grammar.start()
    for token in data:
        if constraint.finished or not constraint.allowed()[token]:
            return False
        constraint.advance(token)
    return constraint.finished or bool(constraint.allowed()[EOS])


def finite(text):
    """A number of JSON may be larger than any float."""
    return float(np.clip(float(text), -1e300, 1e300))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(schema=st.recursive(leaves, larger, max_leaves=6), seed=st.integers(0, 2**32))
def test_whatever_a_schema_lets_through_satisfies_it(demo, schema, seed):
    note(f"{schema} {seed}")
    grammar = compiled(demo, schema_format(schema))
    value = json.loads(drawn(demo, grammar, seed), parse_float=finite)
    valid = jsonschema_rs.validator_for(schema, validate_formats=True)
    assert valid.is_valid(value), value


@pytest.mark.parametrize(("schema", "good", "bad"), SCHEMAS)
def test_schemas(bytewise, schema, good, bad):
    grammar = compiled(bytewise, schema_format(schema))
    assert [text for text in good if not accepts(grammar, text.encode())] == []
    assert [text for text in bad if accepts(grammar, text.encode())] == []


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"maxlen": 3}, "the keyword 'maxlen', which cannot be enforced; possible are"),
        ({"properties": {"a": {"uniqueItems": True}}}, r"schema\.properties\.a has the keyword"),
        ({"not": {}}, "'not'"),
        ({"type": "string", "nullable": True}, "'nullable'"),
        ({"x-guidance": {"lenient": True}, "type": "string"}, "'x-guidance'"),
        ({"type": "string", "format": "unheard-of"}, "Unknown format"),
        ({"type": "strnig"}, "Invalid type"),
        ({"$ref": "https://example.com/schema"}, "cannot be enforced"),
        ({"$ref": "#/nowhere"}, "cannot be enforced"),
        ({"$ref": "#"}, "cannot be enforced"),
        ({"enum": []}, "nsatisfiable"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "nsatisfiable"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "string", "pattern": "("}, "cannot be enforced"),
        (False, "is False, possible is a JSON schema object"),
        ({"enum": [{"a": "x" * 300_000}]}, "bytes, possible are up to 262144"),
        ({"const": float("nan")}, "cannot be enforced|satisf|JSON"),
    ],
)
def test_schemas_that_cannot_be_enforced(demo, schema, message):
    with pytest.raises(RequestError, match=message) as caught:
        compiled(demo, schema_format(schema))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 900


def nested(depth):
    schema = {}
    for _ in range(depth):
        schema = {"properties": {"a": schema}}
    return schema


def demo_source(schema):
    return json.dumps({"grammars": [{"name": "main", "json_schema": schema}]})


def test_every_keyword_that_is_let_through_is_known_to_the_library(demo):
    with pytest.raises(RequestError) as caught:
        demo.compile(demo_source({"contains": "odd"}), "x")
    assert "nimplemented" in str(caught.value)
    for keyword in ENFORCED:
        with contextlib.suppress(RequestError):
            demo.compile(demo_source({keyword: "odd"}), "x")
            continue
        with pytest.raises(RequestError) as caught:
            demo.compile(demo_source({keyword: "odd"}), "x")
        assert "nimplemented" not in str(caught.value), keyword


@pytest.mark.parametrize(
    "schema",
    [
        nested(10_000),
        {"anyOf": [{"const": i} for i in range(20_000)]},
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(2_000)}},
        {"type": "string", "pattern": "((a{1,300}){1,300}){1,300}"},
        {"type": "string", "pattern": "(a|b|c)*" * 300},
        {"type": "array", "minItems": 10**9, "items": {"type": "array", "minItems": 10**9}},
        {"$defs": {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(30)}
         | {"d30": {}}, "$ref": "#/$defs/d0"},
    ],
)  # fmt: skip
def test_hostile_schemas_cost_bounded_time(demo, schema):
    began = time.process_time()
    try:
        drawn_or_refused = compiled(demo, schema_format(schema))
    except RequestError as error:
        drawn_or_refused = error
    assert drawn_or_refused is not None
    assert time.process_time() - began < 10


def test_annotations_are_let_through():
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "T",
        "description": "D",
        "default": 1,
        "examples": [1],
        "deprecated": True,
        "type": "integer",
    }
    assert enforceable(schema, "s") == schema


def test_objects_are_closed_but_where_several_schemas_make_one():
    listed = {"type": "object", "properties": {"a": {"type": "object", "properties": {}}}}
    closed = enforceable(listed, "s")
    assert closed["additionalProperties"] is False
    assert closed["properties"]["a"]["additionalProperties"] is False
    opened = {"allOf": [listed, {"properties": {"b": {}}}]}
    assert enforceable(opened, "s") == opened
    assert "additionalProperties" not in enforceable({"properties": {}, "required": ["a"]}, "s")


@pytest.mark.parametrize(
    ("syntax", "definition", "good", "bad"),
    [
        ("regex", "[0-9]{2}/[a-z]+", ["12/ab"], ["1/a", "12/", "x12/ab"]),
        ("regex", 'a"b\\\\c', ['a"b\\c'], ["ab"]),
        ("lark", 'start: "yes" | "no" NUMBER?\nNUMBER: /[0-9]+/', ["yes", "no7"], ["maybe"]),
        ("ebnf", 'root ::= "a" [0-9]+ ("," root)?', ["a1", "a1,a22"], ["a", "a1,"]),
    ],
)
def test_grammars(bytewise, syntax, definition, good, bad):
    grammar = compiled(bytewise, grammar_format(syntax, definition))
    assert [text for text in good if not accepts(grammar, text.encode())] == []
    assert [text for text in bad if accepts(grammar, text.encode())] == []


@pytest.mark.parametrize(
    ("syntax", "definition"),
    [
        ("regex", "("),
        ("regex", "(?=a)"),
        ("regex", ""),
        ("lark", "start: nothing"),
        ("lark", 'start: "a'),
        ("lark", "  "),
        ("lark", 'start: start "a"'),
        ("lark", 'start: "a" start'),
        ("lark", 'start: "a"\n' * 20_000),
        ("ebnf", "root ::= ["),
        ("ebnf", "("),
        ("ebnf", "root ::= " + "(" * 5_000),
        ("regex", "x" * 200_000),
    ],
)
def test_grammars_that_make_no_sense(demo, syntax, definition):
    began = time.process_time()
    with pytest.raises(RequestError, match="response_format") as caught:
        compiled(demo, grammar_format(syntax, definition))
    assert "\n" not in str(caught.value)
    assert time.process_time() - began < 5


def test_nothing_is_constrained_by_text():
    assert of_format(None, Start.EITHER, {}) is None
    assert of_format(ask.TextFormat(), Start.SPEECH, {}) is None


def test_thoughts_come_before_the_constrained_answer(bytewise):
    form = schema_format({"type": "integer"})
    either = compiled(bytewise, form, Start.EITHER)
    opened = compiled(bytewise, form, Start.THOUGHT)
    assert accepts(either, b"12")
    assert accepts(either, b"<think>\nhm < 3\n</think>\n\n12")
    assert not accepts(either, b"<think>12")
    assert accepts(opened, b"hm</think>12")
    assert not accepts(opened, b"12")


def tools_grammar(
    grammars, syntax, *, must, several=True, start=Start.SPEECH, form=None, specials=()
):
    offer = Offer((WEATHER, CLOCK), (WEATHER, CLOCK), must, several)
    return grammars.compile(of_tools(offer, syntax, start, dict(specials), form), "tools")


ROME = b'<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
TIME = b'<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'


def test_calls_that_must_come(bytewise):
    grammar = tools_grammar(bytewise, OWN, must=True)
    assert accepts(grammar, ROME)
    assert accepts(grammar, ROME + b"\n" + TIME)
    assert not accepts(grammar, b"Hello")
    assert not accepts(grammar, ROME.replace(b"Rome", b"Paris"))
    assert not accepts(grammar, ROME.replace(b"weather", b"whether"))
    assert not accepts(tools_grammar(bytewise, OWN, must=True, several=False), ROME + b"\n" + TIME)


def test_calls_that_may_come(bytewise):
    grammar = tools_grammar(bytewise, OWN, must=False)
    for text in (b"Hello", b"", ROME, b"Let me see.\n" + ROME + b"\n" + TIME, b"a < b <tool"):
        assert accepts(grammar, text), text
    assert not accepts(grammar, b"Well <tool_call> or not")
    assert not accepts(grammar, ROME.replace(b"Rome", b"3"))


def test_calls_without_a_mark_come_first_or_not_at_all(bytewise):
    call = b'{"name": "weather", "parameters": {"city": "Oslo"}}'
    grammar = tools_grammar(bytewise, LLAMA, must=False)
    assert accepts(grammar, call)
    assert accepts(grammar, b'Like {"name": "x"}')
    assert not accepts(grammar, b'{"name": "x"}')
    thoughtful = tools_grammar(bytewise, LLAMA, must=False, start=Start.EITHER)
    assert accepts(thoughtful, b"<think>x</think>" + call)
    assert not accepts(thoughtful, b'<think>x</think>{"name": "x"}')


def test_calls_with_special_tokens_and_ids():
    tokenizer = Marked()
    grammars = Grammars(tokenizer, VOCAB + 1, frozenset({EOS}))
    specials = tokenizer.special_tokens
    assert literal("a[TOOL_CALLS]b", specials) == f'"a" <[{VOCAB}]> "b"'
    grammar = tools_grammar(grammars, MISTRAL, must=False, specials=specials)
    constraint = grammar.start()
    assert constraint.allowed()[VOCAB]
    for token in [*b"Hm.", VOCAB]:
        constraint.advance(token)
    assert bytes(constraint.forced).startswith(b'[{"name": "')
    call = b'[{"name": "clock", "arguments": {}, "id": "abcdefgh1"}]'
    for token in call:
        assert constraint.allowed()[token]
        constraint.advance(token)
    assert constraint.finished or constraint.allowed()[EOS]


def test_an_answer_in_a_format_in_place_of_calls(bytewise):
    form = schema_format({"type": "integer"})
    grammar = tools_grammar(bytewise, OWN, must=False, form=form)
    assert accepts(grammar, b"12")
    assert accepts(grammar, ROME)
    assert not accepts(grammar, b"Hello")


def test_parameters_must_be_an_object(bytewise):
    tool = ask.FunctionDefinition(name="f", parameters={"type": "array"})
    offer = Offer((tool,), (tool,), True, True)
    with pytest.raises(RequestError, match=r"tools\.f\.parameters has the type 'array'"):
        of_tools(offer, OWN, Start.SPEECH, {}, None)


def test_what_is_forced_is_not_asked_for(demo):
    schema = {"type": "object", "properties": {"a_long_name": {"type": "boolean"}},
              "required": ["a_long_name"]}  # fmt: skip
    constraint = compiled(demo, schema_format(schema)).start()
    text = b"".join(demo._tokens.tokens[i] for i in constraint.forced)
    assert text == b'{"a_long_name":'
    first = constraint.forced[0]
    assert np.flatnonzero(constraint.allowed()).tolist() == [first]


def test_the_way_out_is_short_and_ends(demo):
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}},
              "required": ["a", "b"]}  # fmt: skip
    constraint = compiled(demo, schema_format(schema)).start()
    while constraint.forced:
        constraint.advance(constraint.forced[0])
    path = constraint.way_out()
    assert path is not None
    assert len(path) < 12
    constraint.end(path)
    for token in path:
        assert np.flatnonzero(constraint.allowed()).tolist() == [token]
        constraint.advance(token)
    assert constraint.finished


@pytest.mark.parametrize(
    ("begun", "end"),
    [
        ('{"a', '": ""}'),
        ('{"a": "b', '"}'),
        ('{"a": [[{"b": 1', "}]]}"),
        ('{"a": 1, ', '"": ""}'),
    ],
)
def test_any_object_is_ended_soon(bytewise, begun, end):
    constraint = compiled(bytewise, ask.JsonObjectFormat()).start()
    for token in begun.encode():
        constraint.advance(token)
    assert bytes(constraint.way_out()) == end.encode()


@pytest.mark.parametrize("pattern", ["[0-9]+xyz", "(ab)*c{3}", "[^!]+!!", "a{40}"])
def test_patterns_are_ended_too(bytewise, pattern):
    constraint = compiled(bytewise, grammar_format("regex", pattern)).start()
    assert re.fullmatch(pattern, bytes(constraint.way_out()).decode())


def test_no_way_out_is_said():
    grammars = Grammars(ByteTokenizer(), VOCAB, frozenset({EOS}))
    constraint = compiled(grammars, grammar_format("regex", "[^!]{400}")).start()
    assert constraint.way_out() is None


def test_without_an_end_token_the_grammar_ends_by_itself():
    grammars = Grammars(ByteTokenizer(), EOS, frozenset())
    constraint = compiled(grammars, grammar_format("regex", "ab")).start()
    for token in b"ab":
        constraint.advance(token)
    assert constraint.finished


def test_equal_sources_are_compiled_once(demo):
    form = schema_format({"type": "integer", "minimum": 17})
    assert compiled(demo, form) is compiled(demo, form)


def test_real_vocabularies(shared):
    tokenizer = Tokenizer.load(shared / "configs" / "Mistral-7B-Instruct-v0.3")
    grammars = Grammars(tokenizer, tokenizer.vocab_size, frozenset(tokenizer.eos_ids))
    schema = {"type": "object", "properties": {"é": {"type": "string", "maxLength": 9}},
              "required": ["é"]}  # fmt: skip
    grammar = compiled(grammars, schema_format(schema))
    for seed in range(5):
        value = json.loads(drawn(grammars, grammar, seed))
        assert jsonschema_rs.validator_for(schema).is_valid(value)
    forced = grammar.start().forced
    assert tokenizer.decode(forced) == '{"é":'


@pytest.mark.parametrize(
    ("name", "start", "before"),
    [
        pytest.param(
            "Qwen3-30B-A3B", Start.EITHER, "<think>\nhm\n</think>\n\n", marks=pytest.mark.slow
        ),
        ("Mistral-7B-Instruct-v0.3", Start.SPEECH, ""),
    ],
)
@pytest.mark.parametrize("must", [True, False])
def test_real_models_write_calls_in_their_own_tokens(shared, name, start, before, must):
    """What is forced are the very tokens that the tokenizer makes of the call."""
    tokenizer = Tokenizer.load(shared / "configs" / name)
    template = ChatTemplate.load(shared / "configs" / name)
    syntax = read_syntax(template, tokenizer.special_tokens)
    grammars = Grammars(tokenizer, tokenizer.vocab_size, frozenset(tokenizer.eos_ids))
    specials = tokenizer.special_tokens
    constraint = tools_grammar(
        grammars, syntax, must=must, several=False, start=start, specials=specials
    ).start()
    end = "" if syntax.before_id is None else syntax.before_id + "abcdefgh1"
    call = f'{syntax.begin}{syntax.before_name}weather{syntax.between}{{"city": "Rome"}}'
    text = f"{before}{call}{end}{syntax.after}{syntax.end}"
    forced = 0
    for token in tokenizer.encode(text, add_special_tokens=False, allow_special=True):
        assert constraint.allowed()[token], tokenizer.decode([token])
        forced += bool(constraint.forced)
        constraint.advance(token)
    assert forced >= 8
    assert constraint.finished or any(constraint.allowed()[i] for i in tokenizer.eos_ids)
