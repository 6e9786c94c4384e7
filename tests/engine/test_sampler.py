"""One row of logits to one token: filters, penalties, randomness, ties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna.base.errors import DeviceError
from sterna.engine.options import SamplingOptions
from sterna.engine.sampler import (
    History,
    SampleInputs,
    Wanted,
    orders,
    ranked,
    sample_input,
    told,
)
from sterna.runtime.philox import draw_bits, philox
from sterna.runtime.sampling import check_sample, is_frozen, sample_rows

NONE = History((), 0, 0)
FULL = 0xFFFFFFFF


def row(*values):
    return np.array(values, np.float32)


def sample(logits, options, history=NONE, banned=(), allowed=None):
    """As the engine does with a device."""
    wanted = Wanted(0, orders(options), history, banned, allowed)
    given = sample_input([wanted], len(logits), len(logits))
    check_sample(given, 1, len(logits))
    (token,) = sample_rows(logits[None], given).tolist()
    return told(wanted, token, logits)


def kept(logits, **options):
    """Which tokens are ever drawn."""
    return sorted(set(draws(logits, 300, **options)))


def draws(logits, count=400, **options):
    """Tokens of as many seeds, in one call."""
    chosen = SamplingOptions(**options)
    wanted = [Wanted(0, orders(chosen), History((), 0, seed)) for seed in range(count)]
    given = sample_input(wanted, len(logits), len(logits))
    return sample_rows(logits[None], given).tolist()


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
    def uniform(seed, stream, position):
        return draw_bits(seed, stream, position) / 2**64

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
    """By what they make of two candidates: the edit decides which is larger, to a hair."""
    history = History((0, 1, 2, 2), 2, 0)

    def edits(**options):
        wanted = Wanted(0, orders(SamplingOptions(temperature=0, **options)), history)
        given = sample_input([wanted], 4, 4)
        return dict(zip(given.edit_ids.tolist(), given.edits.tolist()))

    def largest(*logits, **options):
        return sample(row(*logits), SamplingOptions(temperature=0, **options), history).token

    assert edits() == {}
    assert edits(repetition_penalty=2) == {i: [0, 0.5, 2, 0] for i in (0, 1, 2)}
    assert edits(presence_penalty=0.5) == {2: [0, 1, 1, 0.5]}
    assert edits(frequency_penalty=0.5) == {2: [0, 1, 1, 1]}
    assert edits(logit_bias={3: 2.5}) == {3: [2.5, 1, 1, 0]}
    both = edits(logit_bias={2: 1.5}, repetition_penalty=2, presence_penalty=1)
    assert both[2] == [1.5, 0.5, 2, 1]
    assert largest(2, -9, 1, 0.9, repetition_penalty=2) == 0  # 1 and 0.5
    assert largest(1.9, -9, 1, 1, repetition_penalty=2) == 3
    assert largest(-1, -9, -3, -1.9, repetition_penalty=2) == 3  # -2 and -6
    assert largest(0, -9, 1.1, 1, logit_bias={2: -0.2}) == 3


def test_tokens_that_do_not_exist_are_not_edited():
    history = History((0, 7, 9), 2, 0)
    wanted = Wanted(0, orders(SamplingOptions(repetition_penalty=2)), history, banned=(1, 8))
    assert sample_input([wanted], 6, 10).edit_ids.tolist() == [0, 1]


def test_a_grammar_decides():
    options = SamplingOptions(temperature=0)
    allowed = np.array([True, False, False, True])
    assert sample(row(1, 9, 9, 2), options, allowed=allowed).token == 3
    with pytest.raises(DeviceError, match="allows no token"):
        sample(row(1, 9), options, allowed=np.zeros(2, np.bool_))


def test_neighbours_change_nothing():
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 2, (6, 50)).astype(np.float32)
    each = [
        Wanted(
            i,
            orders(SamplingOptions(temperature=t, top_p=p, repetition_penalty=r)),
            History((i, 3), 1, i),
        )
        for i, (t, p, r) in enumerate(
            [(0, 1, 1), (1, 1, 1), (1, 0.5, 1), (0.7, 1, 2), (0, 1, 2), (2, 0.9, 1.1)]
        )
    ]
    together = sample_rows(logits, sample_input(each, 50, 50)).tolist()
    alone = [sample_rows(logits, sample_input([w], 50, 50)).tolist()[0] for w in each]
    assert together == alone


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
    token = sample(logits, options, History((), 0, seed)).token
    rank = sorted(range(len(values)), key=lambda i: (-logits[i], i)).index(token)
    assert rank < (top_k or len(values))
    if min_p > 0:
        assert logits[token] >= logits.max() + temperature * np.log(min_p) - 1e-3


WARM, COLD = orders(SamplingOptions()), orders(SamplingOptions(temperature=0))
EDITED = orders(SamplingOptions(logit_bias={"3": 1.0}))
ONLY = np.arange(50) == 7


@settings(derandomize=True, max_examples=100, deadline=None)
@given(
    st.lists(
        st.lists(
            st.tuples(
                st.integers(0, 3),
                st.sampled_from([WARM, COLD, EDITED]),
                st.integers(0, 2**64 - 1),
                st.integers(0, 5),
                st.sampled_from([(), (4,)]),
                st.sampled_from([None, ONLY]),
            ),
            min_size=1,
            max_size=4,
        ),
        max_size=8,
    )
)
def test_inputs_of_one_step_after_another(steps):
    inputs = SampleInputs(40, 50)
    for step in steps:
        wanted = [
            Wanted(row, o, History([1] * length, 0, seed, row), banned, allowed)
            for row, o, seed, length, banned, allowed in step
        ]
        found, fresh = inputs.of(wanted), sample_input(wanted, 40, 50)
        check_sample(found, 4, 50)
        for name in fresh.__slots__:
            assert np.array_equal(getattr(found, name), getattr(fresh, name)), name


def test_an_input_comes_again_while_rows_and_orders_do():
    inputs = SampleInputs(40, 50)
    tokens = [1, 2]
    step = [Wanted(0, WARM, History(tokens, 2, 5)), Wanted(2, COLD, History([1], 1, 6))]
    first = inputs.of(step)
    assert is_frozen(first)
    tokens.append(3)
    assert inputs.of(step) is first
    assert first.keys[:, 3].tolist() == [3, 1]
    changed = (
        [step[0]],
        [*step, step[0]],
        [step[0], step[1]._replace(row=1)],
        [step[0], step[1]._replace(orders=WARM)],
        [step[0], step[1]._replace(orders=EDITED)],
        [step[0], step[1]._replace(banned=(4,))],
        [step[0], step[1]._replace(allowed=ONLY)],
    )
    for other in changed:
        inputs = SampleInputs(40, 50)
        first = inputs.of(step)
        assert inputs.of(other) is not first
    edited = [step[0]._replace(orders=EDITED)]
    assert inputs.of(edited) is not inputs.of(edited)
    assert not is_frozen(inputs.of(edited))
