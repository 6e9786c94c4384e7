"""The `conv_template` object of mlc-chat-config.json, for loaders that know no Jinja.

In: a name that MLC users know, a file, or the model's own chat template. Out: the object. Without
a name it is derived from the chat template: rendered once with marks in place of the contents,
what stands between the marks is the format. Sterna itself prefers the chat template.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sterna.base.errors import Error, TokenizerError, UsageError
from sterna.text import conv_template
from sterna.text.chat_template import ChatTemplate
from sterna.text.json_file import read_object
from sterna.text.tokenizer import Tokenizer

RAW = "LM"  # no roles at all: plain continuation, MLC's name for it
DERIVED = "chat_template"

_ASSISTANT = "You are a helpful, respectful and honest assistant."
_LLAMA3 = {
    "system_template": "<|start_header_id|>system<|end_header_id|>\n\n{system_message}<|eot_id|>",
    "system_message": _ASSISTANT,
    "system_prefix_token_ids": [128000],
    "roles": {
        "user": "<|start_header_id|>user",
        "assistant": "<|start_header_id|>assistant",
        "tool": "<|start_header_id|>ipython",
    },
    "seps": ["<|eot_id|>"],
    "role_content_sep": "<|end_header_id|>\n\n",
    "role_empty_sep": "<|end_header_id|>\n\n",
}
_NAMED: dict[str, dict[str, Any]] = {
    RAW: {"roles": {"user": "", "assistant": ""}, "seps": [""]},
    "chatml": {
        "system_template": "<|im_start|>system\n{system_message}<|im_end|>\n",
        "system_message": _ASSISTANT,
        "roles": {"user": "<|im_start|>user", "assistant": "<|im_start|>assistant"},
        "seps": ["<|im_end|>\n"],
        "role_content_sep": "\n",
        "role_empty_sep": "\n",
        "stop_str": ["<|im_end|>"],
    },
    "llama-2": {
        "system_template": "[INST] <<SYS>>\n{system_message}\n<</SYS>>\n\n",
        "system_message": _ASSISTANT,
        "system_prefix_token_ids": [1],
        "add_role_after_system_message": False,
        "roles": {"user": "<s>[INST]", "assistant": "[/INST]", "tool": "[INST]"},
        "seps": [" ", " </s>"],
        "role_content_sep": " ",
        "role_empty_sep": " ",
        "stop_str": ["[INST]"],
        "stop_token_ids": [2],
    },
    "llama-3": {**_LLAMA3, "stop_token_ids": [128001, 128009]},
    "llama-3_1": {**_LLAMA3, "stop_token_ids": [128001, 128008, 128009]},
    "mistral_default": {
        "system_template": "[INST] {system_message}",
        "system_message": _ASSISTANT,
        "system_prefix_token_ids": [1],
        "add_role_after_system_message": False,
        "roles": {"user": "[INST]", "assistant": "[/INST]", "tool": "[INST]"},
        "seps": [" "],
        "role_content_sep": " ",
        "stop_str": ["</s>"],
        "stop_token_ids": [2],
    },
    "tinyllama_v1_0": {
        "system_template": "<|system|>\n{system_message}</s>",
        "system_message": _ASSISTANT,
        "roles": {"user": "<|user|>", "assistant": "<|assistant|>"},
        "seps": ["</s>"],
        "role_content_sep": "\n",
        "role_empty_sep": "\n",
        "stop_str": ["</s>"],
        "stop_token_ids": [2],
    },
}
_BLANK: dict[str, Any] = {
    "name": RAW,
    "system_template": "{system_message}",
    "system_message": "",
    "system_prefix_token_ids": None,
    "add_role_after_system_message": True,
    "roles": {},
    "role_templates": {
        "user": "{user_message}",
        "assistant": "{assistant_message}",
        "tool": "{tool_message}",
    },
    "messages": [],
    "seps": [""],
    "role_content_sep": "",
    "role_empty_sep": "",
    "stop_str": [],
    "stop_token_ids": [],
    "function_string": "",
    "use_function_calling": False,
}
_SYSTEM, _USER, _ANSWER, _AGAIN = (
    "\u2020system\u2020",
    "\u2020ask\u2020",
    "\u2020say\u2020",
    "\u2020end\u2020",
)
_PROBE = [
    {"role": "system", "content": _SYSTEM},
    {"role": "user", "content": _USER},
    {"role": "assistant", "content": _ANSWER},
    {"role": "user", "content": _AGAIN},
]


def make_conv_template(
    asked: str | None, template: ChatTemplate | None, tokenizer: Tokenizer, stop_ids: list[int]
) -> dict[str, Any]:
    """The object for a name, a JSON file's path, or None: derived, or raw where that fails.

    `stop_ids`, the model's own end tokens, join those that the template names. Raises UsageError
    for a name that is not known, TokenizerError for a file that is no conversation template.
    """
    if asked is None:
        chosen = _derive(template, tokenizer) if template is not None else None
        chosen = chosen or {**_NAMED[RAW], "name": RAW}
    else:
        chosen = _named(asked)
    whole = {**_BLANK, **chosen}
    stops = [*(whole["stop_token_ids"] or []), *stop_ids]
    return {**whole, "stop_token_ids": list(dict.fromkeys(stops))}


def _named(asked: str) -> dict[str, Any]:
    if asked in _NAMED:
        return {**_NAMED[asked], "name": asked}
    path = Path(asked)
    if asked.endswith(".json") and path.is_file():
        given = read_object(path)
        conv_template.render(given, [{"role": "user", "content": "x"}])  # TokenizerError if unfit
        return {"name": path.stem, **given}
    raise UsageError(
        f"the conversation template {asked!r} is not known; known: {', '.join(_NAMED)}, or the "
        "path of a JSON file with such an object; leave it out to use the model's chat template"
    )


def _derive(template: ChatTemplate, tokenizer: Tokenizer) -> dict[str, Any] | None:
    """Read the format off a rendered conversation; None for one that the object cannot say."""
    try:
        text = template.render(_PROBE)
    except Error:
        return None
    start = template.special_tokens.get("bos_token", "")
    if start and text.startswith(start) and tokenizer.bos_id is None:
        raise TokenizerError(
            f"the chat template begins with the bos_token {start[:60]!r}, which is no token of the "
            "vocabulary: the tokenizer's files belong to different models"
        )
    prefix = [tokenizer.bos_id] if start and text.startswith(start) else None
    body = text.removeprefix(start) if prefix else text
    pieces = _split(body)
    if pieces is None:
        return None
    opening, to_user, to_assistant, back_to_user, ending = pieces
    if ending != to_assistant or not to_user.endswith(back_to_user):
        return None
    made = {
        "name": DERIVED,
        "system_template": opening + "{system_message}" + to_user.removesuffix(back_to_user),
        "system_prefix_token_ids": prefix,
        "roles": {"user": back_to_user, "assistant": to_assistant},
    }
    _, again = conv_template.render({**_BLANK, **made}, _PROBE)
    return made if again == body else None


def _split(text: str) -> tuple[str, ...] | None:
    pieces: list[str] = []
    for mark in (_SYSTEM, _USER, _ANSWER, _AGAIN):
        before, found, text = text.partition(mark)
        if not found:
            return None
        pieces.append(before)
    return (*pieces, text)


def as_json(value: dict[str, Any]) -> bytes:
    """JSON as MLC lays it out: two spaces a level."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
