"""Messages to a prompt, through the `conv_template` object that MLC's model folders carry.

In: the object from mlc-chat-config.json and messages of plain text; out: ids to put first and the
text to encode after them (without added special tokens). Follows mlc-llm's
protocol/conversation_protocol.py; one difference: `{function_string}` counts in templates only,
so a user's text cannot summon the tools. Does not know tokenizers; images are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec

from sterna.base.errors import RequestError, TokenizerError

FUNCTION = "{function_string}"
SYSTEM = "{system_message}"
END_OF_THOUGHT = "</think>"

TokenId = Annotated[int, msgspec.Meta(ge=0)]
Content = str | list[dict[str, Any]] | None
Turn = tuple[str, Content]


class ConvTemplate(msgspec.Struct, frozen=True):
    """The fields that shape a prompt, named as in the file; others are ignored."""

    roles: dict[str, str]
    seps: Annotated[list[str], msgspec.Meta(min_length=1, max_length=2)]
    system_template: str = SYSTEM
    system_message: str = ""
    system_prefix_token_ids: list[TokenId] | None = None
    add_role_after_system_message: bool = True
    role_templates: dict[str, str] = {}
    messages: list[Turn] = []
    role_content_sep: str = ""
    role_empty_sep: str = ""
    strip_reasoning_in_history: bool = False


def render(
    conv_template: Mapping[str, Any],
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    tools: str = "",
) -> tuple[list[int], str]:
    """Return (prefix ids, text). `tools` is the JSON text of the tools, "" for none.

    Raises TokenizerError for an object that is no conversation template, RequestError for a
    message that it cannot express.
    """
    conv = _read(conv_template)
    turns: list[Turn] = [(str(m.get("role")), m.get("content")) for m in messages]
    system = "".join(_text(content) for role, content in turns if role == "system")
    turns = conv.messages + [turn for turn in turns if turn[0] != "system"]
    if conv.strip_reasoning_in_history:
        turns = _without_reasoning(turns)
    if add_generation_prompt:
        turns.append(("assistant", None))
    parts = _around(conv.system_template, SYSTEM, system or conv.system_message)
    bare_first = not conv.add_role_after_system_message and any(parts)
    for i, (role, content) in enumerate(turns):
        parts += _turn_parts(conv, role, content, bare=bare_first and i == 0)
    return list(conv.system_prefix_token_ids or ()), _fill_function(parts, tools)


def _turn_parts(conv: ConvTemplate, role: str, content: Content, *, bare: bool) -> list[str]:
    """Template texts at even places, contents at odd ones."""
    if role not in conv.roles:
        raise RequestError(
            f"the model's conversation template has no role {role!r}; "
            f"it has {', '.join(conv.roles)}"
        )
    if content is None:
        return [conv.roles[role] + conv.role_empty_sep, ""]
    end = conv.seps[-1] if role == "assistant" else conv.seps[0]
    prefix = "" if bare else conv.roles[role] + conv.role_content_sep
    placeholder = f"{{{role}_message}}"
    template = conv.role_templates.get(role, placeholder)
    return _around(prefix + template + end, placeholder, _text(content))


def _around(template: str, placeholder: str, content: str) -> list[str]:
    """[text, content, text, content, ..., text, ""]: an even number of parts."""
    parts: list[str] = []
    for text in template.split(placeholder):
        parts += [text, content]
    parts[-1] = ""
    return parts


def _fill_function(parts: list[str], tools: str) -> str:
    """The last `{function_string}` of the templates becomes the tools, the others nothing."""
    for i in range(len(parts) - 2, -1, -2):
        if FUNCTION in parts[i]:
            parts[i] = tools.join(parts[i].rsplit(FUNCTION, 1)).replace(FUNCTION, "")
            tools = ""
    return "".join(parts)


def _without_reasoning(turns: list[Turn]) -> list[Turn]:
    """Assistant turns before the last user turn keep what follows their last `</think>`."""
    last = max((i for i, turn in enumerate(turns) if turn[0] == "user"), default=0)
    return [
        (role, _text(content).split(END_OF_THOUGHT)[-1].lstrip("\n"))
        if role == "assistant" and i < last and content is not None
        else (role, content)
        for i, (role, content) in enumerate(turns)
    ]


def _text(content: Content) -> str:
    """The text of a message: a string, or a list of text items."""
    if isinstance(content, str):
        return content
    items = content if isinstance(content, list) else []
    if not items or not all(isinstance(i, Mapping) and i.get("type") == "text" for i in items):
        raise RequestError("a message must hold text: this model's template takes nothing else")
    return "".join(str(item.get("text", "")) for item in items)


def _read(conv_template: Mapping[str, Any]) -> ConvTemplate:
    if isinstance(conv_template, str):
        raise TokenizerError(
            f"conv_template is {conv_template!r:.60}, a name from before 2024 that no file "
            "explains: take the chat template from the model's source with --chat-template FILE"
        )
    try:
        conv = msgspec.convert(conv_template, ConvTemplate)
    except msgspec.ValidationError as error:
        raise TokenizerError(
            f"conv_template is no conversation template ({error}): the file is damaged, "
            "write it again with gen_config"
        ) from error
    if not {"user", "assistant"} <= set(conv.roles):
        raise TokenizerError("conv_template must have the roles user and assistant")
    return conv
