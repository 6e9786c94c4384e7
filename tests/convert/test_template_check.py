"""A template means the same in the sandbox as in plain Jinja, or conversion says so."""

import json
import sys
from pathlib import Path

import jinja2
import pytest
from source_folder import Make

from sterna.base.errors import TokenizerError
from sterna.convert import gen_config, template_check
from sterna.convert.template_check import PROBES, REFUSED, SAME, check_template
from sterna.text.chat_template import ChatTemplate

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "text"))

from template_cases import templates

LINES = "{% for m in messages %}\n    {{ m['content'] }}\n{% endfor %}\n"


def test_every_real_template_means_the_same(shared: Path) -> None:
    found = [
        check_template(ChatTemplate({"default": source}, tokens))
        for source, tokens in templates(shared).values()
    ]
    assert all(probes["question"] == SAME for probes in found)
    assert sum(probes["call"] == SAME for probes in found) > len(found) // 4


def test_a_difference_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_check, "_environment", lambda: jinja2.Environment())
    with pytest.raises(TokenizerError, match=r"'question'.*mistake in Sterna"):
        check_template(ChatTemplate({"default": LINES}, {}))


def test_what_the_template_refuses_or_never_ends() -> None:
    refusing = "{{ raise_exception('no') }}"
    assert set(check_template(ChatTemplate({"default": refusing}, {})).values()) == {REFUSED}
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}"
    assert set(check_template(ChatTemplate({"default": endless}, {})).values()) == {REFUSED}


def test_the_folder_says_what_was_checked(make: Make, tmp_path: Path) -> None:
    source = make()
    path = source / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": LINES}))
    gen_config(source, tmp_path / "OUT", quantization="q4f16_1")
    kept = json.loads((tmp_path / "OUT" / "sterna.json").read_text())
    assert kept["chat_template"] == dict.fromkeys(PROBES, SAME)
