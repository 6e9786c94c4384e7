"""The scheduler: which tokens of which sequences run next.

In: sequences, in order of arrival. Out: batches. The policy, in the order of `next_batch`:

1. every running sequence that decodes gets its token; when pages run out, the youngest running
   sequence is preempted: it gives back its pages and waits, and later recomputes its cache;
2. what is left of the step's tokens goes to prompts being prefilled, oldest first, in chunks;
3. waiting sequences are admitted, first come first served, while there are pages for all their
   tokens and one spare page for each running sequence to grow into.

A sequence gets the pages of its whole prompt on admission, so only decoding can run out, and the
oldest sequence can always go on: nothing starves. Decisions only: no device, no clock, no text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from sterna.engine.batch import Batch, Piece, piece_of
from sterna.engine.limits import Limits
from sterna.engine.pages import Pages
from sterna.engine.request import Phase, Sequence


class Scheduler:
    """Owns the queues and the pages. The caller runs each batch, then calls `complete`."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.pages = Pages(limits.num_pages)
        self.waiting: deque[Sequence] = deque()  # by arrival
        self.running: list[Sequence] = []  # by arrival
        self.preemptions = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence; the caller has checked that it fits the window."""
        assert 0 < len(sequence.tokens) <= self.limits.window, "a sequence outside the window"
        self.waiting.append(sequence)

    def finish(self, sequence: Sequence) -> None:
        """Forget a sequence in whatever phase it is and return its pages."""
        if sequence.phase is Phase.RUNNING:
            self.running.remove(sequence)
        elif sequence.phase is Phase.WAITING:
            self.waiting.remove(sequence)
        self._release(sequence, Phase.FINISHED)

    def next_batch(self) -> Batch | None:
        """Decide the next step; None when there is nothing to do."""
        pieces = list(self._decodes())
        budget = self.limits.chunk - len(pieces)
        for piece in self._prefills(budget):
            pieces.append(piece)
            budget -= piece.count
        while budget > 0 and self._can_admit():
            pieces.append(piece_of(self._admit(), budget))
            budget -= pieces[-1].count
        return Batch(tuple(pieces)) if pieces else None

    def complete(self, batch: Batch) -> None:
        """Note that the batch ran: its tokens are in the cache."""
        for piece in batch.pieces:
            piece.sequence.cached += piece.count

    def check(self) -> None:
        """Assert every invariant of the queues and the pages."""
        self.pages.check(sequence.pages for sequence in self.running)
        assert len(self.running) <= self.limits.max_sequences, "too many sequences run"
        for queue in (self.waiting, self.running):
            numbers = [sequence.number for sequence in queue]
            assert numbers == sorted(set(numbers)), f"out of order: {numbers}"
        for sequence in self.waiting:
            assert sequence.phase is Phase.WAITING, "a waiting sequence in another phase"
            assert not sequence.pages, "a waiting sequence holds pages"
            assert sequence.cached == 0, "a waiting sequence has tokens in the cache"
        for sequence in self.running:
            assert sequence.phase is Phase.RUNNING, "a running sequence in another phase"
            held = len(sequence.pages) * self.limits.page_size
            assert sequence.cached <= held, "cached tokens without pages"
            assert sequence.pending > 0, "a running sequence with nothing to do"

    def _decodes(self) -> Iterator[Piece]:
        # In order of arrival, so whom a sequence preempts has not yet been put into the batch.
        for sequence in [s for s in self.running if s.pending == 1]:
            if sequence.phase is Phase.RUNNING and self._grow(sequence):
                yield piece_of(sequence, 1)

    def _prefills(self, budget: int) -> Iterator[Piece]:
        for sequence in self.running:
            if sequence.pending > 1 and budget > 0:
                piece = piece_of(sequence, budget)
                budget -= piece.count
                yield piece

    def _grow(self, sequence: Sequence) -> bool:
        """Make sure the next token has a page; False if that cost the sequence itself."""
        if self._pages_for(sequence) <= len(sequence.pages):
            return True
        while self.pages.available == 0:
            youngest = self.running[-1]
            self._preempt(youngest)
            if youngest is sequence:
                return False
        sequence.pages += self.pages.allocate(1)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._release(sequence, Phase.WAITING)
        self.waiting.appendleft(sequence)  # it is older than all that wait
        self.preemptions += 1

    def _release(self, sequence: Sequence, phase: Phase) -> None:
        self.pages.free(sequence.pages)
        sequence.pages, sequence.cached, sequence.phase = [], 0, phase

    def _can_admit(self) -> bool:
        if not self.waiting or len(self.running) >= self.limits.max_sequences:
            return False
        sequence = self.waiting[0]
        leader = sequence.leader
        if leader is not None and leader.phase is Phase.RUNNING and _prefilling(leader):
            return False  # soon the prompt can be shared instead of computed again
        wanted = self._pages_for(sequence) - len(self._shareable(sequence))
        return wanted + len(self.running) <= self.pages.available

    def _admit(self) -> Sequence:
        sequence = self.waiting.popleft()
        sequence.pages = self.pages.fork(self._shareable(sequence))
        sequence.cached = len(sequence.pages) * self.limits.page_size
        missing = self._pages_for(sequence) - len(sequence.pages)
        sequence.pages += self.pages.allocate(missing)
        sequence.phase = Phase.RUNNING
        self.running.append(sequence)
        return sequence

    def _shareable(self, sequence: Sequence) -> list[int]:
        """The leader's pages that hold only prompt. One prompt token stays to be computed."""
        leader = sequence.leader
        if leader is None or leader.phase is not Phase.RUNNING:
            return []
        tokens = min(leader.cached, sequence.prompt_length - 1)
        return leader.pages[: tokens // self.limits.page_size]

    def _pages_for(self, sequence: Sequence) -> int:
        return -(-len(sequence.tokens) // self.limits.page_size)


def _prefilling(sequence: Sequence) -> bool:
    return sequence.cached < sequence.prompt_length
