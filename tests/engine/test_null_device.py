"""The null device notices what a real one would get wrong."""

import dataclasses

import numpy as np
import pytest
from null_model import VOCAB, manifest

from sterna.base.errors import DeviceError
from sterna.runtime.executable import StepInput
from sterna.runtime.null import NullExecutable


def ints(*values):
    return np.array(values, np.int32)


def step(tokens, start=0, pages=(0, 1), rows=None):
    n = len(tokens)
    return StepInput(
        tokens=ints(*tokens),
        positions=np.arange(start, start + n, dtype=np.int32),
        seq_indptr=ints(0, n),
        page_indptr=ints(0, len(pages)),
        page_table=ints(*pages),
        logit_rows=ints(n - 1) if rows is None else ints(*rows),
    )


def device():
    return NullExecutable(manifest(), 8)


def test_whole_equals_pieces_and_any_pages():
    whole = device().step(step([5, 6, 7, 8, 9]))
    assert whole.shape == (1, VOCAB)
    assert whole.dtype == np.float32
    pieces = device()
    pieces.step(step([5, 6, 7], pages=(4,)))
    assert (pieces.step(step([8, 9], 3, (4, 2))) == whole).all()


def test_every_row_is_that_of_its_own_prefix():
    rows = device().step(step([5, 6, 7], rows=(0, 1, 2)))
    for i in range(3):
        assert (device().step(step([5, 6, 7][: i + 1]))[0] == rows[i]).all()


@pytest.mark.parametrize(
    ("tokens", "start", "pages", "same"),
    [
        ([8, 9], 3, (4, 3), True),  # page 3 is as good as any: nothing was written to it
        ([8, 9], 3, (3, 2), False),  # a wrong first page
        ([8, 9], 2, (4, 2), False),  # a wrong position
        ([9, 8], 3, (4, 2), False),  # tokens in the wrong order
    ],
)
def test_a_wrong_step_changes_the_logits(tokens, start, pages, same):
    right = device().step(step([5, 6, 7, 8, 9]))
    pieces = device()
    pieces.step(step([5, 6, 7], pages=(4,)))
    assert (pieces.step(step(tokens, start, pages)) == right).all() == same


def test_a_page_given_to_two_sequences_changes_the_logits():
    pieces = device()
    pieces.step(step([5, 6, 7], pages=(4,)))
    pieces.step(step([1, 2], pages=(4,)))
    right = device().step(step([5, 6, 7, 8]))
    assert (pieces.step(step([8], 3, (4,))) != right).any()


def test_copy_page():
    pieces = device()
    right = pieces.step(step([5, 6, 7, 8], rows=(3,)))
    pieces.step(step([5, 6, 7], pages=(4,)))
    pieces.copy_page(4, 6)
    pieces.step(step([1], 0, pages=(4,)))
    assert (pieces.step(step([8], 3, (6,))) == right).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": ints(1, VOCAB)},
        {"positions": ints(0, 2)},
        {"positions": ints(7, 8)},
        {"positions": ints(-1, 0)},
        {"page_table": ints(0, 8)},
        {"logit_rows": ints(1, 0)},
        {"logit_rows": ints()},
        {"seq_indptr": ints(0, 1)},
        {"seq_indptr": ints(0, 0, 2), "page_indptr": ints(0, 1, 2)},
    ],
)
def test_a_malformed_batch_is_refused(changes):
    with pytest.raises(DeviceError, match="malformed"):
        device().step(dataclasses.replace(step([1, 2]), **changes))


def test_closed():
    closed = device()
    closed.close()
    closed.close()
    with pytest.raises(DeviceError, match="closed"):
        closed.step(step([1]))
