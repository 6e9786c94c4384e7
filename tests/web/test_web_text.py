"""The package's text side equals Python's: pytest writes what Python does, node replays it."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from building import run

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "text"))

from template_cases import CASES, NOW, templates, user
from text_tokenizers import decoders, write
from tokenizer_goldens import GOLDENS, LONG_GOLDENS, expected, long_text, strings

from sterna.base.errors import RequestError, TokenizerError
from sterna.engine.chat_parser import ChatParser
from sterna.engine.dialect import read_dialect
from sterna.engine.reasoning import Start
from sterna.engine.tool_syntax import OWN, ToolSyntax
from sterna.text import conv_template
from sterna.text.chat_template import ChatTemplate
from sterna.text.detokenizer import StopStrings, StreamDecoder
from sterna.text.marking import Marker
from sterna.text.tokenizer import Tokenizer

Case = dict[str, Any]
REPLAY = Path(__file__).with_name("replay_text.mjs")
DEMO = Path(__file__).parents[2] / "src" / "sterna" / "demo"
REAL = (
    "gpt2-xl",
    "Meta-Llama-3-8B-Instruct",
    "Mistral-7B-Instruct-v0.3",
    "Phi-3-mini-128k-instruct",
    "Qwen2.5-0.5B-Instruct",
    "Qwen3-30B-A3B",
    "SmolLM-135M-seqcls",
    "TinyLlama-1.1B-Chat-v1.0",
)
TEXTS = (
    "",
    " ",
    "hello world",
    "  two  spaces\n\n\ttabs \r\n",
    "naïve café 日本語 🏳️‍🌈 e\u0301",
    "<|im_start|>user\n<s>hi</s>[INST]",
    "x = 1234567890; y='don\\'t'",
    "a\ufeffb\u00a0c\u2028d",
)


def replayed(dist: Path, folder: Path, cases: list[Case]) -> list[Any]:
    assert cases, "nothing to replay"
    path = folder / "cases.json"
    path.write_text(json.dumps(cases), encoding="utf-8")
    found: list[Any] = json.loads(run("node", str(REPLAY), str(dist), str(path)))
    return found


def tokenizer_cases(folder: Path, texts: tuple[str, ...]) -> list[Case]:
    tokenizer, rng = Tokenizer.load(folder), random.Random(1)
    own = {"folder": str(folder)}
    facts = [tokenizer.vocab_size, tokenizer.bos_id, list(tokenizer.eos_ids)]
    cases: list[Case] = [
        {"kind": "facts", **own, "expected": [*facts, dict(tokenizer.special_tokens)]}
    ]
    specials = [text for text in tokenizer.special_tokens if text][:8]
    spelled = "hi " + "".join(f"{text} x{text}y " for text in specials)
    marker = Marker(tokenizer.special_tokens)
    for text in (*texts, spelled):
        for add, allow in ((True, False), (False, False), (False, True)):
            ids = tokenizer.encode(text, add_special_tokens=add, allow_special=allow)
            asked = {"text": text, "add": add, "allow": allow}
            cases.append({"kind": "encode", **own, **asked, "expected": ids})
        for skip in (True, False):
            cases.append(stream_case(tokenizer, own, ids, skip, rng))
        marked, mark = marker.mark(text)
        if mark is not None:
            prompt = f"{specials[0]}{marked}{specials[-1]} end"
            expected = tokenizer.encode_marked(prompt, mark)
            asked = {"text": prompt, "mark": mark}
            cases.append({"kind": "marked", **own, **asked, "expected": expected})
    some = sorted({rng.randrange(tokenizer.vocab_size + 3) for _ in range(300)})
    pieces = [list(tokenizer.id_to_piece(i)) for i in some]
    cases.append({"kind": "pieces", **own, "ids": some, "expected": pieces})
    whole = tokenizer.decode(some, skip_special_tokens=False)
    cases.append({"kind": "decode", **own, "ids": some, "skip": False, "expected": whole})
    cases.append(stream_case(tokenizer, own, some, True, rng))
    return cases


def stream_case(
    tokenizer: Tokenizer, own: Case, ids: list[int], skip: bool, rng: random.Random
) -> Case:
    """The ids in chunks, and the text that is certain after each."""
    chunks, rest = [], list(ids)
    while rest:
        size = rng.randint(1, 3)
        chunks.append(rest[:size])
        rest = rest[size:]
    decoder = StreamDecoder(tokenizer, skip_special_tokens=skip)
    expected = [*(decoder.put(chunk) for chunk in chunks), decoder.finish()]
    return {"kind": "stream", **own, "chunks": chunks, "skip": skip, "expected": expected}


def test_the_demo_models_tokenizer(dist: Path, tmp_path: Path) -> None:
    assert replayed(dist, tmp_path, tokenizer_cases(DEMO, TEXTS)) == []


@pytest.mark.parametrize("name", decoders())
def test_kinds_of_decoders(dist: Path, tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "m", decoders()[name])
    assert replayed(dist, tmp_path, tokenizer_cases(folder, TEXTS)) == []


@pytest.mark.parametrize("name", REAL)
def test_real_tokenizers(dist: Path, tmp_path: Path, shared: Path, name: str) -> None:
    folder = shared / "configs" / name
    if not (folder / "tokenizer.json").is_file():
        pytest.skip(f"{name} has no tokenizer.json: the compiler writes one for browsers")
    cases = tokenizer_cases(folder, (*TEXTS, *strings(shared)))
    assert replayed(dist, tmp_path, [*cases, *golden_cases(shared, folder)]) == []


def golden_cases(shared: Path, folder: Path) -> list[Case]:
    """What neither side computed: the stored encodings themselves."""
    plain = {"kind": "encode", "folder": str(folder), "add": False, "allow": False}
    given: list[tuple[str, list[int]]] = []
    if folder.name in GOLDENS:
        given += zip(strings(shared), expected(shared, folder.name), strict=True)
    if folder.name in LONG_GOLDENS:
        text, ids = long_text(shared, folder.name)
        start = ids[0] == Tokenizer.load(folder).bos_id
        given.append((text, ids[1:] if start else ids))
    return [{**plain, "text": text, "expected": ids} for text, ids in given]


def template_cases(source: str, tokens: dict[str, str]) -> list[Case]:
    template = ChatTemplate({"default": source}, tokens, lambda: NOW)
    cases: list[Case] = []
    for request in CASES.values():
        try:
            text = template.render(
                request["messages"],
                add_generation_prompt=request.get("add_generation_prompt", True),
                tools=request.get("tools"),
                **request.get("extra", {}),
            )
            expected = {"text": text}
        except RequestError:
            expected = {"error": "RequestError"}
        except TokenizerError:
            expected = {"error": "ArtifactError"}
        given = {"source": source, "tokens": tokens, "now": NOW.isoformat(), "request": request}
        cases.append({"kind": "template", **given, "expected": expected})
    specials = [*tokens.values(), "<|im_end|>", "[TOOL_CALLS]", "<|eot_id|>"]
    dialect = read_dialect(template, specials)
    syntax = {camel(f.name): getattr(dialect.tools, f.name) for f in FIELDS}
    found = {"tools": syntax, "thinks": dialect.thinks, "hasSystem": dialect.has_system}
    given = {"source": source, "tokens": tokens}
    cases.append({"kind": "dialect", **given, "specials": specials, "expected": found})
    # What a template may set before it reads it is a variable to one and not to the other.
    may_set = re.findall(r"(?:set|for) +(\w+)", source)
    read = sorted(template.variables - set(may_set))
    return [*cases, {"kind": "variables", **given, "but": may_set, "expected": read}]


FIELDS = dataclasses.fields(ToolSyntax)


def camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.title() for part in rest)


def test_the_demo_models_template(dist: Path, tmp_path: Path) -> None:
    config = json.loads((DEMO / "tokenizer_config.json").read_text())
    cases = template_cases(config["chat_template"], {"bos_token": "<s>"})
    assert replayed(dist, tmp_path, cases) == []


def test_real_templates(dist: Path, tmp_path: Path, shared: Path) -> None:
    cases = [case for given in templates(shared).values() for case in template_cases(*given)]
    assert replayed(dist, tmp_path, cases) == []


def test_templates_that_run_away_are_stopped(dist: Path, tmp_path: Path) -> None:
    sources = (
        "{% for a in range(90000) %}{% for b in range(90000) %}x{% endfor %}{% endfor %}",
        "{% set n = namespace(t='xxxxxxxx') %}"
        "{% for a in range(99) %}{% set n.t = n.t ~ n.t %}{% endfor %}{{ n.t }}",
        "{{ range(1000000000) }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ messages.constructor.constructor('return 1')() }}",
    )
    given = {"tokens": {}, "now": NOW.isoformat(), "request": {"messages": [user("hi")]}}
    stopped = {"error": "ArtifactError"}
    cases = [{"kind": "template", "source": s, **given, "expected": stopped} for s in sources]
    assert replayed(dist, tmp_path, cases) == []


def test_stop_strings(dist: Path, tmp_path: Path) -> None:
    rng, cases = random.Random(2), []
    for _ in range(300):
        stops = ["".join(rng.choices("ab", k=rng.randint(1, 5))) for _ in range(rng.randint(0, 3))]
        pieces = ["".join(rng.choices("abc", k=rng.randint(0, 4))) for _ in range(8)]
        cutter = StopStrings(stops)
        out = "".join(cutter.put(piece)[0] for piece in pieces)
        expected = [out if cutter.stopped else out + cutter.finish(), cutter.stopped]
        cases.append({"kind": "stops", "stops": stops, "pieces": pieces, "expected": expected})
    assert replayed(dist, tmp_path, cases) == []


def test_marks(dist: Path, tmp_path: Path) -> None:
    rng, cases = random.Random(3), []
    specials = ["<s>", "<|end|>", "<a>", "a>b", ">bc"]
    for _ in range(200):
        words = rng.choices([*specials, "<", "s>", "x", "\ue000", "|end"], k=rng.randint(0, 6))
        value = [{"content": "".join(words), "n": 1}, None, words]
        expected = list(Marker(specials).mark(value))
        cases.append({"kind": "mark", "specials": specials, "value": value, "expected": expected})
    assert replayed(dist, tmp_path, cases) == []


CONV = {
    "roles": {"user": "USER", "assistant": "BOT", "tool": "TOOL"},
    "seps": ["\n", "</s>"],
    "system_template": "{system_message}{function_string}",
    "system_message": "Be good.",
    "system_prefix_token_ids": [1],
    "role_content_sep": ": ",
    "role_empty_sep": ":",
    "role_templates": {"user": "<<{user_message}>>"},
    "strip_reasoning_in_history": True,
}


def test_conversation_templates(dist: Path, tmp_path: Path) -> None:
    cases: list[Case] = []
    for template in (CONV, CONV | {"seps": ["|"], "add_role_after_system_message": False}):
        for request in CASES.values():
            messages = [m for m in request["messages"] if isinstance(m.get("content"), str)]
            prefix, text = conv_template.render(template, messages)
            given = {"kind": "conv", "template": template, "messages": messages}
            cases.append({**given, "expected": [prefix, text]})
    assert replayed(dist, tmp_path, cases) == []


def test_answers_taken_apart(dist: Path, tmp_path: Path) -> None:
    rng, cases = random.Random(4), []
    mistral = ToolSyntax(
        '{"name": "', '", "arguments": ', '"}', "[TOOL_CALLS][", ", ", "]", before_id=', "id": "'
    )
    llama = ToolSyntax('{"name": "', '", "parameters": ', "}", several=False)
    for syntax in (None, OWN, mistral, llama):
        own = syntax or OWN
        opening = own.begin + own.before_name
        ending = (own.before_id or "") + ("a1b2c3d4e" if own.before_id else "") + own.after
        call = f'weather{own.between}{{"a": "}}\\"", "b": [1]}}{ending}'
        answers = (
            f" said {opening}{call}{own.separator}{own.before_name}{call}{own.end}",
            f"{opening}{call}{own.end}",
            "<think>\nhm </think>\n\nspoken \n",
            "thought on </think> spoken",
            f"plain < text {opening[:5]}",
        )
        for text in answers:
            for start in Start:
                cuts = sorted(rng.sample(range(len(text)), 5))
                pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]
                cases.append(parse_case(start, syntax, pieces))
    assert replayed(dist, tmp_path, cases) == []


def parse_case(start: Start, syntax: ToolSyntax | None, pieces: list[str]) -> Case:
    parser = ChatParser(start, syntax)
    content, reasoning, calls = "", "", list[list[str]]()
    for parsed in [*(parser.put(piece) for piece in pieces), parser.finish()]:
        content, reasoning = content + parsed.speech, reasoning + parsed.thought
        for call in parsed.calls:
            if call.name is not None:
                calls.append([call.name, ""])
            calls[call.index][1] += call.arguments
    tools = None if syntax is None else {camel(f.name): getattr(syntax, f.name) for f in FIELDS}
    expected = {"content": content, "reasoning": reasoning, "calls": calls}
    given = {"kind": "parse", "start": start.name.lower(), "tools": tools, "pieces": pieces}
    return {**given, "expected": expected}
