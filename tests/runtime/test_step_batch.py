"""What a step's batch must be, and the tiles that are cut from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_library import VOCAB, ints, toy_entry, toy_manifest, toy_step

from sterna.base.artifact import QUERY_TILE
from sterna.base.errors import RequestError
from sterna.runtime.batch import choose, prepare
from sterna.runtime.executable import StepInput

GOOD = toy_step([([1, 2, 3], 4, [0, 1]), ([4], 0, [5]), ([6, 7], 3, [2, 3])])


def test_a_good_batch() -> None:
    prepared = prepare(GOOD, toy_manifest(), 6)
    assert prepared.dims == {"n": 6, "b": 3, "p": 5, "r": 6, "t": 3}
    assert prepared.inputs["seq_ids"].tolist() == [0, 0, 0, 1, 2, 2]
    assert prepared.inputs["tile_start"].tolist() == [0, 3, 4]
    assert all(a.dtype == np.int32 and a.ndim == 1 for a in prepared.inputs.values())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokens": ints([1, 2, 3, 4, 6, VOCAB])}, "token 21 is not in the vocabulary of 21"),
        ({"tokens": ints([1, 2, 3, -4, 6, 7])}, "token -4"),
        ({"tokens": ints([])}, "at least one"),
        ({"tokens": ints([[1, 2, 3, 4, 6, 7]])}, "flat int32"),
        ({"tokens": np.arange(6)}, "flat int32 array, not int64"),
        ({"positions": ints([4, 5, 6, 0, 3])}, "5 positions"),
        ({"positions": ints([4, 5, 7, 0, 3, 4])}, "consecutive"),
        ({"positions": ints([4, 5, 6, 0, 4, 3])}, "consecutive"),
        ({"positions": ints([-1, 0, 1, 0, 3, 4])}, "position -1"),
        ({"positions": ints([4, 5, 6, 64, 3, 4])}, "position 64 .* window of 64"),
        ({"positions": ints([7, 8, 9, 0, 3, 4])}, "reaches position 9 and has 2 pages"),
        ({"seq_indptr": ints([0, 3, 3, 6])}, "no sequence empty"),
        ({"seq_indptr": ints([0, 3, 4, 7])}, "from 0 to 6"),
        ({"seq_indptr": ints([0])}, "seq_indptr"),
        ({"seq_indptr": ints([1, 3, 4, 6])}, "seq_indptr"),
        ({"seq_indptr": ints([0, 4, 3, 6])}, "seq_indptr"),
        ({"page_indptr": ints([0, 2, 5])}, "different sequences"),
        ({"page_indptr": ints([0, 2, 3, 4])}, "page_indptr"),
        ({"page_table": ints([0, 1, 5, 2, 6])}, "page 6 is not one of the cache's 6"),
        ({"page_table": ints([0, 1, -5, 2, 3])}, "page -5"),
        ({"page_table": ints([])}, "page_indptr"),
        ({"logit_rows": ints([0, 6])}, "logit_rows"),
        ({"logit_rows": ints([-1, 2])}, "logit_rows"),
        ({"logit_rows": ints([2, 2])}, "ascend"),
        ({"logit_rows": ints([3, 2])}, "ascend"),
    ],
)
def test_bad_batches(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        prepare(replace(GOOD, **changes), toy_manifest(), 6)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 70), min_size=1, max_size=8))
def test_tiles_cover_every_token_once(lengths: list[int]) -> None:
    batch = toy_step([([0] * n, 0, list(range(-(-n // 4)))) for n in lengths])
    manifest = toy_manifest()
    wide = type(manifest.model)(
        **{f: getattr(manifest.model, f) for f in manifest.model.__struct_fields__}
        | {"context_window_size": 100}
    )
    prepared = prepare(batch, toy_manifest(model=wide), 20)
    tiles = [prepared.inputs[name].tolist() for name in ("tile_start", "tile_size", "tile_seq")]
    covered = []
    for start, size, seq in zip(*tiles, strict=True):
        assert 1 <= size <= QUERY_TILE
        covered += [(token, seq) for token in range(start, start + size)]
    assert covered == list(enumerate(prepared.inputs["seq_ids"].tolist()))
    assert prepared.dims["t"] == sum(-(-n // QUERY_TILE) for n in lengths)


def dims_of(batch: StepInput) -> dict[str, int]:
    return prepare(batch, toy_manifest(), 20).dims


def test_which_entry_runs() -> None:
    entries = {e.name: e for e in toy_manifest().entries}
    ones = [([1], 0, [0])]
    assert choose(entries, dims_of(toy_step(ones * 4))).name == "decode"
    assert choose(entries, dims_of(toy_step(ones * 5))).name == "verify"
    assert choose(entries, dims_of(toy_step([([1, 2], 0, [0])]))).name == "verify"
    assert choose(entries, dims_of(toy_step([([1] * 9, 0, [0, 1, 2])]))).name == "prefill"
    only = {"prefill": toy_entry("prefill", 3)}
    assert choose(only, dims_of(toy_step(ones))).name == "prefill"
    with pytest.raises(RequestError, match=r"n=4, b=4.*prefill with n 1\.\.3"):
        choose(only, dims_of(toy_step(ones * 4)))
