"""The conversations that every chat template renders in the tests, and where templates lie."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

NOW = datetime(2025, 3, 9, 14, 5, 6)

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city, <b>now</b> & here: 'é'",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "A city"}},
            "required": ["city"],
        },
    },
}
CALL = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Zürich"}},
}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


CASES: dict[str, dict[str, Any]] = {
    "one": {"messages": [user("Hello, world!")]},
    "closed": {"messages": [user("Hi"), assistant("Hello.")], "add_generation_prompt": False},
    "system": {"messages": [{"role": "system", "content": "Be brief."}, user("Why?")]},
    "turns": {"messages": [user("1"), assistant("2"), user("3"), assistant("4"), user(" 5 \n")]},
    "unicode": {"messages": [user("naïve 🏳️‍🌈 <|im_end|> {{ 7*7 }} {% raw %}\n\n\t日本語")]},
    "empty": {"messages": [user("")]},
    "thoughts": {
        "messages": [
            user("2+2?"),
            assistant("<think>\nadd\n</think>\n\n4"),
            user("and 3+3?"),
        ]
    },
    "reasoning": {
        "messages": [
            user("2+2?"),
            {"role": "assistant", "content": "4", "reasoning_content": "add"},
            user("more"),
            {"role": "assistant", "content": "5", "thinking": "more", "tool_calls": None},
        ],
        "add_generation_prompt": False,
    },
    "silent": {"messages": [user("2+2?")], "extra": {"enable_thinking": False}},
    "tools": {"messages": [user("Rain?")], "tools": [WEATHER]},
    "called": {
        "messages": [
            user("Rain?"),
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "name": "weather", "tool_call_id": "call00001", "content": "sun"},
        ],
        "tools": [WEATHER],
    },
    "wrong order": {"messages": [assistant("I go first."), assistant("Again.")]},
}


def templates(shared: Path) -> dict[str, tuple[str, dict[str, str]]]:
    """Every template among the real inputs: name -> (source, special tokens)."""
    tokens = {"bos_token": "<BOS>", "eos_token": "<EOS>"}
    found = {
        path.name: (path.read_text(encoding="utf-8"), tokens)
        for path in sorted((shared / "chat-templates").glob("*.jinja"))
    }
    for path in sorted((shared / "configs").glob("*/tokenizer_config.json")):
        config = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(config.get("chat_template"), str):
            found[path.parent.name] = (config["chat_template"], special_tokens(config))
    return found


def special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """The special tokens of a tokenizer_config.json as texts."""
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    values = {name: config[name] for name in names if config.get(name)}
    return {k: v["content"] if isinstance(v, dict) else v for k, v in values.items()}
