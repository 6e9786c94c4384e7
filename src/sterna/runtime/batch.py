"""A step's batch: checked, measured, and cut into query tiles, before C sees it.

In: a StepInput and the manifest's limits. Out: the values of the dims and the arrays that entry
points name as inputs. Whatever passes `prepare` cannot make a kernel read or write outside its
buffers; whether pages are shared wisely is the engine's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sterna.base.artifact import (
    ADAPTER_IDS,
    GIVEN,
    GRID_POSITIONS,
    IS_GIVEN,
    PATCHES,
    PREFILL_GIVEN,
    QUERY_TILE,
    ROPE_POSITIONS,
    SIGHT_CACHE,
    SLOT_INDPTR,
    SLOTS,
    STATES,
    WINDOW,
    Entry,
    Manifest,
)
from sterna.base.errors import RequestError
from sterna.runtime.executable import Ints, StepInput
from sterna.runtime.memory import largest_shape

_INDEX = (
    "positions", "seq_ids", "page_indptr", "page_table", "tile_start", "tile_size", "tile_seq",
    "ends",
)  # fmt: skip
INPUTS = (
    "tokens", "seq_indptr", "logit_rows", *_INDEX, ADAPTER_IDS, GIVEN, IS_GIVEN, ROPE_POSITIONS,
    PATCHES, SIGHT_CACHE, GRID_POSITIONS, STATES, SLOTS, SLOT_INDPTR,
    *(WINDOW + name for name in _INDEX),
)  # fmt: skip
FLOATS = (GIVEN, PATCHES, SIGHT_CACHE, STATES)  # of these, those that are f32
STEP_DIMS = ("n", "b", "p", "r", "t")
DIMS = (*STEP_DIMS, "w", "q", "u")  # the last three of an image's windows


@dataclass(frozen=True, slots=True)
class Prepared:
    """Inputs by name, all int32 and one-dimensional (floats by their bits), and their dims.

    `seq_ids` [n] is the sequence of each token; an encoder also takes `ends` [n], the position of
    that sequence's last token, a library with room for adapters their `adapter_ids` [n]. Tile i is
    the `tile_size[i]` (1 to QUERY_TILE) tokens from `tile_start[i]` on, all of sequence
    `tile_seq[i]`; tiles cover every token once, in order.
    """

    inputs: dict[str, Ints]
    dims: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Ranges:
    """What a batch says of each sequence, as lists: of few numbers those are far quicker."""

    seqs: list[int]  # seq_indptr
    pages: list[int]  # page_indptr
    last: list[int]  # the position of its last token


def prepare(batch: StepInput, manifest: Manifest, num_pages: int) -> Prepared:
    """Check a batch and complete it; RequestError says what is wrong with it."""
    ranges = _check_form(batch)
    _check_positions(batch, ranges, manifest)
    _check_pages(batch, ranges, manifest.kv_cache.page_size, num_pages)
    n, count = len(batch.tokens), len(ranges.last)
    sequences = np.arange(count, dtype=np.int32)
    lengths = np.diff(batch.seq_indptr) if n > count else np.ones(count, np.int32)
    start, size, seq = tiles(batch.seq_indptr, lengths, sequences)
    inputs = {
        "tokens": batch.tokens,
        "positions": batch.positions,
        "seq_ids": np.repeat(sequences, lengths) if n > count else sequences,
        "seq_indptr": batch.seq_indptr,
        "page_indptr": batch.page_indptr,
        "page_table": batch.page_table,
        "logit_rows": batch.logit_rows,
        "tile_start": start,
        "tile_size": size,
        "tile_seq": seq,
    }
    if not manifest.model.causal:
        inputs["ends"] = np.repeat(_whole(batch), lengths)
    inputs |= _given(batch, manifest) | _slots(batch, manifest)
    if manifest.vision is not None and manifest.vision.axes:
        inputs[ROPE_POSITIONS] = _on_axes(batch, manifest.vision.axes)
    adapters = _adapters(batch, manifest)
    if adapters is not None:
        inputs[ADAPTER_IDS] = np.repeat(adapters, lengths)
    dims = {
        "n": n,
        "b": count,
        "p": len(batch.page_table),
        "r": len(batch.logit_rows),
        "t": len(start),
    }
    return Prepared(inputs, dims)


def _slots(batch: StepInput, manifest: Manifest) -> dict[str, Ints]:
    """Where each sequence's states are; the states themselves stay where they are."""
    count, slots = len(batch.seq_indptr) - 1, batch.slots
    if manifest.states is None:
        return {}
    if slots is None:
        slots = np.arange(count, dtype=np.int32)
    if slots.shape != (count,) or slots.dtype != np.int32:
        raise RequestError(f"slots of a step must be int32[{count}], one a sequence")
    low, high = _bounds(slots)
    if low < 0 or high >= manifest.states.slots:
        raise RequestError(
            f"a step asks for slots {slots.tolist()[:8]}; the library has {manifest.states.slots}, "
            "numbered from 0"
        )
    if len(np.unique(slots)) < count:
        raise RequestError(f"sequences of a step share a slot: {slots.tolist()[:8]}")
    indptr = np.arange(count + 1, dtype=np.int32)
    return {STATES: np.zeros(0, np.int32), SLOTS: slots, SLOT_INDPTR: indptr}


def _given(batch: StepInput, manifest: Manifest) -> dict[str, Ints]:
    """Rows in place of embeddings, where a step has any."""
    given, where, n = batch.given, batch.is_given, len(batch.tokens)
    if given is None and where is None:
        return {}
    if manifest.vision is None:
        raise RequestError("a step gives rows for tokens, and the model takes no images")
    entry = manifest.entry(PREFILL_GIVEN)
    width = largest_shape(next(b for b in entry.inputs if b.name == GIVEN), entry)[1]
    if given is None or given.shape != (n, width) or given.dtype != np.float32:
        raise RequestError(f"the given rows of a step must be float32[{n}, {width}]")
    if where is None or where.shape != (n,) or where.dtype != np.int32:
        raise RequestError(f"is_given of a step must be int32[{n}]")
    return {GIVEN: np.ascontiguousarray(given).ravel().view(np.int32), IS_GIVEN: where}


def _on_axes(batch: StepInput, axes: int) -> Ints:
    """The positions that tokens turn by; where a step does not say, those in their sequences."""
    given, n = batch.rope_positions, len(batch.tokens)
    if given is None:
        return np.repeat(batch.positions, axes)
    if given.shape != (n, axes) or given.dtype != np.int32:
        raise RequestError(f"rope_positions of a step must be int32[{n}, {axes}]")
    return np.ascontiguousarray(given).ravel()


def _adapters(batch: StepInput, manifest: Manifest) -> Ints | None:
    """The adapter of each sequence, where the library has room for any."""
    given, count = batch.adapters, len(batch.seq_indptr) - 1
    most = 0 if manifest.adapters is None else manifest.adapters.count
    if given is None:
        return None if manifest.adapters is None else np.full(count, -1, np.int32)
    if given.shape != (count,) or given.dtype != np.int32:
        raise RequestError(
            f"adapters of a step must be int32[{count}], one a sequence, not "
            f"{given.dtype}{list(given.shape)}"
        )
    low, high = _bounds(given)
    if low < -1 or high >= most:
        raise RequestError(
            f"a step asks for adapters {given.tolist()[:8]}; the library has room for {most}, "
            "numbered from 0, and -1 is none"
        )
    return None if manifest.adapters is None else given


def _whole(batch: StepInput) -> Ints:
    """The last position of each sequence, which begins in this step: an encoder sees all of it."""
    first = batch.positions[batch.seq_indptr[:-1]]
    if first.any():
        raise RequestError(
            f"a sequence of the step begins at position {first.max()}; an encoder takes each "
            "sequence as a whole, from position 0"
        )
    return batch.positions[batch.seq_indptr[1:] - 1]


def choose(entries: dict[str, Entry], dims: dict[str, int], *, given: bool = False) -> Entry:
    """Decode if each sequence has one token, else verify, else prefill: the first that fits.

    A step with `given` rows has one entry point that takes it, "prefill_given"; a library of an
    embedding model has one at all, "embed".
    """
    first = ("decode",) if dims["n"] == dims["b"] else ()
    plain = (*first, "verify", "prefill", "embed")
    for name in (PREFILL_GIVEN,) if given else plain:
        entry = entries.get(name)
        if entry and all(dim.lo <= dims[dim.name] <= dim.hi for dim in entry.dims):
            return entry
    asked = ", ".join(f"{name}={dims[name]}" for name in STEP_DIMS)
    possible = "; ".join(
        f"{e.name} with " + ", ".join(f"{d.name} {d.lo}..{d.hi}" for d in e.dims)
        for e in entries.values()
    )
    raise RequestError(
        f"no entry point of the library takes a step of {asked} (tokens, sequences, page-table "
        f"entries, logit rows, query tiles); it has {possible}"
    )


def _check_form(batch: StepInput) -> _Ranges:
    arrays = (
        ("tokens", batch.tokens),
        ("positions", batch.positions),
        ("seq_indptr", batch.seq_indptr),
        ("page_indptr", batch.page_indptr),
        ("page_table", batch.page_table),
        ("logit_rows", batch.logit_rows),
    )
    for name, array in arrays:
        if array.ndim != 1 or array.dtype != np.int32:
            raise RequestError(
                f"{name} of a step must be a flat int32 array, not {array.dtype}{array.shape}"
            )
    n = len(batch.tokens)
    if n == 0 or len(batch.positions) != n:
        raise RequestError(
            f"a step needs as many positions as tokens, and at least one: it has {n} tokens and "
            f"{len(batch.positions)} positions"
        )
    seqs = _indptr("seq_indptr", batch.seq_indptr, n)
    pages = _indptr("page_indptr", batch.page_indptr, len(batch.page_table))
    if len(seqs) != len(pages):
        raise RequestError("seq_indptr and page_indptr of a step speak of different sequences")
    rows = batch.logit_rows.tolist()
    if rows and (rows[0] < 0 or rows[-1] >= n or not _rises(rows)):
        raise RequestError(f"logit_rows of a step must ascend and lie in 0..{n - 1}")
    return _Ranges(seqs, pages, batch.positions[batch.seq_indptr[1:] - 1].tolist())


def _indptr(name: str, given: Ints, total: int) -> list[int]:
    indptr: list[int] = given.tolist()
    ends_match = len(indptr) >= 2 and indptr[0] == 0 and indptr[-1] == total
    if not ends_match or not _rises(indptr):
        raise RequestError(
            f"{name} of a step must rise from 0 to {total}, with no sequence empty: {indptr[:8]}"
        )
    return indptr


def _rises(values: list[int]) -> bool:
    return all(a < b for a, b in pairwise(values))


def _bounds(values: Ints) -> tuple[int, int]:
    """The least and the largest; numpy's own call takes longer than 64 numbers do as a list."""
    if len(values) > 64:
        return int(values.min()), int(values.max())
    numbers = values.tolist()
    return min(numbers), max(numbers)


def _check_positions(batch: StepInput, ranges: _Ranges, manifest: Manifest) -> None:
    vocab, window = manifest.model.vocab_size, manifest.model.context_window_size
    low, high = _bounds(batch.tokens)
    if low < 0 or high >= vocab:
        raise RequestError(
            f"token {low if low < 0 else high} is not in the vocabulary of {vocab} tokens"
        )
    positions: list[int] = batch.positions.tolist()
    first = [positions[begin] for begin in ranges.seqs[:-1]]
    low, high = min(first), max(ranges.last)
    if low < 0 or 0 < window <= high:
        bad = low if low < 0 else high
        raise RequestError(f"position {bad} is outside the context window of {window} tokens")
    if len(first) == len(positions):
        return
    for (begin, end), at in zip(pairwise(ranges.seqs), first):
        if positions[begin:end] != [*range(at, at + end - begin)]:
            raise RequestError("the positions of one sequence in a step must be consecutive")


def _check_pages(batch: StepInput, ranges: _Ranges, page_size: int, num_pages: int) -> None:
    low, high = _bounds(batch.page_table)
    if low < 0 or high >= num_pages:
        bad = low if low < 0 else high
        raise RequestError(f"page {bad} is not one of the cache's {num_pages} pages")
    for s, ((begin, end), last) in enumerate(zip(pairwise(ranges.pages), ranges.last)):
        if last // page_size >= end - begin:
            raise RequestError(
                f"sequence {s} of the step reaches position {last} and has {end - begin} pages of "
                f"{page_size} tokens"
            )


def tiles(indptr: Ints, lengths: Ints, sequences: Ints) -> tuple[Ints, Ints, Ints]:
    """First token, size and sequence of each tile; see Prepared."""
    if len(lengths) == indptr[-1]:  # one token each
        return sequences, np.ones(len(sequences), np.int32), sequences
    counts = -(-lengths // QUERY_TILE)
    seq = np.repeat(sequences, counts)
    within = np.arange(len(seq), dtype=np.int32) - np.repeat(np.cumsum(counts) - counts, counts)
    start = (indptr[:-1][seq] + within * QUERY_TILE).astype(np.int32)
    size = np.minimum(indptr[1:][seq] - start, QUERY_TILE).astype(np.int32)
    return start, size, seq
