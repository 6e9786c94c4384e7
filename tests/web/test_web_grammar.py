"""The package's structured output: the schemas the server is tested with, and more.

What a mask lets through satisfies the schema; what a grammar cannot enforce is refused by name.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jsonschema_rs
from building import run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))

from schema_cases import SCHEMAS

REPLAY = Path(__file__).with_name("replay_grammar.mjs")
END = 256
WORDS = ['{"', '": ', '", "', '"}', "true", "null", "12", "é", "<tool_call>", "\n", ", "]
VOCABULARY = [[i] for i in range(256)] + [[]] + [list(word.encode()) for word in WORDS]


def asked(dist: Path, folder: Path, cases: list[Any]) -> list[Any]:
    path = folder / "grammars.json"
    path.write_text(json.dumps({"vocabulary": VOCABULARY, "end": END, "cases": cases}))
    found: list[Any] = json.loads(run("node", str(REPLAY), str(dist), str(path)))
    return found


def schema_request(schema: Any) -> Any:
    return {
        "messages": [],
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    }


OPEN = {"type": "object", "properties": {"a": {}}, "additionalProperties": True}
NARROWER: list[tuple[Any, list[str], list[str]]] = [  # than on the server, which lets these through
    ({"type": "integer"}, ["0"], ["-0"]),
    (OPEN, ['{"b": 1}'], ['{"\\u0061": 1}']),
]


def test_schemas(dist: Path, tmp_path: Path) -> None:
    table = [*SCHEMAS, *NARROWER]
    cases = [{"request": schema_request(s), "texts": [*good, *bad]} for s, good, bad in table]
    for (schema, good, bad), answer in zip(table, asked(dist, tmp_path, cases), strict=True):
        assert "error" not in answer, (schema, answer)
        expected = [True] * len(good) + [False] * len(bad)
        assert answer["accepted"] == expected, (schema, [*good, *bad])


REFUSED: list[tuple[Any, str]] = [
    ({"type": "integer", "multipleOf": 5}, "multipleOf"),
    ({"not": {"type": "integer"}}, '"not"'),
    ({"type": "number", "minimum": 0}, "minimum for numbers"),
    ({"type": "string", "format": "nonsense"}, "format is nonsense"),
    ({"allOf": [{"type": "integer"}, {"minimum": 3}]}, "puts together"),
    ({"oneOf": [{"minimum": 3}, {"maximum": 5}]}, "may fit the same value"),
    ({"type": "object", "patternProperties": {}}, "patternProperties"),
    ({"type": "string", "pattern": "a(?=b)"}, "a group other than"),
    ({"type": "string", "pattern": "(", "title": "x"}, "pattern"),
    ({"$ref": "https://elsewhere/x"}, "within the schema"),
    ({"$ref": "#/$defs/none"}, "which is not there"),
    ({"$ref": "#"}, "refers to itself"),
    ({"type": "integer", "minimum": 3, "maximum": 2}, "leaves no integer"),
    ({"type": "array", "minItems": 10**9}, "possible is 0 to"),
    ({"type": "frog"}, "possible are null"),
    (False, "no JSON schema object"),
    (json.loads('{"items": ' * 80 + "{}" + "}" * 80), "nested more than"),
]


def test_what_cannot_be_enforced_is_refused_by_name(dist: Path, tmp_path: Path) -> None:
    cases = [{"request": schema_request(schema)} for schema, _ in REFUSED]
    for (schema, words), answer in zip(REFUSED, asked(dist, tmp_path, cases), strict=True):
        assert answer.get("error") == "RequestError", (schema, answer)
        assert words in answer["message"], (schema, answer)


names = st.sampled_from(["a", "b", "c d", "é", '"'])
leaves = st.one_of(
    st.sampled_from([{"type": t} for t in ("null", "boolean", "integer", "number", "string")]),
    st.builds(lambda v: {"enum": v}, st.lists(st.sampled_from([1, "x", None, [1]]), min_size=1)),
    st.builds(
        lambda lo, n: {"type": "integer", "minimum": lo, "maximum": lo + n},
        st.integers(-1200, 1200),
        st.integers(0, 3000),
    ),
    st.builds(
        lambda lo, n: {"type": "string", "minLength": lo, "maxLength": lo + n},
        st.integers(0, 4),
        st.integers(0, 9),
    ),
    st.sampled_from(
        [
            {"type": "string", "pattern": "^[a-c]{2,5}$"},
            *({"type": "string", "format": f} for f in ("date", "uuid", "ipv4", "email", "time")),
            {"const": {"k": [True]}},
        ]
    ),
)


def larger(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def made(properties: Any, needed: list[bool], closed: bool) -> Any:
        required = [name for name, needs in zip(properties, needed) if needs]
        plain = {"type": "object", "properties": properties, "required": required}
        return plain | ({"additionalProperties": {"type": "null"}} if closed else {})

    return st.one_of(
        st.builds(
            made,
            st.dictionaries(names, inner, max_size=3),
            st.lists(st.booleans(), min_size=3, max_size=3),
            st.booleans(),
        ),
        st.builds(
            lambda i, n: {"type": "array", "items": i, "maxItems": n}, inner, st.integers(0, 3)
        ),
        st.builds(lambda a, b: {"anyOf": [a, b]}, inner, inner),
    )


@settings(
    max_examples=1,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(schemas=st.lists(st.recursive(leaves, larger, max_leaves=6), min_size=30, max_size=30))
def test_whatever_a_schema_lets_through_satisfies_it(
    dist: Path, tmp_path: Path, schemas: list[Any]
) -> None:
    cases = [{"request": schema_request(schema), "seeds": [1, 2]} for schema in schemas]
    ended = 0
    for schema, answer in zip(schemas, asked(dist, tmp_path, cases), strict=True):
        assert "error" not in answer, (schema, answer)
        valid = jsonschema_rs.validator_for(schema, validate_formats=True)
        for text in answer["drawn"]:
            if text is not None:
                ended += 1
                assert valid.is_valid(json.loads(text)), (schema, text)
    assert ended > len(schemas)


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
TIME = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
WRONG = CALL.replace("Rome", "Bonn")
MISTRAL = {
    "begin": "[TOOL_CALLS][",
    "beforeName": '{"name": "',
    "between": '", "arguments": ',
    "after": '"}',
    "separator": ", ",
    "end": "]",
    "beforeId": ', "id": "',
    "several": True,
    "native": True,
    "textArguments": False,
}
LLAMA = MISTRAL | {
    "begin": "", "between": '", "parameters": ', "after": "}", "separator": "", "end": "",
    "beforeId": None, "several": False,
}  # fmt: skip


def test_tools(dist: Path, tmp_path: Path) -> None:
    tools = {"messages": [], "tools": [WEATHER, CLOCK]}
    auto, must = tools, tools | {"tool_choice": "required"}
    named = tools | {"tool_choice": {"type": "function", "function": {"name": "clock"}}}
    single = must | {"parallel_tool_calls": False}
    call = '[TOOL_CALLS][{"name": "clock", "arguments": {}, "id": "abcdef123"}]'
    cases: list[tuple[Any, list[str], list[str]]] = [
        (
            {"request": auto},
            ["hi", "a < b <tool", CALL, f"so: {CALL}\n{TIME}"],
            [WRONG, CALL + "x"],
        ),
        ({"request": must}, [CALL, f"{CALL}\n{TIME}"], ["hi", WRONG, ""]),
        ({"request": single}, [CALL], [f"{CALL}\n{TIME}"]),
        ({"request": named}, [TIME], [CALL]),
        ({"request": must, "syntax": MISTRAL}, [call], [call[:-2], TIME]),
        (
            {"request": auto, "syntax": LLAMA},
            ["hi", '{"name": "clock", "parameters": {}}', '{"x": 1}'],
            ['{"name": "frog", "parameters": {}}'],
        ),
        ({"request": must, "start": "thought"}, [f"hm</think>\n\n{CALL}"], [CALL]),
        ({"request": must, "start": "either"}, [f"<think>hm</think>{CALL}", CALL], ["<think>hm"]),
    ]
    given = [{**case, "texts": [*good, *bad]} for case, good, bad in cases]
    for (case, good, bad), answer in zip(cases, asked(dist, tmp_path, given), strict=True):
        assert "error" not in answer, answer
        assert answer["accepted"] == [True] * len(good) + [False] * len(bad), case


def test_requests_that_cannot_be_met(dist: Path, tmp_path: Path) -> None:
    tools = {"messages": [], "tools": [WEATHER]}
    frog = {"type": "function", "function": {"name": "frog"}}
    lark = {"type": "grammar", "grammar": {"syntax": "lark", "definition": 'start: "a"'}}
    cases = [
        (tools | {"tool_choice": frog}, "names the function"),
        (tools | {"tools": [WEATHER, WEATHER]}, "several named"),
        ({"messages": [], "tool_choice": "required"}, "there are no tools"),
        ({"messages": [], "response_format": {"type": "frog"}}, "possible are text"),
        ({"messages": [], "response_format": lark}, "possible in a browser are ebnf and regex"),
    ]
    answers = asked(dist, tmp_path, [{"request": request} for request, _ in cases])
    for (request, words), answer in zip(cases, answers, strict=True):
        assert answer.get("error") == "RequestError", (request, answer)
        assert words in answer["message"], answer


def test_own_grammars(dist: Path, tmp_path: Path) -> None:
    def form(syntax: str, definition: str) -> Any:
        grammar = {"syntax": syntax, "definition": definition}
        return {"messages": [], "response_format": {"type": "grammar", "grammar": grammar}}

    cases = [
        {"request": form("ebnf", 'root ::= "a" [0-9]+'), "texts": ["a12", "a", "b"]},
        {"request": form("regex", "^(yes|no)!?$"), "texts": ["yes!", "no", "maybe"]},
        {"request": form("ebnf", "root ::= ((("), "texts": ["a"]},
        {"request": form("ebnf", 'root ::= "ok"'), "texts": ["ok"]},  # the library still works
    ]
    ebnf, regex, broken, after = asked(dist, tmp_path, cases)
    assert ebnf["accepted"] == [True, False, False]
    assert regex["accepted"] == [True, True, False]
    assert broken["error"] == "RequestError"
    assert after["accepted"] == [True]
