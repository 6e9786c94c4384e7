"""Speculative decoding gives the answers of plain decoding, whatever is guessed."""

import numpy as np
import pytest
from null_model import EOS, engine, manifest

from sterna.base.errors import DeviceError, RequestError
from sterna.engine.batch import Batch, Piece
from sterna.engine.options import EngineOptions
from sterna.engine.request import Sequence
from sterna.engine.speculative import NGRAMS, NGramLookup, Speculator, _Endings
from sterna.runtime.null import NullExecutable

PROMPTS = [f"{name} flew over the ice, and over the ice, to" for name in "ABCD"]
OPTIONS = {"max_tokens": 60, "seed": 7, "return_token_ids": True, "ignore_eos": True}


class Echo(NullExecutable):
    """Writes a text that repeats itself with changes, whatever the prompt: n-grams often fit."""

    SCRIPT = (b"the tern flies north and the tern flies south; " * 3 + b"so it goes. ") * 9

    def step(self, batch):
        logits = super().step(batch)
        for row, position in zip(logits, batch.positions[batch.logit_rows]):
            row[self.SCRIPT[(int(position) + 1) % len(self.SCRIPT)]] += 9
        return logits


class Forgetful(NullExecutable):
    """A draft model that is right but now and then, and knows nothing in between."""

    def step(self, batch):
        logits = super().step(batch)
        logits[batch.positions[batch.logit_rows] % 3 == 0] = 0
        logits[batch.positions[batch.logit_rows] % 17 == 0] = np.nan
        return logits


def answers(model, prompts=PROMPTS, **options):
    with model as running:
        result = running.completions.create(prompt=prompts, **(OPTIONS | options))
        running._core.scheduler.check()
        return [(c.token_ids, c.logprobs) for c in result.choices], running.metrics(), result


@pytest.fixture(autouse=True)
def untimed(monkeypatch):
    """What pays is decided by how often guesses are right, not by how busy this machine is."""
    monkeypatch.setattr(Speculator, "cost", lambda _, b, n: 1 + 0.05 * (n - b) / b)


@pytest.fixture(scope="module", params=[0, 1])
def plain(request):
    options = {"temperature": request.param, "logprobs": 2}
    echo, _, _ = answers(engine(Echo(manifest(), 512)), **options)
    null, _, _ = answers(engine(), **options)
    return options, echo, null


@pytest.mark.parametrize("draft_tokens", [1, 4, 31])
def test_ngrams(plain, draft_tokens):
    options, wanted, _ = plain
    model = engine(Echo(manifest(), 512), speculative="ngram", draft_tokens=draft_tokens)
    found, metrics, _ = answers(model, **options)
    assert found == wanted
    assert metrics["draft_tokens_accepted"] > 5
    assert metrics["steps"] < 60 or options["temperature"] > 0


def test_a_draft_model_that_is_always_right(plain):
    options, _, wanted = plain
    draft = NullExecutable(manifest(), 512)
    found, metrics, result = answers(engine(draft=draft), **options)
    assert found == wanted
    # Each step gives five tokens.
    assert metrics["steps"] <= 1 + -(-60 // 5) + 2
    assert metrics["draft_tokens_accepted"] > 0.9 * metrics["draft_tokens"]
    details = result.usage.completion_tokens_details
    assert details.accepted_prediction_tokens == metrics["draft_tokens_accepted"]
    rejected = metrics["draft_tokens"] - metrics["draft_tokens_accepted"]
    assert details.rejected_prediction_tokens == rejected


@pytest.mark.parametrize("pages", [512, 16, 2])
@pytest.mark.parametrize("own", [512, 40])
def test_a_draft_model_that_is_often_wrong_and_short_of_pages(plain, pages, own):
    options, _, wanted = plain
    model = engine(num_pages=own, draft=Forgetful(manifest(page_size=16), pages))
    found, metrics, _ = answers(model, **options)
    assert found == wanted
    assert (metrics["draft_tokens_accepted"] > 0) == (pages > 2)


def test_a_draft_model_reads_long_prompts_in_chunks(plain):
    options, _, _ = plain
    prompts = ["x" * 150 + name for name in "AB"]
    wanted, _, _ = answers(engine(), prompts, **options)
    draft = NullExecutable(manifest(prefill_chunk_size=20), 512)
    found, metrics, _ = answers(engine(draft=draft), prompts, **options)
    assert found == wanted
    assert metrics["draft_tokens_accepted"] > 20


def test_an_end_among_the_guesses_ends_the_answer():
    class Ends(NullExecutable):
        def step(self, batch):
            logits = super().step(batch)
            at = batch.positions[batch.logit_rows] + 1
            logits[at == 12, EOS] = 99
            return logits

    draft = Ends(manifest(), 512)
    model = engine(Ends(manifest(), 512), draft=draft)
    with model as running:
        choice = running.completions.create(prompt="abcd", temperature=0, max_tokens=40).choices[0]
        assert choice.finish_reason == "stop"
        assert running.metrics()["completion_tokens"] == 12 - 4 + 1
        assert running.metrics()["pages_free"] == 512


def test_a_draft_device_that_fails_stops_the_engine_with_its_reason():
    class Broken(NullExecutable):
        def step(self, batch):
            raise DeviceError("the draft device is gone")

    with (
        engine(draft=Broken(manifest(), 64)) as model,
        pytest.raises(DeviceError, match="the draft device is gone"),
    ):
        model.completions.create(prompt="a")


def test_a_request_whose_guesses_are_wrong_is_left_alone():
    class Wrong(NullExecutable):
        def step(self, batch):
            logits = super().step(batch)
            logits[:] = logits[:, ::-1].copy()
            return logits

    model = engine(draft=Wrong(manifest(), 512))
    _found, metrics, _ = answers(model, ["once"], max_tokens=120, temperature=0)
    assert metrics["draft_pauses"] >= 2
    assert metrics["drafts"] < 30


class One:
    """A sequence of one token, number 0."""

    number, tokens = 0, [0]


def test_a_step_without_guesses_is_measured_first(monkeypatch):
    monkeypatch.undo()
    new = Speculator(NGramLookup(), 4)
    assert new._length(One, 1) == 0
    assert new.pauses == 0
    new._seconds = {1: {1: 1.0}}
    assert new._length(One, 1) == 4  # nothing is known of larger steps: they are tried


def test_as_many_guesses_as_pay(monkeypatch):
    """Kernels that take four tokens in the time of three, and five in that of six."""
    monkeypatch.undo()
    found = Speculator(NGramLookup(), 8)
    found._seconds = {1: {1: 1.0, 2: 3.0, 4: 3.0, 5: 6.0, 9: 12.0}}
    for _ in range(50):
        found.learn(One, 3, 3)
    assert found._length(One, 1) == 3
    for _ in range(8):
        found.learn(One, 3, 1)
    assert found._length(One, 1) == 0
    assert found.pauses == 1
    One.tokens = [0] * 20
    assert found._length(One, 1) == 0
    assert found.pauses == 1  # it is one pause, and not judged anew in it
    One.tokens = [0]


def test_how_long_steps_take(monkeypatch):
    monkeypatch.undo()
    found = Speculator(NGramLookup(), 4)
    sequence = Sequence(0, [1, 2], 1)
    for seconds in (2.0, 2.0, 4.0):
        found.time(Batch((Piece(sequence, 1, True, (5, 6)),)), seconds)
    found.time(Batch((Piece(sequence, 40, True),)), 99)  # a prompt says nothing of decoding
    assert found.cost(1, 3) is None
    found.time(Batch((Piece(sequence, 1, True),)), 1.0)
    assert 2 < found.cost(1, 3) < 3
    assert found.cost(1, 2) == 1
    assert found.cost(1, 9) == found.cost(1, 3)


def test_endings_are_found_where_they_last_were():
    found = _Endings()
    tokens = []
    for token in [1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3]:
        tokens.append(token)
        found.take(tokens)
    assert found.before == {2: 7, 3: 7}
    assert max(NGRAMS) == 4


def test_options():
    with pytest.raises(RequestError, match="go together"):
        EngineOptions(speculative="draft")
    with pytest.raises(RequestError, match="go together"):
        EngineOptions(draft_model="tiny")
    with pytest.raises(RequestError, match="speculative is 'no', possible are off, ngram, draft"):
        EngineOptions(speculative="no")
