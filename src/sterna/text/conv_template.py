"""Messages to a prompt, through the `conv_template` object that MLC's model folders carry.

In: the object from mlc-chat-config.json and messages of plain text; out: ids to put first and the
text to encode after them (without added special tokens). Follows mlc-llm's
protocol/conversation_protocol.py; one difference: `{function_string}` counts in templates only,
so a user's text cannot summon the tools. Does not know tokenizers; images are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sterna.base.errors import RequestError, TokenizerError

FUNCTION = "{function_string}"
SYSTEM = "{system_message}"
TEXTS = ("system_template", "system_message", "role_content_sep", "role_empty_sep")
END_OF_THOUGHT = "</think>"


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
    _check(conv_template)
    turns = [(str(m.get("role")), m.get("content")) for m in messages]
    system = "".join(_text(content) for role, content in turns if role == "system")
    history = [tuple(turn) for turn in conv_template.get("messages") or ()]
    turns = history + [turn for turn in turns if turn[0] != "system"]
    if conv_template.get("strip_reasoning_in_history"):
        turns = _without_reasoning(turns)
    if add_generation_prompt:
        turns.append(("assistant", None))
    parts = _system_parts(conv_template, system)
    opened = bool("".join(parts))
    for i, (role, content) in enumerate(turns):
        bare = i == 0 and opened and not conv_template.get("add_role_after_system_message", True)
        parts += _turn_parts(conv_template, role, content, bare)
    ids = list(conv_template.get("system_prefix_token_ids") or ())
    return ids, _fill_function(parts, tools)


def _system_parts(conv: Mapping[str, Any], system: str) -> list[str]:
    """Template texts at even places, contents at odd ones."""
    message = system or conv.get("system_message", "")
    template = str(conv.get("system_template", SYSTEM))
    return _around(template, SYSTEM, message)


def _turn_parts(conv: Mapping[str, Any], role: str, content: Any, bare: bool) -> list[str]:
    roles = conv["roles"]
    if role not in roles:
        raise RequestError(
            f"the model's conversation template has no role {role!r}; it has {', '.join(roles)}"
        )
    if content is None:
        return [roles[role] + conv.get("role_empty_sep", ""), ""]
    seps = conv["seps"]
    end = seps[-1] if role == "assistant" else seps[0]
    prefix = "" if bare else roles[role] + conv.get("role_content_sep", "")
    placeholder = f"{{{role}_message}}"
    template = conv.get("role_templates", {}).get(role, placeholder)
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


def _without_reasoning(turns: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Assistant turns before the last user turn keep what follows their last `</think>`."""
    last = max((i for i, turn in enumerate(turns) if turn[0] == "user"), default=0)
    return [
        (role, _text(content).split(END_OF_THOUGHT)[-1].lstrip("\n"))
        if role == "assistant" and i < last and content is not None
        else (role, content)
        for i, (role, content) in enumerate(turns)
    ]


def _text(content: Any) -> str:
    """The text of a message: a string, or a list of text items."""
    if isinstance(content, str):
        return content
    items = content if isinstance(content, list) else []
    if not items or not all(isinstance(i, Mapping) and i.get("type") == "text" for i in items):
        raise RequestError("a message must hold text: this model's template takes nothing else")
    return "".join(str(item.get("text", "")) for item in items)


def _check(conv: Mapping[str, Any]) -> None:
    """Refuse an object that does not have the fields the algorithm needs."""
    if not isinstance(conv, Mapping):
        raise TokenizerError(
            f"conv_template is {conv!r:.60}, a name from before 2024 that no file explains: "
            "take the chat template from the model's source with --chat-template FILE"
        )
    roles, seps = conv.get("roles"), conv.get("seps")
    ids = conv.get("system_prefix_token_ids") or []
    history = conv.get("messages") or []
    sound = (
        isinstance(roles, Mapping)
        and {"user", "assistant"} <= set(roles)
        and all(isinstance(text, str) for text in roles.values())
        and isinstance(seps, list)
        and len(seps) in (1, 2)
        and all(isinstance(sep, str) for sep in seps)
        and all(isinstance(conv.get(key, ""), str) for key in TEXTS)
        and isinstance(ids, list)
        and all(type(i) is int and i >= 0 for i in ids)
        and isinstance(conv.get("role_templates", {}), Mapping)
        and all(isinstance(turn, list | tuple) and len(turn) == 2 for turn in history)
    )
    if not sound:
        raise TokenizerError(
            "conv_template lacks roles, seps or another field of a conversation template, or has "
            "one of the wrong type: the file is damaged, write it again with gen_config"
        )
