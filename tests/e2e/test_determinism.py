"""A row's logits are the same bits however steps were cut, batched and shared among threads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from compiled import Compiled, Logits, Part, Tiny, all_logits, cut, greedy, step_input, tiny

from sterna.engine.engine import Engine
from sterna.engine.options import EngineOptions
from sterna.runtime.cpu import CpuExecutable
from sterna.runtime.executable import Executable
from sterna.text.tokenizer import Tokenizer

CONFIG = {
    **tiny.VARIANTS["llama2-gqa"],
    "intermediate_size": 172,
    "max_position_embeddings": 512,
    "num_hidden_layers": 2,
    "vocab_size": 157,
}
QUICK = ("q0f32", "q4f16_1")
SCHEMES = (*QUICK, "q8f16_1", "q3f16_1", "q4f16_0", "q4f16_1z")
LENGTH = 300  # crosses two borders of attention's pieces of 128 tokens
LENGTHS = (1, 15, 16, 17, 40, 5, 33, 64)  # around pages of 16 and query tiles of 16
PAGES = 96
STEPS = 4

GENERATOR = np.random.default_rng(7)
PROMPT = GENERATOR.integers(3, 157, LENGTH).tolist()
PROMPTS = [GENERATOR.integers(3, 157, length).tolist() for length in LENGTHS]
SHUFFLED = GENERATOR.permutation(PAGES).tolist()


def params() -> list[object]:
    return [s if s in QUICK else pytest.param(s, marks=pytest.mark.slow) for s in SCHEMES]


@pytest.fixture(scope="module", params=params())
def compiled(request: pytest.FixtureRequest, tiny_model: Tiny) -> Compiled:
    return tiny_model(CONFIG, request.param, context_window_size=320, prefill_chunk_size=320)


@pytest.fixture(scope="module")
def model(compiled: Compiled) -> Iterator[CpuExecutable]:
    loaded = compiled.load(num_pages=PAGES)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def whole(model: CpuExecutable) -> Logits:
    """All logits of PROMPT in one step."""
    return all_logits(model, PROMPT, [LENGTH], range(PAGES))


def own_pages(sequence: int) -> list[int]:
    """Pages enough for 80 tokens, somewhere in the cache."""
    return SHUFFLED[sequence * 6 : sequence * 6 + 6]


def same_bits(found: Logits, wanted: Logits) -> bool:
    return found.tobytes() == wanted.tobytes()


# 1 is decode, up to 32 verify, more prefill
@pytest.mark.parametrize("chunk", [1, 3, 16, 31, 32, 33, 127, 128, 129, 200])
def test_chunked_prefill_is_whole_prefill(model: CpuExecutable, whole: Logits, chunk: int) -> None:
    assert same_bits(all_logits(model, PROMPT, cut(LENGTH, chunk), SHUFFLED), whole)


def test_uneven_chunks(model: CpuExecutable, whole: Logits) -> None:
    chunks = [1, 40, 1, 1, 7, 90, 2, 120, 33, 5]
    assert same_bits(all_logits(model, PROMPT, chunks, SHUFFLED), whole)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_do_not_matter(compiled: Compiled, whole: Logits, threads: int) -> None:
    loaded = compiled.load(threads=threads, num_pages=PAGES)
    for chunk in (LENGTH, 32, 1):
        found = all_logits(loaded, PROMPT, cut(LENGTH, chunk), range(PAGES))
        assert same_bits(found, whole), f"steps of {chunk} tokens"
    loaded.close()


def last_logits(model: Executable, parts: list[Part]) -> Logits:
    page_size = model.manifest.kv_cache.page_size
    return model.step(step_input(parts, page_size)).copy()


def in_batches(model: Executable, chosen: list[int]) -> dict[int, list[Logits]]:
    """Prefill the chosen prompts together, then decode STEPS tokens of each; logits of each."""
    parts = [Part(PROMPTS[i], 0, own_pages(i)) for i in chosen]
    found: dict[int, list[Logits]] = {i: [] for i in chosen}
    for _ in range(STEPS + 1):
        rows = last_logits(model, parts)
        for i, row in zip(chosen, rows, strict=True):
            found[i].append(row)
        parts = [
            Part([int(row.argmax())], part.start + len(part.tokens), part.pages)
            for part, row in zip(parts, rows, strict=True)
        ]
    return found


@pytest.mark.parametrize("chosen", [range(8), [7, 3, 0, 5], [2, 1]])
def test_a_batch_is_its_sequences(model: CpuExecutable, chosen: list[int]) -> None:
    together = in_batches(model, list(chosen))
    for i in chosen:
        alone = in_batches(model, [i])[i]
        assert same_bits(np.array(together[i]), np.array(alone)), f"sequence of {LENGTHS[i]}"


@pytest.mark.parametrize(("beside", "entry"), [(1, "decode"), (2, "verify"), (40, "prefill")])
def test_every_entry_gives_the_same_step(
    model: CpuExecutable, whole: Logits, beside: int, entry: str
) -> None:
    """The last token of PROMPT, beside another sequence whose length decides the entry point."""
    bounds = {e.name: {d.name: d.hi for d in e.dims} for e in model.manifest.entries}
    assert bounds["decode"]["n"] == 2
    assert bounds["verify"]["n"] == 32
    all_logits(model, PROMPT[:-1], [LENGTH - 1], range(19))
    parts = [Part(PROMPT[-1:], LENGTH - 1, range(19)), Part(PROMPTS[4][:beside], 0, range(19, 22))]
    assert same_bits(last_logits(model, parts)[0], whole[-1]), entry
    assert same_bits(last_logits(model, parts[::-1])[1], whole[-1]), entry


def test_a_shared_prefix_is_read_by_all(model: CpuExecutable, whole: Logits) -> None:
    """Two sequences over the same pages, and a copy of the last page, as a fork makes it."""
    all_logits(model, PROMPT[:-1], [LENGTH - 1], range(19))
    model.copy_page(18, 50)
    forked = [*range(18), 50]
    tail = PROMPT[-1:]
    parts = [Part(tail, LENGTH - 1, range(19)), Part(tail, LENGTH - 1, forked)]
    rows = last_logits(model, parts)
    assert same_bits(rows[0], whole[-1])
    assert same_bits(rows[1], whole[-1])


def answers(engine: Engine, prompts: list[list[int]], **options: object) -> list[list[int]]:
    settings = {"max_tokens": 24, "ignore_eos": True, "seed": 11, "return_token_ids": True}
    result = engine.completions.create(prompt=prompts, **(settings | options))
    return [choice.token_ids for choice in result.choices]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_engine_answers_eight_as_one_by_one(compiled: Compiled, temperature: float) -> None:
    def engine(**limits: object) -> Engine:
        tokenizer = Tokenizer.load(compiled.folder)
        options = EngineOptions(mode="server", **limits)
        loaded = compiled.load(threads=2, num_pages=PAGES)
        return Engine.from_parts(loaded, tokenizer, None, "tiny", options=options)

    with engine(max_num_sequence=1) as running:
        alone = [answers(running, [p], temperature=temperature)[0] for p in PROMPTS]
    with engine(prefill_chunk_size=48) as running:
        together = answers(running, PROMPTS, temperature=temperature)
        most = running.metrics()
    assert together == alone
    assert len({tuple(answer) for answer in alone}) > 4, most
    if temperature == 0:
        loaded = compiled.load(num_pages=PAGES)
        assert alone == [greedy(loaded, prompt, 24) for prompt in PROMPTS]
        loaded.close()
