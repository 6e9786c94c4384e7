"""Adapters over HTTP: listed beside their model, and chosen by name in every route."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import Running, start

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))

from adapted_null import adapted

from sterna.engine.engine import AsyncEngine


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    running = start(adapted(face=AsyncEngine))
    yield running
    running.stop()


def test_they_are_listed_with_their_parent(server: Running) -> None:
    cards = server.ask("/v1/models").json["data"]
    assert [(c["id"], c["parent"]) for c in cards] == [
        ("null", None), ("one", "null"), ("two", "null"),
    ]  # fmt: skip
    assert server.ask("/v1/models/one").json["parent"] == "null"


def test_each_route_takes_their_names(server: Running) -> None:
    texts = set()
    for name in ("null", "one", "two"):
        chat = server.chat(model=name)
        assert (chat.status, chat.json["model"]) == (200, name)
        texts.add(chat.json["choices"][0]["message"]["content"])
        asked = {"model": name, "prompt": "hello", "max_tokens": 4}
        assert server.ask("/v1/completions", asked).json["model"] == name
        asked = {"model": name, "input": "hello", "max_output_tokens": 4}
        assert server.ask("/v1/responses", asked).json["model"] == name
        assert server.ask("/tokenize", {"model": name, "prompt": "hi"}).json["count"] == 2
    assert len(texts) == 3


def test_without_a_name_it_is_the_model(server: Running) -> None:
    assert server.chat().json["model"] == "null"
    base = server.chat(model="null").json["choices"]
    assert server.chat().json["choices"] == base


def test_other_names_are_refused_with_what_is_possible(server: Running) -> None:
    answer = server.chat(model="three")
    assert answer.status == 404
    assert "null, one, two" in answer.error["message"]
