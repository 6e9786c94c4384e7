"""What a line that begins with "/" does in `sterna chat`.

In: the line and the conversation. Out: text to show, or what the chat shall do next. Knows no
terminal.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from enum import Enum, auto
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sterna.base.errors import RequestError, UsageError
from sterna.cli.arguments import closest
from sterna.cli.conversation import Conversation
from sterna.cli.model import SAMPLING
from sterna.engine.options import SamplingOptions

OPTIONS = {option.name: option for option in fields(SamplingOptions) if option.name in SAMPLING}
_KEYS = "Enter sends, Alt-Enter or Ctrl-J starts a new line, Ctrl-C stops an answer."


class Next(Enum):
    """What the chat itself must do."""

    ANSWER = auto()
    LEAVE = auto()
    REGENERATE = auto()


Outcome = str | Next


@dataclass(frozen=True, slots=True)
class Command:
    """`argument` is shown in /help; "" where the command takes none."""

    argument: str
    help: str
    run: Callable[[str, Conversation], Outcome]
    takes_path: bool = False


def is_command(line: str) -> bool:
    return line.startswith("/") and not line.startswith("//")


def obey(line: str, conversation: Conversation) -> Outcome:
    """Carry out a command. UsageError or RequestError says what is wrong with it."""
    name, _, rest = line.strip().partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        raise UsageError(f"there is no command {name}; {closest(name, COMMANDS)}")
    if rest.strip() and not command.argument:
        raise UsageError(f"{name} takes nothing after it, found {rest.strip()!r}")
    return command.run(rest.strip(), conversation)


def stats(conversation: Conversation) -> str:
    """Totals over all turns, the speed of the last one, and how full the window is."""
    turns = [turn for turn in conversation.turns if turn.usage is not None]
    stopped = sum(turn.stopped for turn in conversation.turns)
    usages = [turn.usage for turn in turns if turn.usage]
    lines = [
        f"answers: {len(conversation.turns)} ({stopped} stopped), "
        f"tokens written: {sum(usage.completion_tokens for usage in usages)}"
    ]
    if prompts := sum(usage.prompt_tokens for usage in usages):
        reused = sum(usage.prompt_tokens_details.cached_tokens for usage in usages)
        lines.append(f"prompt tokens: {prompts}, reused: {reused} ({reused / prompts:.0%})")
    last = next((turn.timings for turn in reversed(turns) if turn.timings), None)
    if last is not None:
        lines.append(
            f"last answer: {last.time_to_first_token_s:.3f} s to the first token, "
            f"prefill {last.prefill_tokens_per_s:.1f} tokens/s, "
            f"decode {last.decode_tokens_per_s:.1f} tokens/s"
        )
    used, window = conversation.used(), conversation.engine.context_window
    lines.append(f"context: {'?' if used is None else used} of {window} tokens in use")
    return "\n".join(lines)


def _help(_: str, __: Conversation) -> str:
    heads = [f"{name} {command.argument}".strip() for name, command in COMMANDS.items()]
    wide = max(map(len, heads)) + 2
    lines = [f"{head:{wide}}{c.help}" for head, c in zip(heads, COMMANDS.values(), strict=True)]
    return "\n".join([*lines, _KEYS])


def _set(text: str, conversation: Conversation) -> str:
    pairs = [part.strip() for part in text.split(";") if part.strip()]
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"{pair!r} is not of the form option=value")
        _set_one(name.strip().replace("-", "_"), value.strip(), conversation)
    return _shown(conversation.options) if pairs else _options(conversation.options)


def _options(values: Mapping[str, Any]) -> str:
    """Every option with its value, where one was set, and its help."""
    shown = {name: _written(values[name]) if name in values else "" for name in OPTIONS}
    wide, wider = max(map(len, shown)) + 2, max(map(len, shown.values())) + 2
    return "\n".join(
        f"{name:{wide}}{value:{wider}}{OPTIONS[name].metadata['help']}"
        for name, value in shown.items()
    )


def _shown(values: Mapping[str, Any]) -> str:
    pairs = ", ".join(f"{name}={_written(value)}" for name, value in values.items())
    return f"set: {pairs or 'nothing, the model decides'}"


def _written(value: Any) -> str:
    return ", ".join(map(repr, value)) if isinstance(value, list | tuple) else str(value)


def _set_one(name: str, text: str, conversation: Conversation) -> None:
    if name not in OPTIONS:
        raise RequestError(f"there is no option {name!r}; {closest(name, OPTIONS)}")
    conversation.set(name, _value(OPTIONS[name], text) if text else None)


def _value(option: Field[Any], text: str) -> Any:
    kind = option.metadata["kind"]
    if kind is str:
        return (text,)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise RequestError(f"{option.name} is {text!r}, possible are true and false")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        noun = "an integer" if kind is int else "a number"
        raise RequestError(f"{option.name} is {text!r}, possible is {noun}") from None


def _system(text: str, conversation: Conversation) -> str:
    if text == '""':
        conversation.system = None
    elif text:
        conversation.system = text
    return f"system prompt: {conversation.system or 'none'}"


def _json(text: str, conversation: Conversation) -> str:
    if text == "off":
        conversation.form = None
    elif text == "on":
        conversation.form = {"type": "json_object"}
    elif text:
        schema = _schema(text)
        conversation.form = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": schema, "strict": True},
        }
    if conversation.form is None:
        return "answers are free text"
    kind = conversation.form["type"]
    return f"answers are {'any JSON object' if kind == 'json_object' else 'JSON of the schema'}"


def _schema(text: str) -> dict[str, Any]:
    """A JSON schema as it was typed, or from a file."""
    source = text
    if not text.startswith("{"):
        try:
            source = Path(text).expanduser().read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise UsageError(
                f"{text!r} cannot be read ({why}); possible are on, off, a schema in braces, or a "
                "file that holds one"
            ) from None
    try:
        schema = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the schema is no JSON: {error}") from None
    if not isinstance(schema, dict):
        raise UsageError(f"the schema is {schema!r}, possible is an object")
    return schema


def _save(text: str, conversation: Conversation) -> str:
    from sterna.cli import transcript

    path = _path(text, "/save")
    transcript.save(conversation, path)
    return f"saved {len(conversation.messages)} messages to {path}"


def _load(text: str, conversation: Conversation) -> str:
    from sterna.cli import transcript

    path = _path(text, "/load")
    found = transcript.read(path)
    transcript.resume(conversation, found)
    told = f"loaded {len(found.messages)} messages from {path}"
    name = conversation.engine.model_name
    return told if found.model == name else f"{told}; they are of {found.model}, this is {name}"


def _explain(_: str, conversation: Conversation) -> str:
    """Where the last prompt left the cached one that it had most in common with."""
    if not conversation.turns:
        raise UsageError("there was no prompt yet; ask something first")
    found = conversation.turns[-1].divergence
    told = f"of the last prompt the first {found.cached} tokens were in the cache"
    if found.prompt:
        told += f"; then it goes on with {_words(found.prompt, conversation)}"
    if found.prompt and found.known:
        told += f", and the cached one most like it with {_words(found.known, conversation)}"
    return told


def _words(tokens: Sequence[int], conversation: Conversation) -> str:
    tokenizer = conversation.engine.tokenizer
    return repr(tokenizer.decode(list(tokens), skip_special_tokens=False))


def _path(text: str, command: str) -> Path:
    if not text:
        raise UsageError(f"{command} needs the name of a file")
    return Path(text).expanduser()


def _reset(_: str, conversation: Conversation) -> str:
    conversation.reset()
    return "a new conversation"


COMMANDS: Mapping[str, Command] = MappingProxyType(
    {
        "/help": Command("", "show this", _help),
        "/set": Command(
            "OPTION=VALUE", "e.g. temperature=0.7;max_tokens=200; `x=`: the default; alone: all",
            _set,
        ),
        "/system": Command("TEXT", 'set the system prompt; "" goes without, alone: shown', _system),
        "/json": Command("on|off|SCHEMA", "answer in JSON; of a schema in braces or a file", _json),
        "/regen": Command("", "write the last answer again", lambda *_: Next.REGENERATE),
        "/stats": Command("", "tokens, speed and reuse so far", lambda _, c: stats(c)),
        "/explain": Command("", "where the last prompt left what was in the cache", _explain),
        "/reset": Command("", "start a new conversation", _reset),
        "/save": Command("FILE", "write the conversation to a file", _save, takes_path=True),
        "/load": Command("FILE", "go on with a saved conversation", _load, takes_path=True),
        "/exit": Command("", "leave (also Ctrl-D)", lambda *_: Next.LEAVE),
    }
)  # fmt: skip
