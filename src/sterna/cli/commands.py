"""What a line that begins with "/" does in `sterna chat`.

In: the line and the conversation. Out: text to show, or None to leave. Knows no terminal.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from sterna.base.errors import RequestError, UsageError
from sterna.cli.arguments import closest
from sterna.cli.conversation import Conversation
from sterna.cli.model import SAMPLING
from sterna.engine.options import SamplingOptions

COMMANDS = {
    "/help": "show this",
    "/set": "set options: /set temperature=0.7;max_tokens=200 (`/set k=` goes back to the default)",
    "/stats": "tokens and speed so far",
    "/reset": "start a new conversation",
    "/exit": "leave (also Ctrl-D)",
}
OPTION_NAMES = (*SAMPLING, "system")
_KEYS = "Enter sends, Esc then Enter starts a new line, Ctrl-C stops an answer."


def is_command(line: str) -> bool:
    return line.startswith("/") and not line.startswith("//")


def obey(line: str, conversation: Conversation) -> str | None:
    """Carry out a command. UsageError or RequestError says what is wrong with it."""
    name, _, rest = line.strip().partition(" ")
    if name not in COMMANDS:
        raise UsageError(f"there is no command {name}; {closest(name, COMMANDS)}")
    if name == "/exit":
        return None
    if name == "/reset":
        conversation.reset()
        return "a new conversation"
    if name == "/stats":
        return stats(conversation)
    return _set(rest, conversation) if name == "/set" else _help()


def stats(conversation: Conversation) -> str:
    """Totals over all turns, the speed of the last one, and how full the window is."""
    turns = [turn for turn in conversation.turns if turn.usage is not None]
    stopped = sum(turn.stopped for turn in conversation.turns)
    written = sum(turn.usage.completion_tokens for turn in turns if turn.usage)
    lines = [f"answers: {len(conversation.turns)} ({stopped} stopped), tokens written: {written}"]
    last = next((turn for turn in reversed(turns) if turn.timings), None)
    if last is not None and last.timings and last.usage:
        lines.append(
            f"last answer: {last.timings.time_to_first_token_s:.3f} s to the first token, "
            f"prefill {last.timings.prefill_tokens_per_s:.1f} tokens/s, "
            f"decode {last.timings.decode_tokens_per_s:.1f} tokens/s"
        )
        used = last.usage.total_tokens if conversation.messages else 0
        lines.append(f"context: {used} of {conversation.engine.context_window} tokens in use")
    return "\n".join(lines)


def _help() -> str:
    lines = [f"{name:8}{what}" for name, what in COMMANDS.items()]
    return "\n".join([*lines, _KEYS])


def _set(text: str, conversation: Conversation) -> str:
    for pair in filter(None, (part.strip() for part in text.split(";"))):
        name, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"{pair!r} is not of the form option=value")
        _set_one(name.strip().replace("-", "_"), value.strip(), conversation)
    shown = ", ".join(f"{name}={value}" for name, value in conversation.options.items())
    return f"set: {shown or 'nothing, the model decides'}; options: {', '.join(OPTION_NAMES)}"


def _set_one(name: str, text: str, conversation: Conversation) -> None:
    if name == "system":
        conversation.system = text or None
        return
    if name not in SAMPLING:
        raise RequestError(f"there is no option {name!r}; {closest(name, OPTION_NAMES)}")
    conversation.set(name, _value(name, text) if text else None)


def _value(name: str, text: str) -> Any:
    kind = next(o.metadata["kind"] for o in fields(SamplingOptions) if o.name == name)
    if kind is str:
        return (text,)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise RequestError(f"{name} is {text!r}, possible are true and false")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        noun = "an integer" if kind is int else "a number"
        raise RequestError(f"{name} is {text!r}, possible is {noun}") from None
