"""A sliding window with sinks, compiled: what it has left may be given to another sequence."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from compiled import Logits, Part, Tiny, all_logits, cut, step_input, tiny

from sterna.runtime.cpu import CpuExecutable

WINDOW, SINKS, PAGE = 40, 4, 16
CONFIG = {
    **tiny.VARIANTS["mistral"],
    "max_position_embeddings": 512,
    "num_hidden_layers": 2,
    "vocab_size": 157,
}
LENGTH, PAGES = 200, 30
PROMPT = np.random.default_rng(2).integers(3, 157, LENGTH).tolist()


@pytest.fixture(scope="module")
def model(tiny_model: Tiny) -> Iterator[CpuExecutable]:
    sizes = {"context_window_size": 256, "prefill_chunk_size": 256}
    compiled = tiny_model(
        CONFIG, "q0f32", **sizes, sliding_window_size=WINDOW, attention_sink_size=SINKS
    )
    loaded = compiled.load(threads=2, num_pages=PAGES)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def whole(model: CpuExecutable) -> Logits:
    return all_logits(model, PROMPT, [LENGTH], range(PAGES))


@pytest.mark.parametrize("chunk", [1, 33, 100])
def test_chunks_do_not_matter(model: CpuExecutable, whole: Logits, chunk: int) -> None:
    assert all_logits(model, PROMPT, cut(LENGTH, chunk), range(PAGES)).tobytes() == whole.tobytes()


def test_the_window_and_the_sinks_are_all_that_counts(model: CpuExecutable, whole: Logits) -> None:
    """Two layers see back two windows, and the sinks; a token before that changes nothing."""
    changed = list(PROMPT)
    changed[60] = (changed[60] - 3 + 1) % 154 + 3
    found = all_logits(model, changed, [LENGTH], range(PAGES))
    far = 60 + 2 * WINDOW
    assert found[far:].tobytes() == whole[far:].tobytes()
    assert found[60].tobytes() != whole[60].tobytes()
    changed = list(PROMPT)
    changed[SINKS - 1] = (changed[SINKS - 1] - 3 + 1) % 154 + 3
    found = all_logits(model, changed, [LENGTH], range(PAGES))
    assert found[-1].tobytes() != whole[-1].tobytes()


@pytest.mark.parametrize("count", [1, 5, 40])
def test_pages_that_the_window_left_may_hold_anything(
    model: CpuExecutable, whole: Logits, count: int
) -> None:
    """Another sequence writes into them; steps of one entry point after the other go on alike."""
    start = LENGTH - count
    all_logits(model, PROMPT[:start], [start], range(PAGES))
    left = range(1, (start - WINDOW + 1) // PAGE)  # page 0 holds the sinks
    assert len(left) >= 6
    other = np.random.default_rng(3).integers(3, 157, len(left) * PAGE).tolist()
    all_logits(model, other, [len(other)], list(left))
    rows = model.step(step_input([Part(PROMPT[start:], start, range(PAGES))], PAGE))
    assert rows[0].tobytes() == whole[-1].tobytes()
