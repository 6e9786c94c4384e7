"""Sampling on the device: the compiled kernel gives numpy's tokens, exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_library import Array, KernelLibrary

from sterna.ir.expr import Var
from sterna.kernels.sample import EDITS, ROW, VOCABULARY, sample
from sterna.runtime import sampling
from sterna.runtime.sampling import NONE, SampleInput, sample_rows

VOCAB, IDS = 3000, 2990  # logits a row, of which the last are padding
M = Var("m", lo=1)


@pytest.fixture(scope="module")
def library() -> KernelLibrary:
    return KernelLibrary([sample("sample", VOCAB, M)])


def asked(count: int, **given: Any) -> SampleInput:
    """Rows 0 to count, drawn at temperature 1 from all, with fields replaced."""
    keys = np.zeros((count, 5), np.uint32)
    keys[:, 3] = np.arange(count)
    fields: dict[str, Any] = {
        "vocabulary": IDS,
        "rows": np.arange(count, dtype=np.int32),
        "inverse_temperature": np.ones(count, np.float32),
        "limits": np.tile(np.array([0, 1 << 16, 1], np.int32), (count, 1)),
        "keys": keys,
        "masked": np.zeros(count, np.int32),
        "allowed": np.zeros((count, -(-VOCAB // 32)), np.uint32),
        "edit_indptr": np.zeros(count + 1, np.int32),
        "edit_ids": np.zeros(0, np.int32),
        "edits": np.zeros((0, 4), np.float32),
    }
    return SampleInput(**{**fields, **given})


def on_device(library: KernelLibrary, logits: Array, given: SampleInput) -> Array:
    func = library.funcs["sample"]
    count = len(given.rows)
    out = np.full(count, -7, np.int32)
    arrays = {
        p: logits if p.name == "logits" else out if p.name == "sampled" else getattr(given, p.name)
        for p in func.params
    }
    dims = {ROW: count, EDITS: len(given.edit_ids), VOCABULARY: given.vocabulary}
    library.run("sample", arrays, dims)
    return out


def logits_of(seed: int, count: int, spread: float, steps: int | None = None) -> Array:
    """Random logits; `steps` rounds them, so that many are equal."""
    x = np.random.default_rng(seed).normal(0, spread, (count, VOCAB))
    return (np.round(x * steps) / steps if steps else x).astype(np.float32)


@given(
    seed=st.integers(0, 2**32 - 1),
    spread=st.sampled_from([0.01, 1.0, 4.0, 30.0]),
    steps=st.sampled_from([None, 1, 4]),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 2, 40, 2989, 2990, 5000]),
    share=st.sampled_from([0, 1, 6554, 58982, 65535, 65536]),
    floor=st.sampled_from([1, 1 << 20, 1 << 29, 1 << 30]),
)
@settings(max_examples=120, deadline=None, derandomize=True)
def test_the_kernel_is_the_reference(
    library: KernelLibrary, seed: int, spread: float, steps: int | None, temperature: float,
    top_k: int, share: int, floor: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    count = 3
    inverse = np.float32(1 / temperature if temperature else 0)
    ids = [rng.choice(IDS, n, replace=False) for n in (0, 5, 300)]
    edits = rng.normal(0, 2, (305, 4)).astype(np.float32)
    edits[:, 1:3] = rng.choice([1, 1.3, 0.7], (305, 2))
    edits[::50, 3] = np.inf
    given = asked(
        count,
        rows=rng.permutation(count).astype(np.int32),
        inverse_temperature=np.full(count, inverse, np.float32),
        limits=np.tile(np.array([top_k, share, floor], np.int32), (count, 1)),
        keys=rng.integers(0, 2**32, (count, 5), dtype=np.uint32),
        masked=np.array([0, 1, 0], np.int32),
        allowed=rng.integers(0, 2**32, (count, -(-VOCAB // 32)), dtype=np.uint32),
        edit_indptr=np.array([0, 0, 5, 305], np.int32),
        edit_ids=np.concatenate(ids).astype(np.int32),
        edits=edits,
    )
    logits = logits_of(seed, count, spread, steps)
    found = on_device(library, logits, given)
    assert found.tolist() == sample_rows(logits, given).tolist()
    assert (found >= 0).all()
    assert (found < IDS).all()


def test_weights_are_those_of_exp() -> None:
    x = -np.abs(np.random.default_rng(0).normal(0, 8, 100_000)).astype(np.float32)
    for inverse in np.float32([0.5, 1, 3]):
        exact = np.exp(x.astype(np.float64) * inverse) * 2**30
        off = np.abs(sampling.weigh(x + np.float32(2), np.float32(2), inverse) - exact)
        assert (off <= 1 + exact * (1e-6 + 1e-6 * inverse)).all()
    far = np.float32([0, -30, -np.inf])
    assert sampling.weigh(far, np.float32(0), np.float32(1)).tolist() == [2**30, 0, 0]


def test_draws_follow_the_distribution(library: KernelLibrary) -> None:
    """Among a few likely tokens, over many positions: a chi-squared test."""
    shares = np.array([0.5, 0.25, 0.15, 0.07, 0.03])
    logits = np.full((1, VOCAB), -1e9, np.float32)
    places = np.array([7, 800, 1023, 1024, 2989])
    logits[0, places] = np.log(shares)
    count = 4000
    found = on_device(library, logits, asked(count, rows=np.zeros(count, np.int32)))
    seen = np.array([(found == p).sum() for p in places])
    assert seen.sum() == count
    chi = ((seen - count * shares) ** 2 / (count * shares)).sum()
    assert chi < 18.5  # 4 degrees of freedom: one seed in a thousand is above


def test_equal_logits_rank_by_id(library: KernelLibrary) -> None:
    logits = np.zeros((1, VOCAB), np.float32)
    greedy = asked(1, inverse_temperature=np.zeros(1, np.float32))
    assert on_device(library, logits, greedy).tolist() == [0]
    three = np.array([[3, 1 << 16, 1]], np.int32)
    many = asked(50, rows=np.zeros(50, np.int32), limits=np.repeat(three, 50, axis=0))
    assert set(on_device(library, logits, many).tolist()) == {0, 1, 2}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers_give_no_token(library: KernelLibrary, bad: float) -> None:
    logits = logits_of(1, 2, 1.0)
    logits[1, 1234] = bad
    given = asked(2)
    found = on_device(library, logits, given)
    assert found[0] >= 0
    assert found[1] == NONE
    assert found.tolist() == sample_rows(logits, given).tolist()


def test_nothing_allowed_gives_no_token(library: KernelLibrary) -> None:
    given = asked(1, masked=np.ones(1, np.int32))
    assert on_device(library, logits_of(2, 1, 1.0), given).tolist() == [NONE]


def test_padding_is_never_chosen(library: KernelLibrary) -> None:
    logits = np.full((1, VOCAB), -5, np.float32)
    logits[0, IDS:] = 100
    for inverse in (0.0, 1.0):
        given = asked(1, inverse_temperature=np.full(1, inverse, np.float32))
        assert on_device(library, logits, given)[0] < IDS


@given(
    seed=st.integers(0, 2**32 - 1),
    ids=st.sampled_from([1, 2, 63, 64, 65, 2048, 2990, 3000]),
    steps=st.sampled_from([None, 1, 4]),
    bad=st.sampled_from([None, np.nan, np.inf, -np.inf]),
    place=st.integers(0, VOCAB - 1),
)
@settings(max_examples=120, deadline=None, derandomize=True)
def test_the_largest_of_unchanged_rows(
    library: KernelLibrary, seed: int, ids: int, steps: int | None, bad: float | None, place: int
) -> None:
    """Of rows in any order, beside one that is masked, one with an edit and one that is drawn."""
    rng = np.random.default_rng(seed)
    count = 6
    logits = logits_of(seed, count, 2.0, steps)
    if bad is not None:
        logits[rng.integers(count), place] = bad
    words = -(-VOCAB // 32)
    given = asked(
        count,
        vocabulary=ids,
        rows=rng.permutation(count).astype(np.int32),
        inverse_temperature=np.array([0, 0, 0, 1, 0, 0], np.float32),
        masked=np.array([0, 1, 0, 0, 0, 0], np.int32),
        allowed=rng.integers(0, 2**32, (count, words), dtype=np.uint32),
        edit_indptr=np.array([0, 0, 0, 1, 1, 1, 1], np.int32),
        edit_ids=np.array([ids - 1], np.int32),
        edits=np.array([[40, 1, 1, 0]], np.float32),
    )
    assert on_device(library, logits, given).tolist() == sample_rows(logits, given).tolist()


def test_the_largest_of_one_sign_and_of_one_value(library: KernelLibrary) -> None:
    greedy = asked(1, inverse_temperature=np.zeros(1, np.float32))
    below = -1 - np.abs(logits_of(3, 1, 1.0))
    assert on_device(library, below, greedy).tolist() == [int(below[0, :IDS].argmax())]
    for first in (0, 63, 64, 2943, 2989):
        logits = np.zeros((1, VOCAB), np.float32)
        logits[0, first:] = 1
        assert on_device(library, logits, greedy).tolist() == [first]
