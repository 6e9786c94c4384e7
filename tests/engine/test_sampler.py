"""One row of logits to one token: filters, penalties, randomness, ties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna.base.errors import DeviceError
from sterna.engine.options import SamplingOptions
from sterna.runtime.philox import philox, uniform
from sterna.engine.sampler import History, adjusted, candidates, ranked, sample

NONE = History((), 0, 0)
FULL = 0xFFFFFFFF


def row(*values):
    return np.array(values, np.float32)


def kept(logits, **options):
    ids, _ = candidates(logits.astype(np.float64), SamplingOptions(**options))
    return sorted(ids.tolist())


def draws(logits, count=400, **options):
    chosen = SamplingOptions(**options)
    return [sample(logits, chosen, History((), 0, seed)).token for seed in range(count)]


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0,) * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((FULL,) * 4, (FULL, FULL), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_words(counter, key, words):
    assert philox(counter, key) == words


def test_uniform_is_uniform_and_keyed_by_everything():
    found = [uniform(3, 0, position) for position in range(4000)]
    assert 0 <= min(found) < 0.01
    assert 0.99 < max(found) < 1
    assert abs(np.mean(found) - 0.5) < 0.02
    assert len({uniform(1, 0, 0), uniform(2, 0, 0), uniform(1, 1, 0), uniform(1, 0, 1)}) == 4
    assert uniform(1 << 40, 0, 0) != uniform(0, 0, 0)


def test_greedy_takes_the_lowest_id_of_equal_logits():
    assert sample(row(1, 3, 3, 2), SamplingOptions(temperature=0), NONE).token == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_no_numbers_are_an_error(bad, temperature):
    with pytest.raises(DeviceError, match=f"computed {bad} among the logits at position 3"):
        sample(row(1, bad), SamplingOptions(temperature=temperature), History((1, 2, 3), 2, 0))


def test_minus_infinity_is_never_drawn():
    assert set(draws(row(-np.inf, 0, -np.inf, 0))) == {1, 3}


def test_frequencies_follow_the_probabilities():
    share = draws(row(0, np.log(3)), 2000).count(1) / 2000
    assert abs(share - 0.75) < 0.03
    hot = draws(row(0, np.log(9)), 2000, temperature=2).count(1) / 2000
    assert abs(hot - 0.75) < 0.03


def test_filters():
    logits = row(np.log(4), np.log(2), np.log(2), np.log(1), np.log(1))
    assert kept(logits) == [0, 1, 2, 3, 4]
    assert kept(logits, top_k=2) == [0, 1]
    assert kept(logits, top_k=4) == [0, 1, 2, 3]
    assert kept(logits, top_p=0.4) == [0]
    assert kept(logits, top_p=0.41) == [0, 1]
    assert kept(logits, top_p=0) == [0]
    assert kept(logits, min_p=0.49) == [0, 1, 2]
    assert kept(logits, min_p=0.26, top_k=2) == [0, 1]
    assert kept(logits, min_p=1) == [0]


def test_tiny_temperature_is_greedy():
    assert set(draws(row(0, 1, 0.999), 50, temperature=1e-6)) == {1}


def test_penalties():
    logits = row(2, -2, 1, 1)
    history = History((0, 1, 2, 2), 2, 0)

    def after(**options):
        return adjusted(logits, SamplingOptions(**options), history).tolist()

    assert after(repetition_penalty=2) == [1, -4, 0.5, 1]
    assert after(presence_penalty=0.5) == [2, -2, 0.5, 1]
    assert after(frequency_penalty=0.5) == [2, -2, 0, 1]
    assert after(logit_bias={3: 2.5}) == [2, -2, 1, 3.5]
    assert logits.tolist() == [2, -2, 1, 1]


def test_banned():
    assert sample(row(1, 3, 2), SamplingOptions(temperature=0), NONE, banned=(1,)).token == 2


def test_logprobs_are_the_models_own():
    options = SamplingOptions(temperature=0, logit_bias={0: 100}, logprobs=True, top_logprobs=2)
    found = sample(row(np.log(1), np.log(3), np.log(4)), options, NONE)
    assert found.token == 0
    assert found.logprob == pytest.approx(np.log(1 / 8))
    assert [token for token, _ in found.top] == [2, 1]
    assert [value for _, value in found.top] == pytest.approx([np.log(1 / 2), np.log(3 / 8)])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30), st.integers(1, 31))
def test_ranked_is_a_total_order(values, count):
    wanted = sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]
    assert ranked(np.array(values, np.float64), count).tolist() == wanted


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40),
    st.floats(0.01, 5),
    st.floats(0, 1),
    st.integers(0, 10),
    st.floats(0, 1),
    st.integers(0, 2**64 - 1),
)
def test_a_draw_is_always_a_candidate(values, temperature, top_p, top_k, min_p, seed):
    options = SamplingOptions(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p)
    logits = np.array(values, np.float32)
    ids, weights = candidates(logits.astype(np.float64), options)
    assert int(logits.argmax()) in ids.tolist()
    assert len(ids) <= (top_k or len(values))
    assert sample(logits, options, History((), 0, seed)).token in ids[weights > 0].tolist()
