"""The null device: a model with no weights, for testing all that stands above a device.

Every step really stores (token, position, adapter, given row) in the page slots that the batch
names, and each logits row is a hash of the prefix read back through the page table. So a wrong
page, a wrong position, a page shared or freed too early, or a token lost by preemption changes the
output; a batch that breaks the protocol is refused. Slots that the manifest's sliding window has
left are read and not used. It knows nothing of engines or schedulers.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sterna.base.artifact import Manifest
from sterna.base.errors import DeviceError
from sterna.runtime.executable import Floats, Grid, Ints, StepInput
from sterna.runtime.sampling import SampleInput, check_sample, sample_rows

_Words = NDArray[np.uint64]


class NullExecutable:
    """Implements `Executable` deterministically and without arithmetic worth the name.

    `lift` is added to the logits of some ids, so that answers can be made to look like text.
    """

    def __init__(
        self, manifest: Manifest, num_pages: int, lift: Mapping[int, float] | None = None
    ) -> None:
        self._manifest = manifest
        self._num_pages = num_pages
        self._page_size = manifest.kv_cache.page_size
        self._slots: _Words = np.zeros((num_pages, self._page_size), np.uint64)
        self._ids = _mix(np.arange(manifest.model.vocab_size, dtype=np.uint64))
        self._lift = np.zeros(manifest.model.vocab_size, np.float32)
        for token, more in (lift or {}).items():
            self._lift[token] = more
        self._logits = np.zeros((0, manifest.model.vocab_size), np.float32)  # of the last step
        self._closed = False

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    @property
    def num_pages(self) -> int:
        return self._num_pages

    def step(self, batch: StepInput) -> NDArray[np.float32]:
        """Store the batch's tokens; hash what each wanted row sees to logits in [0, 8), lifted."""
        if self._closed:
            raise DeviceError("the null device was closed")
        self._check(batch)
        self._store(batch)
        words = self._ids ^ self._seen(batch)[:, None]
        words *= np.uint64(0x9E3779B97F4A7C15)
        words >>= np.uint64(40)
        self._logits = words.astype(np.float32) * np.float32(8 / 2**24) + self._lift
        return self._logits

    def run(self, batch: StepInput) -> None:
        """See Executable.run."""
        self.step(batch)

    def logits(self) -> NDArray[np.float32]:
        """See Executable.logits."""
        return self._logits

    def see(self, patches: Floats, grid: Grid | None = None) -> Floats:
        """A row for each token that the manifest says an image takes, a hash of its patches."""
        vision = self._manifest.vision
        if vision is None:
            raise DeviceError("the null model takes no images")
        count = vision.tokens if grid is None else grid[0] * grid[1]
        seen: _Words = np.full(count, _row_words(patches).sum(), np.uint64)
        seen += np.arange(count, dtype=np.uint64)
        words = _mix(seen)
        return (words >> np.uint64(40)).astype(np.float32)[:, None]

    def sample(self, given: SampleInput) -> Ints:
        """The meaning of a device's sampler, computed as it is defined."""
        check_sample(given, len(self._logits), self._manifest.model.vocab_size)
        return sample_rows(self._logits, given)

    def copy_page(self, source: int, destination: int) -> None:
        self._slots[destination] = self._slots[source]

    def read_page(self, page: int) -> NDArray[np.uint8]:
        data: NDArray[np.uint8] = self._slots[page].copy().view(np.uint8)
        return data

    def write_page(self, page: int, data: NDArray[np.uint8]) -> None:
        self._slots[page] = data.view(np.uint64)

    def close(self) -> None:
        self._closed = True

    def _store(self, batch: StepInput) -> None:
        first = np.repeat(batch.page_indptr[:-1], np.diff(batch.seq_indptr))
        page = batch.page_table[first + batch.positions // self._page_size]
        words = _mix(_mix(batch.tokens.astype(np.uint64)) + batch.positions.astype(np.uint64))
        if batch.adapters is not None:
            own = np.repeat(batch.adapters + 1, np.diff(batch.seq_indptr)).astype(np.uint64)
            words[own > 0] ^= _mix(own[own > 0])
        if batch.given is not None and batch.is_given is not None:
            shown = batch.is_given != 0
            words[shown] ^= _mix(_row_words(batch.given[shown]))
        self._slots[page, batch.positions % self._page_size] = words

    def _seen(self, batch: StepInput) -> _Words:
        """For each row a hash of the slots it sees: where they are read, and what lies there."""
        model = self._manifest.model
        owners = np.searchsorted(batch.seq_indptr, batch.logit_rows, side="right") - 1
        position = batch.positions[batch.logit_rows]
        lengths = position + 1
        starts = np.cumsum(lengths) - lengths
        index = np.arange(lengths.sum()) - np.repeat(starts, lengths)
        first = np.repeat(batch.page_indptr[owners], lengths)
        page = batch.page_table[first + index // self._page_size]
        words = _mix(self._slots[page, index % self._page_size] + index.astype(np.uint64))
        if model.sliding_window_size > 0:
            near = index > np.repeat(position - model.sliding_window_size, lengths)
            words[~(near | (index < model.attention_sink_size))] = 0
        # The sum wraps; order does not matter, for the index is in each word.
        hashes: _Words = np.add.reduceat(words, starts)
        return hashes

    def _check(self, batch: StepInput) -> None:
        """Refuse a batch that the protocol, or the limits in the manifest, rule out."""
        model, tokens = self._manifest.model, batch.tokens
        _require(0 < len(tokens) <= model.prefill_chunk_size, "tokens in a step", len(tokens))
        count = len(batch.seq_indptr) - 1
        _require(0 < count <= model.max_batch_size, "sequences in a step", count)
        _require(len(batch.positions) == len(tokens), "number of positions", len(batch.positions))
        _require(batch.seq_indptr[-1] == len(tokens), "end of seq_indptr", batch.seq_indptr[-1])
        _require(tokens.min() >= 0 and tokens.max() < model.vocab_size, "token ids", tokens)
        table, rows = batch.page_table, batch.logit_rows
        _require(len(table) > 0, "number of pages", 0)
        _require(table.min() >= 0 and table.max() < self._num_pages, "page numbers", table)
        _require(len(rows) > 0, "number of logit rows", 0)
        _require((rows[1:] > rows[:-1]).all(), "order of the logit rows", rows)
        room = self._manifest.adapters
        most = 0 if room is None else room.count
        own = np.full(count, -1) if batch.adapters is None else batch.adapters
        _require(len(own) == count, "number of adapters", len(own))
        _require(own.min() >= -1 and own.max() < most, "adapters", own)
        self._check_positions(batch)

    def _check_positions(self, batch: StepInput) -> None:
        starts, positions = batch.seq_indptr[:-1], batch.positions
        lengths = np.diff(batch.seq_indptr)
        _require(lengths.min() > 0, "tokens of a sequence", lengths)
        wanted = np.arange(len(positions)) + np.repeat(positions[starts] - starts, lengths)
        _require((positions == wanted).all(), "positions of a sequence", positions)
        last = positions[batch.seq_indptr[1:] - 1]
        covered = np.diff(batch.page_indptr) * self._page_size
        _require(positions.min() >= 0 and (last < covered).all(), "cover of the pages", covered)
        _require(last.max() < self._manifest.model.context_window_size, "last position", last)


def _row_words(rows: Floats) -> _Words:
    """A hash of each row's bits."""
    bits: _Words = np.ascontiguousarray(rows, np.float32).view(np.uint32).astype(np.uint64)
    bits += np.arange(rows.shape[1], dtype=np.uint64)
    words: _Words = _mix(bits).sum(axis=1)
    return words


def _require(holds: object, what: str, found: object) -> None:
    if not holds:
        raise DeviceError(f"the step's batch is malformed: {what}: {found}")


def _mix(words: _Words) -> _Words:
    """splitmix64's output function (Steele, Lea, Flood 2014), elementwise and wrapping."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
