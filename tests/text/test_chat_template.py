"""Chat templates: equal to transformers on real ones, and found where they may lie."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from template_cases import CASES, NOW, templates

from sterna.base.errors import RequestError, TokenizerError
from sterna.text.chat_template import ChatTemplate
from sterna.text.tokenizer import Tokenizer

GOLDENS = Path(__file__).with_name("template_goldens.json")
HELLO = [{"role": "user", "content": "hello"}]


def goldens() -> dict[str, dict[str, dict[str, str]]]:
    loaded: dict[str, dict[str, dict[str, str]]] = json.loads(GOLDENS.read_text(encoding="utf-8"))
    return loaded


def still() -> datetime:
    return NOW


def render(template: ChatTemplate, case: dict[str, Any]) -> str:
    return template.render(
        case["messages"],
        add_generation_prompt=case.get("add_generation_prompt", True),
        tools=case.get("tools"),
        **case.get("extra", {}),
    )


@pytest.mark.parametrize("name", goldens())
def test_real_templates_equal_transformers(shared: Path, name: str) -> None:
    source, tokens = templates(shared)[name]
    template = ChatTemplate({"default": source}, tokens, still)
    for case, golden in goldens()[name].items():
        if "text" in golden:
            assert render(template, CASES[case]) == golden["text"], case
        else:
            with pytest.raises(RequestError) as caught:
                render(template, CASES[case])
            assert golden["error"] in str(caught.value)


def test_every_real_template_has_goldens(shared: Path) -> None:
    assert set(templates(shared)) == set(goldens())


def test_folders_load_with_their_own_tokens(shared: Path) -> None:
    for folder in (shared / "configs").iterdir():
        if folder.name in goldens():
            template = ChatTemplate.load(folder)
            assert template is not None
            for case in ("one", "turns", "unicode"):
                assert render(template, CASES[case]) == goldens()[folder.name][case]["text"] or (
                    "strftime_now" in template.sources["default"]
                )


def test_rendered_start_token_is_not_doubled(shared: Path) -> None:
    folder = shared / "configs" / "Mistral-7B-Instruct-v0.3"
    template, tokenizer = ChatTemplate.load(folder), Tokenizer.load(folder)
    assert template is not None
    text = template.render(HELLO)
    assert text.startswith("<s>")
    assert tokenizer.encode(text, allow_special=True).count(1) == 1
    assert tokenizer.encode(text, allow_special=True) == tokenizer.encode(
        text, add_special_tokens=False, allow_special=True
    )


def write(folder: Path, **configs: Any) -> Path:
    for name, value in configs.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


def load(folder: Path, file: Path | None = None) -> ChatTemplate:
    template = ChatTemplate.load(folder, file)
    assert template is not None
    return template


def test_no_template_is_none(tmp_path: Path) -> None:
    assert ChatTemplate.load(tmp_path) is None
    assert ChatTemplate.load(write(tmp_path, tokenizer_config={"bos_token": "<s>"})) is None
    assert ChatTemplate.load(write(tmp_path, tokenizer_config={"chat_template": None})) is None


def test_which_file_wins(tmp_path: Path) -> None:
    write(tmp_path, tokenizer_config={"chat_template": "config"})
    assert load(tmp_path).render(HELLO) == "config"
    write(tmp_path, chat_template={"chat_template": "json"})
    assert load(tmp_path).render(HELLO) == "json"
    (tmp_path / "chat_template.jinja").write_text("jinja")
    assert load(tmp_path).render(HELLO) == "jinja"
    (tmp_path / "mine").write_text("mine")
    assert load(tmp_path, tmp_path / "mine").render(HELLO) == "mine"


def test_named_templates(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    write(tmp_path, tokenizer_config={"chat_template": named})
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("rag")
    template = load(tmp_path)
    assert template.render(HELLO) == "plain"
    assert template.render(HELLO, tools=[{"type": "function"}]) == "tools"
    assert set(template.sources) == {"default", "tool_use", "rag"}


def test_no_default_is_said(tmp_path: Path) -> None:
    named = [{"name": "rag", "template": "x"}]
    template = load(write(tmp_path, tokenizer_config={"chat_template": named}))
    with pytest.raises(TokenizerError, match="--chat-template"):
        template.render(HELLO)


def test_special_tokens_reach_the_template(tmp_path: Path) -> None:
    config = {
        "chat_template": "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ x }}",
        "bos_token": {"content": "<s>"},
        "eos_token": None,
    }
    write(tmp_path, tokenizer_config=config, special_tokens_map={"eos_token": "</s>"})
    assert load(tmp_path).render(HELLO, x=1) == "<s>|||1"
    assert load(tmp_path).render(HELLO, bos_token="B") == "B|||"


@pytest.mark.parametrize(
    "value", [7, [], [{"name": "default"}], [{"name": 1, "template": "x"}], {"default": "x"}]
)
def test_damaged_template_field(tmp_path: Path, value: Any) -> None:
    write(tmp_path, tokenizer_config={"chat_template": value})
    if value == []:
        assert ChatTemplate.load(tmp_path) is None
    else:
        with pytest.raises(TokenizerError):
            ChatTemplate.load(tmp_path)


def test_missing_template_file(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="regular file"):
        ChatTemplate.load(tmp_path, tmp_path / "nothing")


@pytest.mark.parametrize("messages", [[], ["hello"], [{"role": "user", "content": object()}]])
def test_messages_that_are_none(messages: list[Any]) -> None:
    with pytest.raises(RequestError):
        ChatTemplate({"default": "{{ messages }}"}, {}).render(messages)


def test_clock() -> None:
    template = ChatTemplate({"default": "{{ strftime_now('%d %b %Y') }}"}, {}, still)
    assert template.render(HELLO) == "09 Mar 2025"


def test_messages_are_not_changed() -> None:
    messages = [{"role": "assistant", "content": "4", "thinking": "add", "tool_calls": None}]
    before = json.dumps(messages)
    text = ChatTemplate({"default": "{{ messages[0].reasoning_content }}"}, {}).render(messages)
    assert (text, json.dumps(messages)) == ("add", before)
