"""What a device's sampler is given is checked before C sees it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sterna.base.errors import RequestError
from sterna.runtime.sampling import SampleInput, check_sample, freeze, is_frozen

VOCAB, ROWS = 40, 3


def good() -> SampleInput:
    return SampleInput(
        vocabulary=38,
        rows=np.array([2, 0], np.int32),
        inverse_temperature=np.ones(2, np.float32),
        limits=np.ones((2, 3), np.int32),
        keys=np.zeros((2, 5), np.uint32),
        masked=np.zeros(2, np.int32),
        allowed=np.zeros((2, 2), np.uint32),
        edit_indptr=np.array([0, 1, 3], np.int32),
        edit_ids=np.array([37, 0, 5], np.int32),
        edits=np.zeros((3, 4), np.float32),
    )


def test_good_input_passes() -> None:
    check_sample(good(), ROWS, VOCAB)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rows", np.array([3, 0], np.int32)),
        ("rows", np.array([-1, 0], np.int32)),
        ("rows", np.array([0], np.int32)),
        ("rows", np.array([1.0, 0.0])),
        ("inverse_temperature", np.ones(2)),
        ("limits", np.ones((2, 2), np.int32)),
        ("limits", np.ones((3, 2), np.int32).T),
        ("keys", np.zeros((2, 5), np.int32)),
        ("masked", np.zeros(1, np.int32)),
        ("allowed", np.zeros((2, 1), np.uint32)),
        ("edit_indptr", np.array([0, 4, 3], np.int32)),
        ("edit_indptr", np.array([1, 1, 3], np.int32)),
        ("edit_indptr", np.array([0, 1, 2], np.int32)),
        ("edit_ids", np.array([38, 0, 5], np.int32)),
        ("edit_ids", np.array([-1, 0, 5], np.int32)),
        ("edits", np.zeros((2, 4), np.float32)),
        ("vocabulary", 0),
        ("vocabulary", 41),
    ],
)
def test_what_would_be_read_out_of_bounds_is_refused(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=r"sample"):
        check_sample(replace(good(), **{name: value}), ROWS, VOCAB)


def test_no_rows_are_refused() -> None:
    empty = {
        f: getattr(good(), f)[:0] for f in ("rows", "inverse_temperature", "limits", "keys")
    } | {f: getattr(good(), f)[:0] for f in ("masked", "allowed", "edit_ids", "edits")}
    with pytest.raises(RequestError, match="0 rows"):
        check_sample(replace(good(), **empty, edit_indptr=np.zeros(1, np.int32)), ROWS, VOCAB)


def test_a_frozen_input_changes_in_its_keys_alone() -> None:
    given = good()
    assert not is_frozen(given)
    freeze(given)
    assert is_frozen(given)
    given.keys[:] = 7
    for name in SampleInput.__slots__:
        if name not in ("keys", "vocabulary"):
            with pytest.raises(ValueError, match="read-only"):
                getattr(given, name)[:] = 0
            assert not is_frozen(replace(given, **{name: getattr(good(), name)}))
