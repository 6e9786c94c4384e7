"""What an answer must look like, written in llguidance's dialect of Lark.

In: a response format, or tools with the syntax of their calls; the marks of the model's thinking.
Out: the source that `Grammars.compile` takes. JSON has one space after each comma and colon, as
Python writes it, and none elsewhere: what is forced need not be computed. Special tokens in marks
are written as tokens, everything else as text. Compiles nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sterna.base.errors import RequestError
from sterna.engine import api_request as ask
from sterna.engine.json_schema import Schema, enforceable
from sterna.engine.offer import Offer
from sterna.engine.reasoning import CLOSE, OPEN, Start
from sterna.engine.tool_syntax import ID_LENGTH, ToolSyntax
from sterna.text.marking import one_of

_JSON = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_SPACE = "SPACE: /[ \\n]{0,4}/"  # between a thought and what follows it
_ANY = "/(.|\\n)*/"
_MAX_DEFINITION = 128 * 1024

Specials = Mapping[str, int]


def of_format(form: ask.ResponseFormat | None, start: Start, specials: Specials) -> str | None:
    """The source for a response format; None where it leaves everything open."""
    if form is None or isinstance(form, ask.TextFormat):
        return None
    main = f"start: {_thinking(start)} @answer\n{_thinking_rules(start, specials)}"
    return _source(main, _answer(form))


def of_tools(
    offer: Offer,
    syntax: ToolSyntax,
    start: Start,
    specials: Specials,
    form: ask.ResponseFormat | None,
) -> str:
    """The source for answers that must call tools, or may.

    Where they may, text comes before the calls, or alone; with a response format that text is an
    answer in it, and calls come in its place.
    """
    opening = syntax.begin + syntax.before_name
    again = literal(syntax.separator + syntax.before_name, specials)
    rules = [
        f"start: {_thinking(start)} {'calls' if offer.must else 'speech'}",
        f"calls: {literal(opening, specials)} more",
        f"more: call {f'({again} call)*' if offer.several and syntax.several else ''} "
        f"{literal(syntax.end, specials)}",
        _thinking_rules(start, specials),
        *_call_rules(offer.callable, syntax, specials),
    ]
    if offer.must:
        return _source("\n".join(rules))
    if form is None or isinstance(form, ask.TextFormat):
        return _source("\n".join([*rules, *_speech_rules(syntax, start, specials)]))
    return _source("\n".join([*rules, "speech: calls | @answer"]), _answer(form))


def _speech_rules(syntax: ToolSyntax, start: Start, specials: Specials) -> list[str]:
    """Text, and calls after it where their mark appears: from there on nothing is free."""
    trigger = _regex(syntax.trigger)
    if syntax.trigger in specials:
        return ["speech: TEXT calls?", f"TEXT: {_ANY}"]
    if syntax.only_first:
        thought = f" & ~/{_regex(OPEN)}(.|\\n)*/" if start is Start.EITHER else ""
        return ["speech: calls | TEXT", f"TEXT: {_ANY} & ~/{trigger}(.|\\n)*/{thought}"]
    rest = (syntax.begin + syntax.before_name).removeprefix(syntax.trigger)
    return [
        f"speech: TEXT | until {literal(rest, specials)} more",
        f"TEXT: {_ANY} & ~/(.|\\n)*{trigger}(.|\\n)*/",
        f"until[lazy]: /(.|\\n)*{trigger}/",
    ]


def _call_rules(
    tools: Sequence[ask.FunctionDefinition], syntax: ToolSyntax, specials: Specials
) -> list[str]:
    """One rule a tool: its name, its arguments by its schema, and what is around them."""
    after = literal(syntax.after, specials)
    if syntax.before_id is not None:
        after = f"{literal(syntax.before_id, specials)} /[a-zA-Z0-9]{{{ID_LENGTH}}}/ {after}"
    rules = [f"call: {' | '.join(f'call_{i}' for i in range(len(tools)))}"]
    for i, tool in enumerate(tools):
        name = literal(tool.name + syntax.between, specials)
        rules.append(f"call_{i}: {name} arguments_{i} {after}")
        rules.append(f"arguments_{i}: %json {json.dumps(arguments_schema(tool))}")
    return rules


def arguments_schema(tool: ask.FunctionDefinition) -> Schema:
    """What a tool's arguments must satisfy: always an object; without parameters an empty one."""
    where = f"tools.{tool.name}.parameters"
    if tool.parameters is None:
        return {"type": "object", "properties": {}, "additionalProperties": False, **_options()}
    schema = enforceable(tool.parameters, where)
    if schema.get("type", "object") != "object":
        raise RequestError(f"{where} has the type {schema['type']!r}, possible is 'object'", where)
    return {"type": "object", **schema, **_options()}


def _answer(form: ask.ResponseFormat) -> dict[str, Any]:
    """A response format as a grammar of its own."""
    if isinstance(form, ask.JsonObjectFormat):
        return {"json_schema": {"type": "object", **_options()}}
    if isinstance(form, ask.JsonSchemaFormat):
        where = "response_format.json_schema.schema"
        return {"json_schema": {**enforceable(form.json_schema.schema, where), **_options()}}
    assert isinstance(form, ask.GrammarFormat), f"an unknown format {form!r}"
    return {"lark_grammar": _lark(form.grammar)}


def _lark(grammar: ask.GrammarDefinition) -> str:
    where, text = "response_format.grammar.definition", grammar.definition
    if not text.strip() or len(text) > _MAX_DEFINITION:
        raise RequestError(
            f"{where} has {len(text)} characters, possible are 1 to {_MAX_DEFINITION}", where
        )
    if grammar.syntax == "lark":
        return text
    import llguidance

    try:
        if grammar.syntax == "regex":
            return f"start: /{llguidance.regex_to_lark(text)}/"
        return str(llguidance.gbnf_to_lark.gbnf_to_lark(text))
    except Exception as error:  # the converters raise what they like
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RequestError(f"{where} is no {grammar.syntax}: {reason:.300}", where) from None


def literal(text: str, specials: Specials) -> str:
    """A text as Lark: special tokens by their id, what is between them in quotes."""
    if not text:
        return ""
    if not specials:
        return json.dumps(text)
    parts = re.split(f"({one_of(tuple(specials))})", text)
    return " ".join(
        f"<[{specials[part]}]>" if part in specials else json.dumps(part) for part in parts if part
    )


def _thinking(start: Start) -> str:
    return {Start.SPEECH: "", Start.THOUGHT: "thought SPACE", Start.EITHER: "(thought SPACE)?"}[
        start
    ]


def _thinking_rules(start: Start, specials: Specials) -> str:
    """A thought ends where its mark appears first."""
    if start is Start.SPEECH:
        return ""
    opened = "" if start is Start.THOUGHT else OPEN
    if CLOSE in specials:
        begin, end = literal(opened, specials), literal(CLOSE, specials)
        return f"thought: {begin} THOUGHT {end}\nTHOUGHT: {_ANY}\n{_SPACE}"
    return f"thought[lazy]: /{_regex(opened)}(.|\\n)*{_regex(CLOSE)}/\n{_SPACE}"


def _regex(text: str) -> str:
    """A text as a regular expression within slashes."""
    plain = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return "".join(
        plain.get(c) or (c if c.isalnum() or c in "<>_ " or ord(c) > 127 else f"\\{c}")
        for c in text
    )


def _options() -> dict[str, Any]:
    return {"x-guidance": dict(_JSON)}


def _source(main: str, answer: Mapping[str, Any] | None = None) -> str:
    grammars: list[dict[str, Any]] = [{"name": "main", "lark_grammar": main}]
    if answer is not None:
        grammars.append({"name": "answer", **answer})
    return json.dumps({"grammars": grammars})
