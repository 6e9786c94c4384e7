"""Adapters chosen by name: each request its own, none in another's cache."""

from __future__ import annotations

from typing import Any

import pytest
from adapted_null import adapted
from null_model import engine

from sterna.base.errors import RequestError
from sterna.engine.engine import Engine
from sterna.engine.options import EngineOptions

ASKED = {"max_tokens": 12, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
PROMPT = "over the ice and over the ice again"


def ask(model: Engine, name: str | None, prompt: str = PROMPT) -> tuple[list[int], int]:
    """Token ids, and how many prompt tokens came from the cache."""
    result = model.completions.create(prompt=prompt, model=name, **ASKED)
    model._core.call(model._core.scheduler.check)
    assert result.model == (name or "null")
    return result.choices[0].token_ids, result.usage.prompt_tokens_details.cached_tokens


def test_each_name_has_answers_of_its_own() -> None:
    with engine() as plain:
        wanted = ask(plain, None)[0]
    with adapted() as model:
        base, one, two = (ask(model, name)[0] for name in (None, "one", "two"))
        assert model.adapters == ("one", "two")
    assert base == wanted
    assert len({tuple(base), tuple(one), tuple(two)}) == 3


def test_the_prefix_cache_is_an_adapters_own() -> None:
    with adapted() as model:
        first = {name: ask(model, name) for name in ("null", "one", "two")}
        again = {name: ask(model, name) for name in ("two", "null", "one")}
        known = model.explain_prefix(PROMPT, model="one").cached
        assert model.explain_prefix(PROMPT + "!", model="two").cached == known == len(PROMPT)
        assert model.metrics()["pages_free"] == 512
    assert all(reused == 0 for _, reused in first.values())
    assert all(again[name][0] == first[name][0] for name in first)
    assert all(reused >= len(PROMPT) - 2 for _, reused in again.values())


def test_all_at_once_as_one_by_one() -> None:
    """In one batch, with prompts that begin alike, and pages for two or three of them."""
    names = [None, "one", "two", "one", None, "two"]
    with adapted(prefix_cache=False) as model:
        alone = [ask(model, name)[0] for name in names]
    for options in ({}, {"pages": 40, "prefill_chunk_size": 16}, {"speculative": "ngram"}):
        with adapted(**options) as model:
            streams = [
                model.completions.create(prompt=PROMPT, model=name, stream=True, **ASKED)
                for name in names
            ]
            found = [[t for chunk in s for t in chunk.choices[0].token_ids] for s in streams]
            model._core.call(model._core.scheduler.check)
        assert found == alone, options


def test_evicted_pages_of_adapters_go_as_others_do() -> None:
    with adapted(pages=16, max_num_sequence=1) as model:
        first = {n: ask(model, n, chr(65 + i) * 40)[0] for i, n in enumerate(("one", "two", None))}
        assert model.metrics()["prefix_evictions"] > 0
        again = {n: ask(model, n, chr(65 + i) * 40)[0] for i, n in enumerate(("one", "two", None))}
    assert again == first


def test_pages_of_adapters_stay_off_the_disk(tmp_path: Any) -> None:
    with adapted(prefix_cache_dir=str(tmp_path)) as model:
        one = ask(model, "one")[0]
        assert not list(tmp_path.glob("*/*"))
        base = ask(model, None)[0]
    assert list(tmp_path.glob("*/*"))
    with adapted(prefix_cache_dir=str(tmp_path)) as model:
        assert ask(model, "one") == (one, 0)
        found, reused = ask(model, None)
        assert found == base
        assert reused > 0


def test_chat_goes_through_an_adapter_too() -> None:
    def say(model: Engine, name: str | None) -> str:
        messages = [{"role": "user", "content": "hello"}]
        asked = {"max_tokens": 8, "temperature": 0, "ignore_eos": True}
        result = model.chat.completions.create(messages=messages, model=name, **asked)
        assert result.model == (name or "null")
        return str(result.choices[0].message.content)

    with adapted() as model:
        assert len({say(model, name) for name in (None, "one", "two")}) == 3


def test_names_that_are_wrong() -> None:
    with adapted() as model, pytest.raises(RequestError, match="'null', 'one', 'two'"):
        ask(model, "three")
    with pytest.raises(RequestError, match="both called 'null'"):
        adapted(adapters={"null": 0})


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([("a", "x"), ("a", "y")], "two adapters alike"),
        ("a=x", "a map of names"),
        ([("", "x")], "a map of names"),
        ({f"a{i}": "x" for i in range(257)}, "257 adapters"),
    ],
)
def test_options_that_are_wrong(value: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        EngineOptions(lora=value)
