"""Whether a chat template means the same in our sandbox as in Hugging Face's Jinja.

In: a ChatTemplate. Out: what each probe conversation came to, or TokenizerError where the texts
differ. The sandbox rewrites a template's syntax tree so that it cannot run away; here the same
source also runs unchanged, in the environment that transformers' apply_chat_template sets up, with
the same conversations. It runs there only after it has kept to its budget in the sandbox.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sterna.base.errors import Error, TokenizerError
from sterna.text.chat_template import DEFAULT, TOOL_USE, ChatTemplate
from sterna.text.instrument import Generation
from sterna.text.sandbox import tojson

SAME, REFUSED = "same text", "refused"
_NOW = datetime(2025, 3, 9, 14, 5, 6)  # both clocks stand still
_USER = {"role": "user", "content": " What is\n1 < 2? "}
_TURNS = [_USER, {"role": "assistant", "content": "It is \u201cso\u201d."}, _USER]
_TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city & its 'surroundings'",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
_CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": "call00001",
            "type": "function",
            "function": {"name": "weather", "arguments": {"city": "Z\u00fcrich"}},
        }
    ],
}
_RESULT = {"role": "tool", "name": "weather", "content": "21", "tool_call_id": "call00001"}
PROBES: Mapping[str, dict[str, Any]] = {
    "question": {"messages": [_USER]},
    "turns": {"messages": _TURNS},
    "system": {"messages": [{"role": "system", "content": "Be brief."}, *_TURNS]},
    "finished": {"messages": _TURNS[:2], "add_generation_prompt": False},
    "tools": {"messages": [_USER], "tools": [_TOOL]},
    "call": {"messages": [_USER, _CALL, _RESULT], "tools": [_TOOL]},
}


def check_template(template: ChatTemplate) -> dict[str, str]:
    """What came of each probe: SAME text in both, or REFUSED by the template.

    Raises TokenizerError for a template that renders differently.
    """
    still = replace(template, clock=lambda: _NOW)
    return {name: _probe(still, name, probe) for name, probe in PROBES.items()}


def _probe(template: ChatTemplate, name: str, probe: Mapping[str, Any]) -> str:
    given = {"add_generation_prompt": True, "tools": None, **probe}
    try:
        ours = template.render(**given)
    except Error:
        return REFUSED
    theirs = _plainly(template, given)
    if ours == theirs:
        return SAME
    raise TokenizerError(
        f"the model's chat template renders the conversation {name!r} as {ours[-80:]!r} in "
        f"Sterna's sandbox and as {theirs[-80:]!r} in Jinja; this is a mistake in Sterna, please "
        "report it with the template"
    )


def _plainly(template: ChatTemplate, given: Mapping[str, Any]) -> str:
    """The text that the template makes unchanged, or what is wrong with it there."""
    named = TOOL_USE if given["tools"] and TOOL_USE in template.sources else DEFAULT
    values = {**template.special_tokens, "documents": None, **given}
    try:
        return _environment().from_string(template.sources[named]).render(values)
    except Exception as error:  # a stranger's program may raise anything
        return f"{type(error).__name__}: {error}"


def _environment() -> jinja2.Environment:
    """As transformers sets it up (transformers.utils.chat_template_utils)."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _NOW.strftime
    return environment


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
