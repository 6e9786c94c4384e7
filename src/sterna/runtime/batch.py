"""A step's batch: checked, measured, and cut into query tiles, before C sees it.

In: a StepInput and the manifest's limits. Out: the values of the dims and the arrays that entry
points name as inputs. Whatever passes `prepare` cannot make a kernel read or write outside its
buffers; whether pages are shared wisely is the engine's business.
"""

from __future__ import annotations

from dataclasses import dataclass

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


def prepare(batch: StepInput, manifest: Manifest, num_pages: int) -> Prepared:
    """Check a batch and complete it; RequestError says what is wrong with it."""
    _check_form(batch)
    lengths = np.diff(batch.seq_indptr)
    _check_positions(batch, lengths, manifest)
    _check_pages(batch, manifest.kv_cache.page_size, num_pages)
    sequences = np.arange(len(lengths), dtype=np.int32)
    start, size, seq = tiles(batch.seq_indptr, lengths, sequences)
    inputs = {
        "tokens": batch.tokens,
        "positions": batch.positions,
        "seq_ids": np.repeat(sequences, lengths),
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
        "n": len(batch.tokens),
        "b": len(lengths),
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
    if int(slots.min()) < 0 or int(slots.max()) >= manifest.states.slots:
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
        given = np.full(count, -1, np.int32)
    if given.shape != (count,) or given.dtype != np.int32:
        raise RequestError(
            f"adapters of a step must be int32[{count}], one a sequence, not "
            f"{given.dtype}{list(given.shape)}"
        )
    if int(given.min()) < -1 or int(given.max()) >= most:
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


def _check_form(batch: StepInput) -> None:
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
    _check_indptr("seq_indptr", batch.seq_indptr, n)
    _check_indptr("page_indptr", batch.page_indptr, len(batch.page_table))
    if len(batch.seq_indptr) != len(batch.page_indptr):
        raise RequestError("seq_indptr and page_indptr of a step speak of different sequences")
    rows = batch.logit_rows
    if len(rows) and (rows[0] < 0 or rows[-1] >= n or (rows[1:] <= rows[:-1]).any()):
        raise RequestError(f"logit_rows of a step must ascend and lie in 0..{n - 1}")


def _check_indptr(name: str, indptr: Ints, total: int) -> None:
    ends_match = len(indptr) >= 2 and indptr[0] == 0 and indptr[-1] == total
    if not ends_match or (indptr[1:] <= indptr[:-1]).any():
        raise RequestError(
            f"{name} of a step must rise from 0 to {total}, with no sequence empty: "
            f"{indptr[:8].tolist()}"
        )


def _check_positions(batch: StepInput, lengths: Ints, manifest: Manifest) -> None:
    vocab, window = manifest.model.vocab_size, manifest.model.context_window_size
    low, high = int(batch.tokens.min()), int(batch.tokens.max())
    if low < 0 or high >= vocab:
        raise RequestError(
            f"token {low if low < 0 else high} is not in the vocabulary of {vocab} tokens"
        )
    first = batch.positions[batch.seq_indptr[:-1]]
    last = batch.positions[batch.seq_indptr[1:] - 1]
    if int(first.min()) < 0 or (0 < window <= int(last.max())):
        bad = int(first.min()) if int(first.min()) < 0 else int(last.max())
        raise RequestError(f"position {bad} is outside the context window of {window} tokens")
    if len(lengths) == len(batch.tokens):
        return
    steps = np.ones(len(batch.tokens), dtype=np.int64)
    steps[batch.seq_indptr[1:-1]] = batch.positions[batch.seq_indptr[1:-1]].astype(np.int64)
    steps[batch.seq_indptr[1:-1]] -= batch.positions[batch.seq_indptr[1:-1] - 1]
    if (np.diff(batch.positions.astype(np.int64)) != steps[1:]).any():
        raise RequestError("the positions of one sequence in a step must be consecutive")


def _check_pages(batch: StepInput, page_size: int, num_pages: int) -> None:
    pages = batch.page_table
    if int(pages.min()) < 0 or int(pages.max()) >= num_pages:
        bad = int(pages.min()) if int(pages.min()) < 0 else int(pages.max())
        raise RequestError(f"page {bad} is not one of the cache's {num_pages} pages")
    last = batch.positions[batch.seq_indptr[1:] - 1]
    have = np.diff(batch.page_indptr)
    short = np.flatnonzero(last // page_size >= have)
    if len(short):
        s = int(short[0])
        raise RequestError(
            f"sequence {s} of the step reaches position {last[s]} and has {have[s]} pages of "
            f"{page_size} tokens"
        )


def tiles(indptr: Ints, lengths: Ints, sequences: Ints) -> tuple[Ints, Ints, Ints]:
    """First token, size and sequence of each tile; see Prepared."""
    if len(lengths) == indptr[-1]:  # one token each
        return sequences, np.ones_like(sequences), sequences
    counts = -(-lengths // QUERY_TILE)
    seq = np.repeat(sequences, counts)
    within = np.arange(len(seq), dtype=np.int32) - np.repeat(np.cumsum(counts) - counts, counts)
    start = (indptr[:-1][seq] + within * QUERY_TILE).astype(np.int32)
    size = np.minimum(indptr[1:][seq] - start, QUERY_TILE).astype(np.int32)
    return start, size, seq
