"""The engine over compiled models: batches, reuse, speculation and windows change no bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from compiled import Compiled, Tiny, Variant, greedy, tiny

from sterna.engine.engine import Engine
from sterna.engine.options import EngineOptions
from sterna.engine.speculative import Speculator
from sterna.text.tokenizer import Tokenizer

CONFIG = {**tiny.VARIANTS["llama2-gqa"], "vocab_size": 157, "max_position_embeddings": 512}
TOKENS = 24
ASKED = {
    "max_tokens": TOKENS,
    "ignore_eos": True,
    "seed": 11,
    "return_token_ids": True,
    "logprobs": 2,
}


@pytest.fixture(autouse=True)
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guesses are made as if they paid, however busy this machine is."""
    monkeypatch.setattr(Speculator, "cost", lambda *_: 1.0)


@pytest.fixture(scope="module")
def compiled(tiny_model: Tiny) -> Compiled:
    return tiny_model(
        CONFIG, "q4f16_1", context_window_size=256, prefill_chunk_size=256, max_batch_size=65
    )


def engine(made: Compiled, num_pages: int = 1200, draft: Any = None, **options: Any) -> Engine:
    tokenizer = Tokenizer.load(made.folder)
    return Engine.from_parts(
        made.load(threads=2, num_pages=num_pages),
        tokenizer,
        None,
        "tiny",
        options=EngineOptions(**({"mode": "server"} | options)),
        draft=draft,
    )


def prompt(start: int, length: int) -> list[int]:
    return [3 + (start * 37 + i * i) % 150 for i in range(length)]


PROMPTS = [prompt(i, 5 + 7 * i % 61) for i in range(64)]
MINE = prompt(99, 50)


def ask(model: Engine, prompts: list[list[int]], **options: Any) -> list[Any]:
    result = model.completions.create(prompt=prompts, **(ASKED | options))
    model._core.call(model._core.scheduler.check)
    return [(choice.token_ids, choice.logprobs) for choice in result.choices]


@pytest.fixture(scope="module", params=[0.0, 1.0], ids=["greedy", "sampled"])
def alone(compiled: Compiled, request: pytest.FixtureRequest) -> Iterator[tuple[float, Any]]:
    with engine(compiled, prefix_cache=False) as model:
        yield request.param, ask(model, [MINE], temperature=request.param)[0]


def test_alone_and_among_64_others(compiled: Compiled, alone: tuple[float, Any]) -> None:
    """Identical tokens and log probabilities."""
    temperature, wanted = alone
    with engine(compiled) as model:
        found = ask(model, [*PROMPTS[:32], MINE, *PROMPTS[32:]], temperature=temperature)
        metrics = model.metrics()
    assert found[32] == wanted
    assert metrics["completion_tokens"] == 65 * TOKENS
    assert metrics["steps"] < 2 * TOKENS


@pytest.mark.parametrize("mode", ["hybrid", "chunked"])
def test_preempted_and_in_small_chunks(
    compiled: Compiled, alone: tuple[float, Any], mode: str
) -> None:
    temperature, wanted = alone
    options = {"max_num_sequence": 8, "prefill_chunk_size": 24, "prefill_mode": mode}
    with engine(compiled, num_pages=22, **options) as model:
        found = ask(model, [*PROMPTS[:12], MINE, *PROMPTS[12:16]], temperature=temperature)
        assert model.metrics()["preemptions"] > 0
    assert found[12] == wanted


def test_what_the_prefix_cache_held(compiled: Compiled, alone: tuple[float, Any]) -> None:
    """Beginnings of every length, pages copied in the middle, then the whole prompt."""
    temperature, wanted = alone
    with engine(compiled) as model:
        for length in (3, 16, 17, 31, 45):
            ask(model, [[*MINE[:length], 5, 6, 7]], temperature=temperature)
        assert ask(model, [MINE], temperature=temperature)[0] == wanted
        assert ask(model, [MINE], temperature=temperature)[0] == wanted
        metrics = model.metrics()
    assert metrics["prefix_hits"] >= 3 + 16 + 17 + 31 + 45 + 49


def test_a_restart(compiled: Compiled, alone: tuple[float, Any], tmp_path: Path) -> None:
    temperature, wanted = alone
    for hits in (0, 49):
        with engine(compiled, prefix_cache_dir=str(tmp_path)) as model:
            assert ask(model, [MINE], temperature=temperature)[0] == wanted
            assert model.metrics()["prefix_hits"] == hits


def test_ngrams(compiled: Compiled, alone: tuple[float, Any]) -> None:
    """Random weights soon repeat themselves when greedy, so guesses are right then."""
    temperature, wanted = alone
    with engine(compiled, speculative="ngram") as model:
        found = ask(model, [MINE, *PROMPTS[:7]], temperature=temperature)
        assert model.metrics()["drafts"] > 0
    assert found[0] == wanted


def test_a_draft_model(compiled: Compiled, alone: tuple[float, Any], tiny_model: Tiny) -> None:
    """The same weights quantized otherwise: right most of the time."""
    temperature, wanted = alone
    other = tiny_model(
        CONFIG, "q0f32", context_window_size=256, prefill_chunk_size=256, max_batch_size=65
    )
    with engine(compiled, draft=other.load(num_pages=1200)) as model:
        found = ask(model, [MINE, *PROMPTS[:7]], temperature=temperature)
        metrics = model.metrics()
    assert found[0] == wanted
    assert metrics["draft_tokens_accepted"] > 20


@pytest.mark.parametrize("speculative", ["off", "ngram"])
def test_pages_that_the_window_left_are_given_back(variant: Variant, speculative: str) -> None:
    """A window of 16 tokens: some pages are enough for any length, and the bits are the same."""
    made = variant("mistral-window", context_window_size=128)
    vocabulary = int(str(tiny.VARIANTS["mistral-window"]["vocab_size"]))
    prompts = [[3 + (i * k) % (vocabulary - 3) for i in range(9)] for k in (2, 3, 5)]
    whole = made.load(num_pages=64)
    wanted = [greedy(whole, one, 90) for one in prompts]
    whole.close()
    # Three of them at their longest want 21 pages of 16 tokens; 12 must do, without preemption.
    with engine(made, num_pages=12, speculative=speculative) as model:
        options = {"max_tokens": 90, "temperature": 0, "logprobs": None}
        found = ask(model, prompts, **options)
        metrics = model.metrics()
    assert [tokens for tokens, _ in found] == wanted
    assert metrics["preemptions"] == 0
