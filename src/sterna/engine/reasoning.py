"""Thinking: whether a model writes `<think>`, and where an answer begins with regard to it.

In: a chat template, asked by rendering small conversations; and each rendered prompt. Out: a
`Start`. What a model thinks is told apart from what it says by chat_parser.py.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Any

from sterna.base.errors import Error
from sterna.text.template import Template

OPEN, CLOSE = "<think>", "</think>"
_USER: dict[str, Any] = {"role": "user", "content": "Hello"}


class Start(Enum):
    """Where an answer begins."""

    SPEECH = auto()  # nothing is thought
    THOUGHT = auto()  # the prompt ends inside a thought
    EITHER = auto()  # the model may open a thought first


def thinks(template: Template) -> bool:
    """Whether the template knows thoughts: it writes their marks, or takes thoughts out.

    Asked with and without thinking, and with a thought in an earlier answer.
    """
    thought = {"role": "assistant", "content": f"{OPEN}\nthe thought\n{CLOSE}\n\nthe answer"}
    prompts = [
        _rendered(template, [_USER]),
        _rendered(template, [_USER], enable_thinking=False),
        _rendered(template, [_USER], enable_thinking=True),
    ]
    history = _rendered(template, [_USER, thought, _USER])
    taken_out = "the answer" in history and "the thought" not in history
    return taken_out or any(_ends_with_a_thought(prompt) for prompt in prompts)


def start_of(prompt: str, known: bool) -> Start:
    """Where the answer to a rendered prompt begins; `known`: the model's template thinks."""
    if not known:
        return Start.SPEECH
    end = prompt.rstrip()
    if end.endswith(OPEN):
        return Start.THOUGHT
    return Start.SPEECH if end.endswith(CLOSE) else Start.EITHER


def _ends_with_a_thought(prompt: str) -> bool:
    return prompt.rstrip().endswith((OPEN, CLOSE))


def _rendered(template: Template, messages: list[dict[str, Any]], **extra: Any) -> str:
    """The text, or none where the template refuses."""
    try:
        return template.render(messages, **extra)
    except Error:
        return ""
