"""A batch: which tokens of which sequences one step runs, and its arrays for the device.

The arrays are allocated once, for the largest step the limits allow, and filled anew each time.
Knows nothing of why the scheduler chose these tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sterna.engine.limits import Limits
from sterna.engine.pictures import Picture, on_axes
from sterna.engine.request import GONE, Sequence
from sterna.runtime.executable import Floats, Ints, StepInput


@dataclass(slots=True)  # not frozen: one is made for each token, and that takes thrice as long
class Piece:
    """The next `count` pending tokens of a sequence, and `draft` guesses at what follows them.

    `last`: they are all that pend, so their logits give the sequence's next token, and those of
    each guess the token after it.
    """

    sequence: Sequence
    count: int
    last: bool
    draft: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Tokens in the step."""
        return self.count + len(self.draft)

    def pictures(self) -> list[Picture]:
        """Those of which it runs tokens."""
        first = self.sequence.cached
        shown = self.sequence.pictures
        return [p for p in shown if p.start < first + self.count and first < p.end]

    @property
    def rows(self) -> int:
        """Logit rows in the step: those of its last tokens."""
        return 1 + len(self.draft) if self.last else 0


def piece_of(sequence: Sequence, budget: int) -> Piece:
    """As many of the sequence's pending tokens as `budget` allows."""
    count = min(sequence.pending, budget)
    return Piece(sequence, count, count == sequence.pending)


@dataclass(frozen=True, slots=True)
class Batch:
    """One step: at least one piece, each of another sequence.

    Before it runs, each (source, destination) of `copies` is copied, a page each.
    """

    pieces: tuple[Piece, ...]
    copies: tuple[tuple[int, int], ...] = ()

    @property
    def prefill_tokens(self) -> int:
        """Tokens of prompts, and of answers computed again; asked before the step runs."""
        return sum(
            p.count
            for p in self.pieces
            if p.count > 1 or p.sequence.cached < p.sequence.prompt_length
        )

    def unseen(self) -> Iterator[Picture]:
        """The images it needs that nobody has looked at: they were in no page that was found."""
        for piece in self.pieces if any(p.sequence.pictures for p in self.pieces) else ():
            yield from (picture for picture in piece.pictures() if picture.rows is None)

    @property
    def draft_tokens(self) -> int:
        return sum(len(piece.draft) for piece in self.pieces)


class StepArrays:
    """The arrays of StepInput, big enough for every batch within `limits`."""

    def __init__(self, limits: Limits) -> None:
        table = limits.max_sequences * -(-limits.window // limits.page_size)
        self._tokens = np.zeros(limits.chunk, np.int32)
        self._positions = np.zeros(limits.chunk, np.int32)
        self._seq_indptr = np.zeros(limits.max_sequences + 1, np.int32)
        self._page_indptr = np.zeros(limits.max_sequences + 1, np.int32)
        self._page_table = np.zeros(table, np.int32)
        self._logit_rows = np.zeros(limits.rows, np.int32)
        self._holes = limits.sliding is not None
        self._adapters = np.zeros(limits.max_sequences, np.int32)
        self._slots = np.zeros(limits.max_sequences, np.int32)

    def fill(self, batch: Batch) -> StepInput:
        """The batch as the device wants it; valid until the next call."""
        tokens: list[int] = []
        positions: list[int] = []
        pages: list[int] = []
        rows: list[int] = []
        seq_indptr, page_indptr = [0], [0]
        for piece in batch.pieces:
            sequence, first = piece.sequence, piece.sequence.cached
            if piece.count == 1 and not piece.draft:
                tokens.append(sequence.tokens[first])
                positions.append(first)
                if piece.last:
                    rows.append(len(tokens) - 1)
            else:
                tokens += sequence.tokens[first : first + piece.count]
                tokens += piece.draft
                positions += range(first, first + piece.size)
                rows += range(len(tokens) - piece.rows, len(tokens))
            pages += _table(sequence) if self._holes else sequence.pages
            seq_indptr.append(len(tokens))
            page_indptr.append(len(pages))
        if not rows:  # programs are compiled for one row or more; nobody looks at this one
            rows = [len(tokens) - 1]
        given, is_given = _given(batch, len(tokens))
        return StepInput(
            tokens=_put(self._tokens, tokens),
            positions=_put(self._positions, positions),
            seq_indptr=_put(self._seq_indptr, seq_indptr),
            page_indptr=_put(self._page_indptr, page_indptr),
            page_table=_put(self._page_table, pages),
            logit_rows=_put(self._logit_rows, rows),
            adapters=_put(self._adapters, [piece.sequence.adapter for piece in batch.pieces]),
            given=given,
            is_given=is_given,
            rope_positions=_rope_positions(batch, positions),
            slots=_put(self._slots, [piece.sequence.slot for piece in batch.pieces]),
        )


def _given(batch: Batch, count: int) -> tuple[Floats | None, Ints | None]:
    """Rows of images in place of embeddings; nothing where the step has none."""
    given: Floats | None = None
    where = np.zeros(count, np.int32)
    at = 0
    for piece in batch.pieces if any(p.sequence.pictures for p in batch.pieces) else ():
        first = piece.sequence.cached
        for picture in piece.pictures():
            rows = picture.rows
            assert rows is not None, "an image that nobody looked at"
            if given is None:
                given = np.zeros((count, rows.shape[1]), np.float32)
            low, high = max(picture.start, first), min(picture.end, first + piece.count)
            given[at + low - first : at + high - first] = rows[
                low - picture.start : high - picture.start
            ]
            where[at + low - first : at + high - first] = 1
        at += piece.size
    return (None, None) if given is None else (given, where)


def _rope_positions(batch: Batch, positions: list[int]) -> Ints | None:
    """Positions on axes, where a sequence has images whose tokens lie on them."""
    pieces = batch.pieces
    if not any(p.patches.grid for piece in pieces for p in piece.sequence.pictures):
        return None
    found = np.repeat(np.array(positions, np.int32)[:, None], 3, 1)
    at = 0
    for piece in pieces:
        if shown := piece.sequence.pictures:
            found[at : at + piece.size] = on_axes(shown, piece.sequence.cached, piece.size)
        at += piece.size
    return found


def _put(array: Ints, values: list[int]) -> Ints:
    part = array[: len(values)]
    part[:] = values
    return part


def _table(sequence: Sequence) -> list[int]:
    """The sequence's pages; where it gave one back stands its newest, which nobody reads there.

    Kernels leave out the pages that the window has left; a table still needs numbers that exist.
    """
    pages = sequence.pages
    return [pages[-1] if p == GONE else p for p in pages] if GONE in pages else pages
