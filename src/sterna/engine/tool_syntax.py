"""How a model writes tool calls: read off its chat template, not off its name.

In: a chat template. It is asked to render an answer with calls of tools nobody has, and the text
around their names and arguments is the syntax. Out: a `ToolSyntax` that grammars constrain to and
parsers take apart; one of our own where the template writes no calls, or no tools. Knows no tools.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sterna.base.errors import Error
from sterna.engine.reasoning import CLOSE, OPEN
from sterna.text.template import Template

ID_LENGTH = 9  # what Mistral's templates insist on, and nobody else minds
_NAMES = ("probe_of_tools", "probe_of_more")
_VALUES = ("probed value", "second value")
_IDS = ("pr0be0001", "pr0be0002")


@dataclass(frozen=True, slots=True)
class ToolSyntax:
    """An answer's calls: begin, call, (separator, call)*, end; a call: before_name, the name,
    between, the arguments as a JSON object, [before_id, an id,] after.

    `native`: the template shows tools and results itself. `text_arguments`: it wants the arguments
    of earlier calls as text. `several`: it can write several calls in one answer.
    """

    before_name: str
    between: str
    after: str
    begin: str = ""
    separator: str = "\n"
    end: str = ""
    before_id: str | None = None
    several: bool = True
    native: bool = True
    text_arguments: bool = False

    @property
    def trigger(self) -> str:
        """What shows that calls begin: the mark before the first one, or all that is before it."""
        opening = self.begin + self.before_name
        mark = re.match(r"\[[A-Z_]+\]|<[^<>\s]+>", opening)
        return mark[0] if mark else opening

    @property
    def only_first(self) -> bool:
        """Whether there is no mark, so that only the beginning of an answer can be a call."""
        return self.trigger == self.begin + self.before_name

    @property
    def literals(self) -> str:
        """All text of the syntax, to find special tokens in."""
        parts = (self.begin, self.before_name, self.between, self.before_id or "")
        return "\0".join((*parts, self.after, self.separator, self.end))

    def written(self, calls: Sequence[tuple[str, str]]) -> str:
        """The text of calls, given as names and JSON arguments; without ids."""
        texts = [f"{self.before_name}{n}{self.between}{a}{self.after}" for n, a in calls]
        return self.begin + self.separator.join(texts) + self.end


OWN = ToolSyntax(
    before_name='<tool_call>\n{"name": "',
    between='", "arguments": ',
    after="}\n</tool_call>",
    native=False,
)


def read_syntax(template: Template | None, specials: Collection[str]) -> ToolSyntax:
    """The syntax that a template writes calls in, or `OWN`. `specials`: the special tokens."""
    if template is None or not _shows_tools(template):
        return OWN
    for text_arguments in (False, True):
        for several in (True, False):
            found = _probed(template, specials, text_arguments, several)
            if found is not None:
                return replace(found, text_arguments=text_arguments, several=several)
    return OWN


def _shows_tools(template: Template) -> bool:
    return _NAMES[0] in (_rendered(template, [_user()], tools=[_tool()]) or "")


def _probed(
    template: Template, specials: Collection[str], text_arguments: bool, several: bool
) -> ToolSyntax | None:
    """Render one or two calls and take the text apart; None where that does not work."""
    count = 2 if several else 1
    calls = [_call(i, text_arguments) for i in range(count)]
    prompt = _rendered(template, [_user()], tools=[_tool()])
    answer = {"role": "assistant", "content": "", "tool_calls": calls}
    text = _rendered(template, [_user(), answer], tools=[_tool()], add_generation_prompt=False)
    if prompt is None or text is None:
        return None
    body = _after_prompt(prompt, text)
    return None if body is None else _taken_apart(body, count, specials)


def _after_prompt(prompt: str, text: str) -> str | None:
    """What the answer adds to the prompt, without an empty thought."""
    for begin in (prompt, prompt.rstrip().removesuffix(OPEN)):
        if text.startswith(begin):
            return re.sub(rf"^\s*{OPEN}\s*{CLOSE}\s*", "", text.removeprefix(begin))
    return None


def _taken_apart(body: str, count: int, specials: Collection[str]) -> ToolSyntax | None:
    places = [_places(body, i) for i in range(count)]
    if None in places:
        return None
    first, last = places[0], places[-1]
    assert first is not None, "a probe without its name"
    assert last is not None, "a probe without its name"
    tail = _before_special(body[last.end :], specials).rstrip()
    opening = body[: first.name]
    if first is last:
        syntax = ToolSyntax(opening, first.between, tail, separator="", before_id=first.before_id)
        return syntax if opening else None
    middle = body[first.end : last.name]
    after = _common(middle, tail)
    rest = middle[len(after) :]
    before = _common(rest[::-1], opening[::-1])[::-1]
    if not before or (first.between, first.before_id) != (last.between, last.before_id):
        return None
    return ToolSyntax(
        before_name=before,
        between=first.between,
        after=after,
        begin=opening.removesuffix(before),
        separator=rest.removesuffix(before),
        end=tail[len(after) :],
        before_id=first.before_id,
    )


@dataclass(frozen=True, slots=True)
class _Places:
    """Where a probe's name begins and its last slot ends, and the text between the slots."""

    name: int
    end: int
    between: str
    before_id: str | None


def _places(body: str, index: int) -> _Places | None:
    pattern = (
        rf'{_NAMES[index]}(?P<between>[^\0]*?)\{{\s*"probe":\s*"{_VALUES[index]}"\s*\}}'
        rf"(?:(?P<before_id>[^{{}}\0]*?){_IDS[index]})?"
    )
    found = re.search(pattern, body)
    if found is None or (_IDS[index] in body and found["before_id"] is None):
        return None
    return _Places(found.start(), found.end(), found["between"], found["before_id"])


def _common(a: str, b: str) -> str:
    """What both begin with."""
    different = (i for i, (x, y) in enumerate(zip(a, b)) if x != y)
    return a[: next(different, min(len(a), len(b)))]


def _before_special(text: str, specials: Collection[str]) -> str:
    places = [text.find(special) for special in specials if special and special in text]
    return text[: min(places)] if places else text


def _user() -> dict[str, Any]:
    return {"role": "user", "content": "Hello"}


def _tool() -> dict[str, Any]:
    probe = {"type": "object", "properties": {"probe": {"type": "string"}}}
    function = {"name": _NAMES[0], "description": "A probe.", "parameters": probe}
    return {"type": "function", "function": function}


def _call(index: int, text_arguments: bool) -> dict[str, Any]:
    arguments: Any = {"probe": _VALUES[index]}
    if text_arguments:
        arguments = json.dumps(arguments)
    function = {"name": _NAMES[index], "arguments": arguments}
    return {"id": _IDS[index], "type": "function", "function": function}


def _rendered(
    template: Template, messages: Sequence[Mapping[str, Any]], **extra: Any
) -> str | None:
    """The text, or None where the template refuses."""
    try:
        return template.render(messages, **extra)
    except Error:
        return None
