"""Messages to a prompt, through the Jinja template that comes with a model.

In: a model folder (or a template file) and OpenAI-shaped messages; out: the text that the model
was trained to continue, equal to transformers' apply_chat_template(tokenize=False). The template
is a stranger's program: it runs in the sandbox and on the budget of sandbox.py and sees plain data
only. Does not know token ids: encode the text with `allow_special=True`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

from sterna.base.errors import RequestError, TokenizerError
from sterna.text.budget import INPUT_COPIES, MAX_CHARACTERS, Budget, OverBudget, size
from sterna.text.json_file import read_optional, read_text
from sterna.text.sandbox import BUDGET, MAX_SOURCE, TemplateRefusal, compile_template, names_read
from sterna.text.special_tokens import read_special_tokens

DEFAULT = "default"
TOOL_USE = "tool_use"
REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """Compiled templates by name, and the special tokens they may write.

    `sources` holds what was compiled, for `inspect` and for writing it into an artifact;
    `variables` are the names that the templates read from their caller.
    """

    sources: Mapping[str, str]
    special_tokens: Mapping[str, str]
    clock: Callable[[], datetime] = datetime.now
    variables: frozenset[str] = field(init=False)
    _compiled: Mapping[str, jinja2.Template] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        compiled = {name: compile_template(text, self.clock) for name, text in self.sources.items()}
        object.__setattr__(self, "_compiled", compiled)
        read = frozenset[str]().union(*map(names_read, self.sources.values()))
        object.__setattr__(self, "variables", read - self.special_tokens.keys())

    @classmethod
    def load(cls, folder: Path, file: Path | None = None) -> ChatTemplate | None:
        """Load a folder's template, or `file` in its place; None where the model has none.

        chat_template.jinja wins over chat_template.json, and that over tokenizer_config.json.
        Raises TokenizerError for a template that is damaged, invalid or absurdly large.
        """
        folder = Path(folder)
        named = {DEFAULT: _read_template(file)} if file is not None else _find(folder)
        if not named:
            return None
        return cls(named, read_special_tokens(folder).texts)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **extra: Any,
    ) -> str:
        """Render a conversation; `extra` reaches the template (`enable_thinking=False`).

        Raises RequestError where the template refuses the conversation, TokenizerError where it
        fails or wants more time or memory than any template needs.
        """
        if not messages:
            raise RequestError("the conversation is empty: send at least one message")
        values = {
            **self.special_tokens,
            "documents": None,
            **_plain(extra),
            "messages": [_plain_message(message) for message in messages],
            "tools": _plain(tools),
            "add_generation_prompt": add_generation_prompt,
        }
        return self._run(self._choose(tools), values)

    def _choose(self, tools: object) -> jinja2.Template:
        """`tool_use` where tools are given and it exists, else `default`."""
        for name in (TOOL_USE, DEFAULT) if tools else (DEFAULT,):
            if name in self._compiled:
                return self._compiled[name]
        raise TokenizerError(
            f"the model has chat templates named {', '.join(self.sources)} but none named "
            f"{DEFAULT!r}: choose one with --chat-template FILE"
        )

    def _run(self, template: jinja2.Template, values: dict[str, Any]) -> str:
        budget = Budget(MAX_CHARACTERS + INPUT_COPIES * size(values["messages"]))
        try:
            return template.render({**values, BUDGET: budget})
        except TemplateRefusal as error:
            raise RequestError(
                f"the model's chat template refuses this conversation: {error}"
            ) from error
        except OverBudget as error:
            raise TokenizerError(
                f"the model's chat template was stopped: {error}; give a sound one with "
                "--chat-template FILE"
            ) from error
        except Exception as error:  # a stranger's program may raise anything
            raise TokenizerError(
                f"the model's chat template failed ({type(error).__name__}: {str(error)[:300]}); "
                "the messages may lack a field that it needs, or give another template with "
                "--chat-template FILE"
            ) from error


def _find(folder: Path) -> dict[str, str]:
    """Template sources of a folder, by name."""
    named = _named(read_optional(folder / "tokenizer_config.json"), folder)
    named |= _named(read_optional(folder / "chat_template.json"), folder)
    if (folder / "chat_template.jinja").exists():
        named |= {DEFAULT: _read_template(folder / "chat_template.jinja")}
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        named[path.stem] = _read_template(path)
    return named


def _named(config: Mapping[str, Any], folder: Path) -> dict[str, str]:
    value = config.get("chat_template")
    if value is None:
        return {}
    if isinstance(value, str):
        return {DEFAULT: value}
    try:
        named = {entry["name"]: entry["template"] for entry in value}
    except (TypeError, KeyError) as error:
        raise TokenizerError(
            f"{folder}: chat_template is neither a text nor named texts"
        ) from error
    if not all(isinstance(text, str) for pair in named.items() for text in pair):
        raise TokenizerError(f"{folder}: chat_template holds something that is not text")
    return named


def _read_template(path: Path) -> str:
    return read_text(path, 4 * MAX_SOURCE)


def _plain_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as plain data, without nulls, its reasoning under every name templates read."""
    if not isinstance(message, Mapping):
        raise RequestError(f"a message must be an object with a role, not {message!r:.100}")
    plain = {str(key): _plain(value) for key, value in message.items() if value is not None}
    reasoning = next((plain[key] for key in REASONING if key in plain), None)
    if reasoning is None:
        return plain
    return {"thinking": reasoning, **plain, "reasoning_content": reasoning}


def _plain(value: Any) -> Any:
    """Rebuild a value out of JSON types, so that a template meets no object with methods."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):  # an enum, say: back to the bare type
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    raise RequestError(f"a message may hold JSON data only, not a {type(value).__name__}")
