"""Tokens chosen by a compiled library's sampler are numpy's, on any number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from compiled import Compiled, Part, Tiny, step_input, tiny

from sterna.base.errors import DeviceError, RequestError
from sterna.engine.options import SamplingOptions
from sterna.engine.sampler import History, SampleInputs, Wanted, orders, sample_input
from sterna.runtime.cpu import CpuExecutable
from sterna.runtime.sampling import sample_rows

CONFIG = {**tiny.VARIANTS["llama2-gqa"], "num_hidden_layers": 1, "vocab_size": 157}
PROMPTS = [[3, 4, 5], [9], [100, 101, 102, 103, 104], [7, 7]]
OPTIONS = [
    SamplingOptions(temperature=0),
    SamplingOptions(temperature=1.0),
    SamplingOptions(temperature=0.7, top_p=0.8),
    SamplingOptions(temperature=1.5, top_k=20, min_p=0.05),
    SamplingOptions(temperature=1.0, repetition_penalty=1.4, logit_bias={3: 2.0, 150: -9.0}),
    SamplingOptions(temperature=0, presence_penalty=1.0, frequency_penalty=0.5),
]


@pytest.fixture(scope="module")
def compiled(tiny_model: Tiny) -> Compiled:
    return tiny_model(CONFIG, "q0f32", context_window_size=64, prefill_chunk_size=64)


@pytest.fixture(scope="module", params=[1, 3])
def model(compiled: Compiled, request: pytest.FixtureRequest) -> Iterator[CpuExecutable]:
    loaded = compiled.load(threads=request.param, num_pages=8)
    yield loaded
    loaded.close()


def wanted() -> list[Wanted]:
    """Many rows at once: every prompt's logits under every kind of options, and a grammar."""
    rng = np.random.default_rng(1)
    found = []
    for seed in range(4):
        for i, options in enumerate(OPTIONS):
            row = (seed + i) % len(PROMPTS)
            allowed = rng.random(150) < 0.3 if i == 1 else None
            history = History([*PROMPTS[row], 5, 5, 9], len(PROMPTS[row]), 77 + seed, i)
            found.append(Wanted(row, orders(options), history, banned=(0,), allowed=allowed))
    return found


def test_the_librarys_sampler_is_the_reference(model: CpuExecutable) -> None:
    assert model.manifest.sampler is not None
    logits = model.step(step_input([Part(p, 0, [i]) for i, p in enumerate(PROMPTS)], 16))
    given = sample_input(wanted(), 150, 157)
    found = model.sample(given)
    assert found.tolist() == sample_rows(logits, given).tolist()
    assert len(set(found.tolist())) > 5
    assert found.max() < 150


def test_rows_of_another_step_are_refused(model: CpuExecutable) -> None:
    model.step(step_input([Part(PROMPTS[0], 0, [0])], 16))
    with pytest.raises(RequestError, match=r"rows of a sample must lie in 0\.\.0"):
        model.sample(sample_input(wanted(), 150, 157))


def test_an_input_that_comes_again(model: CpuExecutable) -> None:
    """With other keys and other logits, which may lie elsewhere; checked again for fewer rows."""
    inputs, kinds = SampleInputs(150, 157), [orders(OPTIONS[0]), orders(OPTIONS[3])]
    for round_ in range(4):
        prompts = PROMPTS[: len(PROMPTS) - round_ % 2]
        logits = model.step(step_input([Part(p, 0, [i]) for i, p in enumerate(prompts)], 16))
        histories = [History([1] * round_, 0, seed) for seed in range(8)]
        given = inputs.of([Wanted(0, kinds[i % 2], h) for i, h in enumerate(histories)])
        assert model.sample(given).tolist() == sample_rows(logits, given).tolist()
    options = orders(SamplingOptions(temperature=1))
    last = [Wanted(len(PROMPTS) - 1, options, History([1], 0, 3))]
    model.step(step_input([Part(p, 0, [i]) for i, p in enumerate(PROMPTS)], 16))
    first = model.sample(inputs.of(last))
    assert model.sample(inputs.of(last)).tolist() == first.tolist()
    model.step(step_input([Part(PROMPTS[0], 0, [0])], 16))
    with pytest.raises(RequestError, match=r"rows of a sample must lie in 0\.\.0"):
        model.sample(inputs.of(last))


def test_a_closed_model_samples_no_more(compiled: Compiled) -> None:
    loaded = compiled.load(num_pages=8)
    loaded.step(step_input([Part(PROMPTS[0], 0, [0])], 16))
    loaded.close()
    with pytest.raises(DeviceError, match="was closed"):
        loaded.sample(sample_input([Wanted(0, orders(OPTIONS[1]), History((1,), 1, 0))], 150, 157))
