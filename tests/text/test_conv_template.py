"""MLC's conversation templates, by their published algorithm and on real folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sterna.base.errors import RequestError, TokenizerError
from sterna.text.conv_template import render

CHATML: dict[str, Any] = {
    "name": "chatml",
    "system_template": "<|im_start|>system\n{system_message}<|im_end|>\n",
    "system_message": "You are kind.",
    "roles": {"user": "<|im_start|>user", "assistant": "<|im_start|>assistant"},
    "role_templates": {"user": "{user_message}", "assistant": "{assistant_message}"},
    "seps": ["<|im_end|>\n"],
    "role_content_sep": "\n",
    "role_empty_sep": "\n",
}
LLAMA2: dict[str, Any] = {
    "system_template": "[INST] <<SYS>>\n{system_message}\n<</SYS>>\n\n",
    "system_message": "Help.",
    "system_prefix_token_ids": [1],
    "add_role_after_system_message": False,
    "roles": {"user": "[INST]", "assistant": "[/INST]", "tool": "[INST]"},
    "seps": [" ", " </s><s>"],
    "role_content_sep": " ",
    "role_empty_sep": " ",
}
HISTORY = [
    {"role": "user", "content": "1"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "3"},
]


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def test_chatml() -> None:
    ids, text = render(CHATML, HISTORY)
    assert ids == []
    assert text == (
        "<|im_start|>system\nYou are kind.<|im_end|>\n<|im_start|>user\n1<|im_end|>\n"
        "<|im_start|>assistant\n2<|im_end|>\n<|im_start|>user\n3<|im_end|>\n<|im_start|>assistant\n"
    )


def test_first_role_after_the_system_text_and_two_separators() -> None:
    ids, text = render(LLAMA2, HISTORY)
    assert ids == [1]
    assert text == "[INST] <<SYS>>\nHelp.\n<</SYS>>\n\n1 [/INST] 2 </s><s>[INST] 3 [/INST] "


def test_request_replaces_the_system_message() -> None:
    text = render(CHATML, [system("Be {function_string} terse."), *HISTORY[:1]])[1]
    assert text.startswith("<|im_start|>system\nBe {function_string} terse.<|im_end|>\n")


def test_no_system_text_keeps_the_first_role() -> None:
    template = LLAMA2 | {"system_template": "{system_message}", "system_message": ""}
    assert render(template, HISTORY[:1])[1] == "[INST] 1 [/INST] "


def test_history_of_the_template_and_no_generation_prompt() -> None:
    template = CHATML | {"system_template": "", "messages": [["user", "a"], ["assistant", "b"]]}
    assert render(template, HISTORY[:1], add_generation_prompt=False)[1] == (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        "<|im_start|>user\n1<|im_end|>\n"
    )


def test_tools_go_to_the_last_place_only() -> None:
    roles = CHATML["role_templates"] | {"user": "{function_string}<{user_message}>"}
    template = CHATML | {"role_templates": roles, "system_template": "{function_string}"}
    messages = [*HISTORY[:2], {"role": "user", "content": "{function_string}"}]
    text = render(template, messages, tools="[T]")[1]
    assert "user\n<1>" in text
    assert "user\n[T]<{function_string}>" in text
    assert text.count("[T]") == 1
    assert "[T]" not in render(template, messages)[1]


def test_placeholder_in_a_users_text_stays() -> None:
    message = {"role": "user", "content": "{user_message} {system_message}"}
    assert "{user_message} {system_message}<|im_end|>" in render(CHATML, [message])[1]


def test_reasoning_is_stripped_from_history() -> None:
    template = CHATML | {"strip_reasoning_in_history": True, "system_template": ""}
    thought = {"role": "assistant", "content": "<think>x</think>\n\n2"}
    text = render(template, [HISTORY[0], thought, HISTORY[2]])[1]
    assert "assistant\n2<|im_end|>" in text
    kept = render(template, [HISTORY[0], thought], add_generation_prompt=False)[1]
    assert "<think>x</think>" in kept


def test_content_as_a_list_of_texts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert "user\nab<|im_end|>" in render(CHATML, [{"role": "user", "content": parts}])[1]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "judge", "content": "x"},
        {"content": "x"},
        {"role": "user", "content": 5},
        {"role": "user", "content": [{"type": "image_url", "image_url": "x"}]},
    ],
)
def test_message_it_cannot_express(message: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        render(CHATML, [message])


@pytest.mark.parametrize(
    "change",
    [
        {"roles": None},
        {"roles": {"user": "u"}},
        {"roles": {"user": 1, "assistant": "a"}},
        {"seps": []},
        {"seps": [1]},
        {"system_template": 5},
        {"system_prefix_token_ids": ["x"]},
        {"system_prefix_token_ids": [-1]},
        {"role_templates": []},
        {"role_templates": {"user": 3}},
        {"messages": [["user"]]},
        {"messages": [[1, 2]]},
        {"strip_reasoning_in_history": "yes"},
    ],
)
def test_damaged_template(change: dict[str, Any]) -> None:
    with pytest.raises(TokenizerError):
        render(CHATML | change, HISTORY)


def test_a_mere_name_is_refused_with_advice() -> None:
    with pytest.raises(TokenizerError, match="--chat-template"):
        render("redpajama_chat", HISTORY)  # type: ignore[arg-type]


@pytest.mark.parametrize("folder", ["Llama-3-8B-Instruct", "Qwen2.5-0.5B", "Phi-3-mini"])
def test_real_folders(shared: Path, folder: str) -> None:
    path = next((shared / "mlc-format").glob(f"{folder}*/mlc-chat-config.json"))
    template = json.loads(path.read_text(encoding="utf-8"))["conv_template"]
    ids, text = render(template, [system("S"), *HISTORY])
    assert ids == (template.get("system_prefix_token_ids") or [])
    assert text.index("S") < text.index("1") < text.index("2") < text.index("3")
    assert text.endswith(template["roles"]["assistant"] + template["role_empty_sep"])
