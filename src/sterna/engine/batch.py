"""A batch: which tokens of which sequences one step runs, and its arrays for the device.

The arrays are allocated once, for the largest step the limits allow, and filled anew each time.
Knows nothing of why the scheduler chose these tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sterna.engine.limits import Limits
from sterna.engine.request import Sequence
from sterna.runtime.executable import StepInput


@dataclass(frozen=True, slots=True)
class Piece:
    """The next `count` pending tokens of a sequence.

    `last`: they are all that pend, so their logits give the sequence's next token.
    """

    sequence: Sequence
    count: int
    last: bool


def piece_of(sequence: Sequence, budget: int) -> Piece:
    """As many of the sequence's pending tokens as `budget` allows."""
    count = min(sequence.pending, budget)
    return Piece(sequence, count, count == sequence.pending)


@dataclass(frozen=True, slots=True)
class Batch:
    """One step: at least one piece, each of another sequence."""

    pieces: tuple[Piece, ...]

    @property
    def prefill_tokens(self) -> int:
        """Tokens of prompts, and of answers computed again; asked before the step runs."""
        return sum(p.count for p in self.pieces if p.count > 1 or _in_prompt(p.sequence))


def _in_prompt(sequence: Sequence) -> bool:
    return sequence.cached < sequence.prompt_length


class StepArrays:
    """The arrays of StepInput, big enough for every batch within `limits`."""

    def __init__(self, limits: Limits) -> None:
        table = limits.max_sequences * -(-limits.window // limits.page_size)
        self._tokens = np.zeros(limits.chunk, np.int32)
        self._positions = np.zeros(limits.chunk, np.int32)
        self._seq_indptr = np.zeros(limits.max_sequences + 1, np.int32)
        self._page_indptr = np.zeros(limits.max_sequences + 1, np.int32)
        self._page_table = np.zeros(table, np.int32)
        self._logit_rows = np.zeros(limits.max_sequences, np.int32)

    def fill(self, batch: Batch) -> StepInput:
        """The batch as the device wants it; valid until the next call."""
        n = p = r = 0
        for s, piece in enumerate(batch.pieces, start=1):
            sequence, start, end = piece.sequence, n, n + piece.count
            first, n = sequence.cached, end
            self._tokens[start:end] = sequence.tokens[first : first + piece.count]
            self._positions[start:end] = np.arange(first, first + piece.count)
            self._page_table[p : p + len(sequence.pages)] = sequence.pages
            p += len(sequence.pages)
            self._seq_indptr[s], self._page_indptr[s] = n, p
            if piece.last:
                self._logit_rows[r] = n - 1
                r += 1
        if r == 0:  # programs are compiled for one row or more; nobody looks at this one
            self._logit_rows[0], r = n - 1, 1
        b = len(batch.pieces) + 1
        return StepInput(
            tokens=self._tokens[:n],
            positions=self._positions[:n],
            seq_indptr=self._seq_indptr[:b],
            page_indptr=self._page_indptr[:b],
            page_table=self._page_table[:p],
            logit_rows=self._logit_rows[:r],
        )
