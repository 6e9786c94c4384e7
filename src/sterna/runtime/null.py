"""The null device: a model with no weights, for testing all that stands above a device.

Every step really stores (token, position) in the page slots that the batch names, and every
logits row is a hash of the prefix read back through the page table. So a wrong page, a wrong
position, a page shared or freed too early, or a token lost by preemption changes the output;
a batch that breaks the protocol is refused. It knows nothing of engines or schedulers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sterna.base.artifact import Manifest
from sterna.base.errors import DeviceError
from sterna.runtime.executable import Ints, StepInput

_Words = NDArray[np.uint64]


class NullExecutable:
    """Implements `Executable` deterministically and without arithmetic worth the name."""

    def __init__(self, manifest: Manifest, num_pages: int) -> None:
        self._manifest = manifest
        self._num_pages = num_pages
        slots = (num_pages, manifest.kv_cache.page_size)
        self._tokens = np.full(slots, -1, np.int32)  # [pages, page_size]; -1: never written
        self._positions = np.full(slots, -1, np.int32)
        self._closed = False

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    @property
    def num_pages(self) -> int:
        return self._num_pages

    def step(self, batch: StepInput) -> NDArray[np.float32]:
        """Store the batch's tokens; hash each wanted row's prefix to logits in [0, 8)."""
        if self._closed:
            raise DeviceError("the null device was closed")
        self._check(batch)
        self._store(batch)
        owners = np.searchsorted(batch.seq_indptr, batch.logit_rows, side="right") - 1
        logits = np.empty((len(batch.logit_rows), self._manifest.model.vocab_size), np.float32)
        for i, (row, owner) in enumerate(zip(batch.logit_rows, owners)):
            prefix = self._prefix(_pages(batch, owner), int(batch.positions[row]) + 1)
            logits[i] = self._logits(prefix)
        return logits

    def copy_page(self, source: int, destination: int) -> None:
        self._tokens[destination] = self._tokens[source]
        self._positions[destination] = self._positions[source]

    def close(self) -> None:
        self._closed = True

    def _store(self, batch: StepInput) -> None:
        size = self._manifest.kv_cache.page_size
        for s in range(len(batch.seq_indptr) - 1):
            own = slice(batch.seq_indptr[s], batch.seq_indptr[s + 1])
            positions = batch.positions[own]
            pages = _pages(batch, s)[positions // size]
            self._tokens[pages, positions % size] = batch.tokens[own]
            self._positions[pages, positions % size] = positions

    def _prefix(self, pages: Ints, length: int) -> np.uint64:
        """Hash the cache's first `length` slots: where they are read, and what lies there."""
        size = self._manifest.kv_cache.page_size
        index = np.arange(length)
        page, slot = pages[index // size], index % size
        words = _mix(self._tokens[page, slot].astype(np.uint64))
        words = _mix(words + self._positions[page, slot].astype(np.uint64))
        words = _mix(words + index.astype(np.uint64))
        return np.uint64(
            np.add.reduce(words)
        )  # wraps: order does not matter, the index is in each word

    def _logits(self, prefix: np.uint64) -> NDArray[np.float32]:
        ids = np.arange(self._manifest.model.vocab_size, dtype=np.uint64)
        words = _mix(_mix(ids) ^ prefix)
        return (words >> np.uint64(40)).astype(np.float32) * np.float32(8 / 2**24)

    def _check(self, batch: StepInput) -> None:
        """Refuse a batch that the protocol, or the limits in the manifest, rule out."""
        model, tokens = self._manifest.model, batch.tokens
        _require(0 < len(tokens) <= model.prefill_chunk_size, "tokens in a step", len(tokens))
        count = len(batch.seq_indptr) - 1
        _require(0 < count <= model.max_batch_size, "sequences in a step", count)
        _require(len(batch.positions) == len(tokens), "number of positions", len(batch.positions))
        _require(batch.seq_indptr[-1] == len(tokens), "end of seq_indptr", batch.seq_indptr[-1])
        _require(((tokens >= 0) & (tokens < model.vocab_size)).all(), "token ids", tokens)
        table, rows = batch.page_table, batch.logit_rows
        _require(((table >= 0) & (table < self._num_pages)).all(), "page numbers", table)
        _require(len(rows) > 0, "number of logit rows", 0)
        _require((np.diff(rows) > 0).all(), "order of the logit rows", rows)
        for s in range(count):
            self._check_sequence(batch, s)

    def _check_sequence(self, batch: StepInput, s: int) -> None:
        positions = batch.positions[batch.seq_indptr[s] : batch.seq_indptr[s + 1]]
        _require(len(positions) > 0, "tokens of a sequence", 0)
        _require((np.diff(positions) == 1).all(), "positions of a sequence", positions)
        covered = len(_pages(batch, s)) * self._manifest.kv_cache.page_size
        _require(positions[0] >= 0 and positions[-1] < covered, "cover of the pages", covered)
        window = self._manifest.model.context_window_size
        _require(positions[-1] < window, "last position", positions[-1])


def _require(holds: object, what: str, found: object) -> None:
    if not holds:
        raise DeviceError(f"the step's batch is malformed: {what}: {found}")


def _pages(batch: StepInput, s: int) -> Ints:
    return batch.page_table[batch.page_indptr[s] : batch.page_indptr[s + 1]]


def _mix(words: _Words) -> _Words:
    """splitmix64's output function (Steele, Lea, Flood 2014), elementwise and wrapping."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
