"""Templates that try to run away or to escape: each ends in one sentence, soon."""

from __future__ import annotations

import threading
import time
import tracemalloc
from typing import Any

import pytest

from sterna.base.errors import RequestError, TokenizerError
from sterna.text import budget
from sterna.text.chat_template import ChatTemplate

MESSAGES = [{"role": "user", "content": "hello"}]

DOUBLING = (
    "{{% set ns = namespace(x={start}) %}}{{% for i in range(60) %}}{{% set ns.x = {step} %}}"
)

RUNAWAY = {
    "nested loops": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    ),
    "loop filter": (
        "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}"
    ),
    "loop text": "{% for a in range(99999) %}" + "x" * 9999 + "{% endfor %}",
    "captured loop text": (
        "{% set t %}{% for a in range(99999) %}" + "x" * 9999 + "{% endfor %}{% endset %}"
    ),
    "large range": "{% for a in range(10**12) %}{% endfor %}",
    "recursive loop": (
        "{% for a in [range(9999)] recursive %}"
        "{% if a is not number %}{{ loop(a) }}{{ loop(a) }}{% else %}{{ loop(range(9999)) }}"
        "{% endif %}{% endfor %}"
    ),
    "macro recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "macro doubling": (
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}"
    ),
    "block doubling": "{% block b %}{{ self.b() }}{{ self.b() }}{% endblock %}",
    "call block": "{% macro m() %}{{ caller() }}{% call m() %}{{ caller() }}{% endcall %}"
    "{% endmacro %}{% call m() %}x{% endcall %}",
    "multiplied text": "{{ 'x' * 10**10 }}",
    "text multiplied from the left": "{{ 10000000000 * 'x' }}",
    "multiplied list": "{{ ([1] * 10**10)|length }}",
    "multiplied twice": "{{ (('x' * 9999) * 9999)|length }}",
    "power": "{{ 10**(10**10) }}",
    "square": DOUBLING.format(start="3", step="ns.x * ns.x") + "{% endfor %}{{ ns.x }}",
    "round": "{{ 1.5|round(10**9, 'floor') }}",
    "huge int": "{{ ('9' * 4000)|int * 2 }}",
    "doubled text": DOUBLING.format(start="'ab'", step="ns.x ~ ns.x") + "{% endfor %}",
    "added text": DOUBLING.format(start="'ab'", step="ns.x + ns.x") + "{% endfor %}",
    "doubled list": DOUBLING.format(start="[1]", step="ns.x + ns.x") + "{% endfor %}",
    "shared list": DOUBLING.format(start="[1]", step="[ns.x, ns.x]") + "{% endfor %}{{ ns.x }}",
    "shared dict": DOUBLING.format(start="1", step="{1: ns.x, 2: ns.x}") + "{% endfor %}{{ ns.x }}",
    "shared by call": DOUBLING.format(start="1", step="dict(a=ns.x, b=ns.x)") + "{% endfor %}",
    "shared namespace": (
        DOUBLING.format(start="1", step="namespace(a=ns.x, b=ns.x)") + "{% endfor %}{{ ns.x }}"
    ),
    "itself": "{% set ns = namespace() %}{% set ns.x = [ns, ns] %}{{ ns }}",
    "deep list": "{% set ns = namespace(x=1) %}{% for i in range(999) %}{% set ns.x = [ns.x] %}"
    "{% endfor %}{{ ns.x }}",
    "refilled": "{% for i in range(99) %}{% set x = [-10**15, 'nan'|float]"
    "|map('sterna tick')|list %}{% endfor %}{{ 'x' * 10**9 }}",
    "tampered": "{% set x = ['nan'|float]|map('sterna tick')|list %}{{ 'x' * 10**9 }}",
    "captured doubling": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set y %}"
    "{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
    "join": "{{ range(99999)|join('x' * 9999) }}",
    "join method": "{{ ('x' * 9999).join(('y' * 99999)|list)|length }}",
    "join of one text": "{{ (['x' * 9999] * 9999)|join }}",
    "join of generator": "{{ range(99999)|map('string')|join('x' * 9999) }}",
    "replace": "{{ ('x' * 99999).replace('x', 'y' * 99999) }}",
    "replace filter": "{{ ('x' * 99999)|replace('x', 'y' * 99999) }}",
    "replace nothing": "{{ ('x' * 99999)|replace('', new='y' * 99999) }}",
    "center": "{{ 'x'|center(10**10) }}",
    "center by name": "{{ 'x'|center(width=10**10) }}",
    "center method": "{{ 'x'.center(10**10) }}",
    "ljust": "{{ 'x'.ljust(10**10) }}",
    "zfill": "{{ 'x'.zfill(10**10) }}",
    "mapped center": "{{ ['x']|map('center', 10**10)|list }}",
    "constant center": "{{ 'x'|center(9999999999) }}",
    "indent": "{{ ('\\n' * 9999)|indent(9999, true, true) }}",
    "indent by text": "{{ ('\\n' * 9999)|indent('x' * 9999, true, true) }}",
    "tojson indent": "{{ [1]|tojson(indent=10**10) }}",
    "tojson indent text": "{{ ([1] * 9999)|tojson(indent='x' * 9999) }}",
    "tojson separators": "{{ ([1] * 9999)|tojson(separators=('x' * 9999, 'y')) }}",
    "percent width": "{{ '%9999999999d' % 1 }}",
    "percent star": "{{ '%*d' % (10**10, 1) }}",
    "percent key": "{{ '%(a)9999999999d' % {'a': 1} }}",
    "percent precision": "{{ '%.999999999f' % 1 }}",
    "percent copies": "{{ ('%(a)s' * 9999) % {'a': 'x' * 99999} }}",
    "format filter": "{{ '%9999999999d'|format(1) }}",
    "format method": "{{ '{:>9999999999}'.format(1) }}",
    "format nested": "{{ '{:>{}}'.format(1, 10**10) }}",
    "format map": "{{ '{a:>9999999999}'.format_map({'a': 1}) }}",
    "format copies": "{{ ('{0}' * 9999).format('x' * 99999) }}",
    "batch": "{{ [1]|batch(10**10, 'x')|list }}",
    "slice": "{{ [1]|slice(10**10)|list }}",
    "sum of lists": "{{ ([[1] * 99] * 9999)|sum(start=[])|length }}",
    "strftime": "{{ strftime_now('%c' * 99999) }}",
    "generators": (
        "{% for a in range(9999) %}{{ range(99999)|map('string')|select('eq', 'no')|list }}"
        "{% endfor %}"
    ),
    "sorting": "{% for a in range(99999) %}{% if range(99999)|sort %}{% endif %}{% endfor %}",
    "searching": "{% set t = 'a' * 999999 ~ 'b' %}{% for a in range(99999) %}"
    "{% if 'ab' in t and t.find('c') > 0 %}{% endif %}{% endfor %}",
}

ESCAPES = {
    "class": "{{ ''.__class__.__mro__ }}",
    "item": "{{ ''['__class__']['__mro__'] }}",
    "attr filter": "{{ (''|attr('__class__'))|attr('__mro__') }}",
    "map attribute": "{{ ['']|map(attribute='__class__.__mro__')|list }}",
    "function globals": "{{ raise_exception.__globals__ }}",
    "range globals": "{{ range.__globals__['x'] }}",
    "cycler": "{{ cycler.__init__.__globals__['x'] }}",
    "macro": "{% macro m() %}{% endmacro %}{{ m._func.x }}",
    "namespace": "{% set ns = namespace(__class__=1) %}",
    "namespace dict": "{% set ns = namespace({'_x': 1}) %}",
    "self": "{{ self._TemplateReference__context.x }}",
    "format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "format map": "{{ '{a.__class__.__mro__}'.format_map({'a': ''}) }}",
    "append": "{{ messages.append(1) }}",
    "update": "{{ messages[0].update({'a': 1}) }}",
    "encode": "{{ 'x'.encode() }}",
    "to_bytes": "{{ (1).to_bytes(99999999) }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "extends": "{% extends 'base' %}",
    "endless cycler": "{% for x in cycler(1, 2) %}{% endfor %}",
    "lipsum": "{{ lipsum(9999999) }}",
    "budget": "{{ self['sterna budget'].x }}",
}

BROKEN = {
    "unclosed": "{% for m in messages %}",
    "unknown tag": "{% python import os %}",
    "unknown filter": "{{ messages|nothing }}",
    "removed filter": "{{ messages|pprint }}",
    "large": "x" * (300 << 10),
    "deep parentheses": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "deep loops": "{% for a in messages %}" * 60 + "{% endfor %}" * 60,
    "deep lists": "{{ " + "[" * 3000 + "]" * 3000 + " }}",
    "long number": "{{ " + "9" * 9999 + " }}",
    "division": "{{ 1 // 0 }}",
    "undefined": "{{ messages[0].nothing.more }}",
    "type": "{{ 1 + 'a' }}",
}


def render(source: str) -> str:
    return ChatTemplate({"default": source}, {}).render(MESSAGES)


@pytest.mark.parametrize("name", RUNAWAY)
def test_runaway_is_stopped_soon_and_small(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "MAX_SECONDS", 0.3)
    start = time.monotonic()
    with pytest.raises(TokenizerError, match="chat template"):
        render(RUNAWAY[name])
    assert time.monotonic() - start < 4.0


@pytest.mark.parametrize("name", ["doubled text", "join", "replace", "percent copies"])
def test_runaway_takes_little_memory(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(TokenizerError):
            render(RUNAWAY[name])
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", [*ESCAPES, *BROKEN])
def test_escape_or_broken_is_one_sentence(name: str) -> None:
    with pytest.raises(TokenizerError, match="chat template"):
        render((ESCAPES | BROKEN)[name])


def test_budget_works_in_any_thread() -> None:
    caught: list[Exception] = []

    def target() -> None:
        try:
            render(RUNAWAY["nested loops"])
        except TokenizerError as error:
            caught.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join(20)
    assert len(caught) == 1


def test_a_thread_of_messages_fits_the_budget() -> None:
    source = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m['content']|trim }}"
        "{% if loop.last %}!{% endif %}{% endfor %}"
    )
    template = ChatTemplate({"default": source}, {})
    messages = [{"role": "user", "content": "x" * 2000}] * 5000
    assert template.render(messages) == ("<|user|>" + "x" * 2000) * 5000 + "!"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ '%5.2f|%s' % (1.5, 'x') }}", " 1.50|x"),
        ("{{ '{:>4}{a}'.format(1, a='b') }}", "   1b"),
        ("{{ [3,1,2]|sort|join(',') }}", "1,2,3"),
        ("{{ range(4)|batch(3, 'x')|list }}", "[[0, 1, 2], [3, 'x', 'x']]"),
        ("{{ {'a': '<é>'}|tojson }}", '{"a": "<é>"}'),
        ("{{ [1]|tojson(indent=1) }}", "[\n 1\n]"),
        ("{{ 'a\nb'|indent(2) }}", "a\n  b"),
        ("{{ messages|map(attribute='role')|map('upper')|join }}", "USER"),
        ("{% for x in range(9) %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}", "01"),
        ("{% for x in 'abc'|reverse %}{{ loop.length }}{{ x }}{% endfor %}", "3c3b3a"),
        ("{% for x in (1, 2, 3) if x != 2 %}{{ loop.index }}{{ x }}{% endfor %}", "1123"),
        ("{% set ns = namespace(n=0) %}{% set ns.n = ns.n + 2 %}{{ ns.n * 'ab' }}", "abab"),
        ("{% generation %}{{ 1 }}x{% endgeneration %}", "1x"),
        ("{% macro m(a, b=2) %}{{ a ~ b }}{% endmacro %}{{ m(1) }}{{ m(b=3, a=0) }}", "1203"),
        ("{% filter upper %}a{{ 'b' }}{% endfilter %}", "AB"),
        ("{% set x | trim %} {{ 'y' }} {% endset %}[{{ x }}]", "[y]"),
        ("{% call(x) wrap() %}{{ x }}{% endcall %}", None),
        ("{{ messages[::-1][0].content[1:3] }}{{ undefined_name }}", "el"),
        ("{{ messages[0].items()|list|length }}{{ 7 // 2 }}{{ 2 ** 8 }}{{ -7 % 3 }}", "232562"),
        (
            "{% for a in [1, [2, [3]]] recursive %}"
            "{{ loop(a) if a is iterable else a }}{% endfor %}",
            "123",
        ),
        ("{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}", "aba"),
        ("{{ dict(a=1)['a'] }}{{ 'a' if none is none }}{{ ''.join(['x', 'y']) }}", "1axy"),
    ],
)
def test_instrumented_templates_mean_the_same(source: str, expected: str | None) -> None:
    if expected is None:
        source = "{% macro wrap() %}<{{ caller(4) }}>{% endmacro %}" + source
        expected = "<4>"
    assert render(source) == expected


def test_refusal_is_the_requests_fault() -> None:
    with pytest.raises(RequestError, match="no cats"):
        render("{{ raise_exception('no cats') }}")


def test_template_sees_plain_data_only() -> None:
    class Sneaky:
        def run(self) -> None: ...

    template = ChatTemplate({"default": "{{ messages[0].content.run() }}"}, {})
    for bad in (Sneaky(), {"a": Sneaky()}, b"bytes", {1, 2}):
        with pytest.raises((RequestError, TokenizerError)):
            template.render([{"role": "user", "content": bad}])


def test_text_and_numbers_of_other_types_become_plain() -> None:
    class Text(str):
        secret = "s"

    class Number(int): ...

    template = ChatTemplate({"default": "{{ messages[0].content.secret }}{{ n + 1 }}"}, {})
    values: dict[str, Any] = {"n": Number(2)}
    assert template.render([{"role": "user", "content": Text("a")}], **values) == "3"
