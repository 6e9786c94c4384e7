"""The scheduler: which tokens of which sequences run next.

In: sequences, in order of arrival. Out: batches. The policy, in the order of `next_batch`:

1. every running sequence that decodes gets its token; when pages run out, first the prefix cache
   gives up what nobody uses, then the youngest running sequence is preempted: it gives back its
   pages and waits, and later recomputes what the prefix cache has not kept;
2. guesses at following tokens are verified with them, where rows and pages are left;
3. what is left of the step's tokens goes to prompts being prefilled, oldest first, in chunks;
4. waiting sequences are admitted, first come first served, while there are pages for all their
   tokens and one spare page for each running sequence to grow into. One that does not fit may be
   overtaken by others PATIENCE times; then all wait for it.

With prefill_mode chunked, decodes (1, 2) and prompts (3, 4) take turns instead of sharing steps.

A sequence gets the pages of its whole prompt on admission, so only decoding can run out, and the
oldest sequence can always go on: nothing starves. Decisions only: no device, no clock, no text.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from sterna.engine.batch import Batch, Piece, piece_of
from sterna.engine.limits import Limits
from sterna.engine.options import PrefillMode
from sterna.engine.pages import Pages
from sterna.engine.prefix import Match, PrefixTree
from sterna.engine.request import GONE, Phase, Sequence

PATIENCE = 16  # times a sequence that does not fit is overtaken
_LOOK_AHEAD = 8  # sequences that do not fit, looked at in one step

_NOTHING = Match((), None, 0)


@dataclass(slots=True)
class Tally:
    """Totals since the start. Tokens are counted when a sequence is admitted."""

    preemptions: int = 0
    admitted_tokens: int = 0
    reused_tokens: int = 0  # of these, found in the prefix cache
    copied_pages: int = 0


class Scheduler:
    """Owns the queues, the pages and the prefix cache.

    The caller copies pages and runs each batch, then calls `complete`, and `accept` for guesses
    that were right.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.pages = Pages(limits.num_pages)
        self._slots = list(range(limits.max_sequences))[::-1]  # free ones; see Sequence.slot
        self.prefix = PrefixTree(self.pages, limits.page_size)
        self.waiting: list[Sequence] = []  # by arrival
        self.running: list[Sequence] = []  # by arrival
        self.tally = Tally()
        self._copies: list[tuple[int, int]] = []  # of the batch that is being made or runs
        self._prompts_turn = True  # in prefill mode chunked

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
        self._secure_pages()
        if self.limits.prefill_mode is PrefillMode.HYBRID:
            decodes = self._decodes()
            pieces = [*decodes, *self._prompts(decodes)]
        elif self._prompts_turn:
            pieces = list(self._prompts([])) or self._decodes()
        else:
            pieces = self._decodes() or list(self._prompts([]))
        if not pieces:
            return None
        self._prompts_turn = all(piece.count == 1 for piece in pieces)
        return Batch(tuple(pieces), tuple(self._copies))

    def complete(self, batch: Batch) -> None:
        """Note that the batch ran: its tokens, guesses aside, are in the cache."""
        self.pages.free(source for source, _ in self._copies)
        self._copies.clear()
        for piece in batch.pieces:
            self._extend(piece.sequence, piece.count)

    def accept(self, sequence: Sequence, count: int) -> None:
        """Note that the first `count` guesses of the last batch are the sequence's tokens."""
        self._extend(sequence, count)

    def check(self) -> None:
        """Assert every invariant of the queues, the pages and the prefix cache."""
        tables = [_held(sequence) for sequence in self.running]
        tables.append([source for source, _ in self._copies])
        self.pages.check(tables, (node.page for node in self.prefix.nodes()))
        self.prefix.check()
        assert len(self.running) <= self.limits.max_sequences, "too many sequences run"
        slots = sorted([*self._slots, *(sequence.slot for sequence in self.running)])
        assert slots == list(range(self.limits.max_sequences)), f"slots: {slots}"
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
            self._check_published(sequence)

    def _secure_pages(self) -> None:
        """Pages for every token of those that run, the oldest first; the youngest pay."""
        size = self.limits.page_size
        for sequence in [s for s in self.running if len(s.tokens) > len(s.pages) * size]:
            while sequence.phase is Phase.RUNNING and (
                len(sequence.tokens) > len(sequence.pages) * size
            ):
                page = self._take(1)
                if page is None:
                    self._preempt(self.running[-1])
                else:
                    sequence.pages += page

    def _decodes(self) -> list[Piece]:
        decoding = [s for s in self.running if len(s.tokens) - s.cached == 1]
        pieces = [Piece(s, 1, True) for s in decoding]
        return self._with_drafts(pieces) if any(s.draft for s in decoding) else pieces

    def _with_drafts(self, pieces: list[Piece]) -> list[Piece]:
        """Let each piece verify as many guesses, while rows, tokens and pages are left."""
        waits = (len(self.running) - len(pieces)) + bool(self.waiting)
        spare = min(self.limits.rows, self.limits.chunk) - len(pieces) - waits
        share = max(1, spare // len(pieces))
        drafted = []
        for piece in pieces:
            count = self._reach(piece.sequence, max(0, min(share, spare)))
            spare -= count
            drafted.append(replace(piece, draft=tuple(piece.sequence.draft[:count])))
        return drafted

    def _reach(self, sequence: Sequence, most: int) -> int:
        """How many guesses have a page and a place in the window."""
        length, size = len(sequence.tokens), self.limits.page_size
        count = min(len(sequence.draft), most, self.limits.window - length)
        while length + count > len(sequence.pages) * size:
            page = self._take(1)
            if page is None:
                return max(0, len(sequence.pages) * size - length)
            sequence.pages += page
        return count

    def _prompts(self, decodes: list[Piece]) -> Iterator[Piece]:
        """Chunks of prompts, running ones first, then of those admitted now."""
        guesses = sum(len(piece.draft) for piece in decodes)
        tokens = self.limits.chunk - len(decodes) - guesses
        rows = self.limits.rows - len(decodes) - guesses
        sequences = self._to_prefill()
        while tokens > 0 and rows > 0 and (sequence := next(sequences, None)) is not None:
            piece = piece_of(sequence, tokens)
            tokens, rows = tokens - piece.count, rows - 1
            yield piece

    def _to_prefill(self) -> Iterator[Sequence]:
        yield from [s for s in self.running if len(s.tokens) - s.cached > 1]
        passed: list[Sequence] = []
        for sequence in list(islice(self.waiting, self.limits.max_sequences + _LOOK_AHEAD)):
            if len(self.running) >= self.limits.max_sequences or len(passed) >= _LOOK_AHEAD:
                return
            if self._admit(sequence):
                for other in passed:
                    other.overtaken += 1
                yield sequence
            elif sequence.overtaken >= PATIENCE:
                return
            else:
                passed.append(sequence)

    def _take(self, count: int) -> list[int] | None:
        """Free pages, or else such as the prefix cache gives up; None: there are not so many."""
        missing = count - self.pages.available
        if missing > 0 and self.prefix.evict(missing) < missing:
            return None
        return self.pages.allocate(count)

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._release(sequence, Phase.WAITING)
        insort(self.waiting, sequence, key=lambda s: s.number)
        self.tally.preemptions += 1

    def _release(self, sequence: Sequence, phase: Phase) -> None:
        self._publish_rest(sequence)
        self.pages.free(_held(sequence))
        sequence.pages, sequence.node = [], None
        sequence.cached = sequence.published = 0
        if sequence.phase is Phase.RUNNING:
            self._slots.append(sequence.slot)
            sequence.slot = -1
        sequence.phase = phase

    def _admit(self, sequence: Sequence) -> bool:
        """Start a waiting sequence on what is cached of it, if there is room for the rest."""
        match = self._match(sequence)
        if self._is_coming(sequence, match):
            return False  # soon a page of it can be shared instead of computed again
        if not self._fits(sequence, match):
            match = replace(match, partial=None, shared=0)
            if not self._fits(sequence, match):
                return False
        shared = self.pages.fork(node.page for node in match.nodes)
        source = self.pages.fork([match.partial.page] if match.partial else [])
        rest = self._take(self._pages_for(sequence) - len(shared))
        if rest is None:
            self.pages.free([*shared, *source])
            return False
        self._copies += zip(source, rest)
        self._begin(sequence, match, [*shared, *rest])
        return True

    def _begin(self, sequence: Sequence, match: Match, pages: list[int]) -> None:
        nodes = match.nodes
        self.prefix.use(nodes if match.partial is None else (*nodes, match.partial))
        sequence.pages, sequence.phase = pages, Phase.RUNNING
        sequence.slot = self._slots.pop()
        sequence.cached = len(nodes) * self.limits.page_size + match.shared
        root = self.prefix.root_of(sequence.adapter)
        sequence.node = (nodes[-1] if nodes else root) if self._caches else None
        sequence.published = len(nodes)
        if sequence.reused is None:
            sequence.reused = min(sequence.cached, sequence.prompt_length)
        self.tally.admitted_tokens += len(sequence.tokens)
        self.tally.reused_tokens += sequence.cached
        self.tally.copied_pages += match.partial is not None
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=lambda s: s.number)

    @property
    def _caches(self) -> bool:
        return self.limits.prefix_cache

    def _match(self, sequence: Sequence) -> Match:
        """What is cached of a sequence. One token stays to be computed, for its logits."""
        if not self._caches:
            return _NOTHING
        return self.prefix.match(sequence.spelled, len(sequence.tokens) - 1, sequence.adapter)

    def _is_coming(self, sequence: Sequence, match: Match) -> bool:
        """Whether a prompt being prefilled will fill the next page of this sequence too."""
        end = (len(match.nodes) + 1) * self.limits.page_size
        if not self._caches or end >= len(sequence.tokens):
            return False
        return any(
            len(other.tokens) - other.cached > 1
            and other.node is not None
            and other.adapter == sequence.adapter
            and other.cached < end <= len(other.tokens)
            and other.spelled[:end] == sequence.spelled[:end]
            for other in self.running
        )

    def _fits(self, sequence: Sequence, match: Match) -> bool:
        found = [node.page for node in match.nodes]
        found += [match.partial.page] if match.partial else []
        idle = sum(not self.pages.owned(page) for page in found)
        wanted = self._pages_for(sequence) - len(match.nodes)
        growing = 0 if self.limits.recurrent else len(self.running)
        return wanted + growing <= self.pages.available + self.pages.idle - idle

    def _pages_for(self, sequence: Sequence) -> int:
        return -(-len(sequence.tokens) // self.limits.page_size)

    def _extend(self, sequence: Sequence, count: int) -> None:
        """`count` more of the sequence's tokens are in the cache: publish and give back pages."""
        before = sequence.cached
        sequence.cached = after = before + count
        if sequence.node is not None:
            if after // self.limits.page_size > sequence.published:
                self._publish(sequence)
            if before < sequence.prompt_length <= after:
                self._publish_rest(sequence)
        if self.limits.sliding is not None:
            self._give_back(sequence, self.limits.sliding)

    def _publish(self, sequence: Sequence) -> None:
        """Put the pages that became full into the prefix cache."""
        size = self.limits.page_size
        while sequence.published < sequence.cached // size:
            assert sequence.node is not None, "it publishes"
            at = sequence.published
            tokens = tuple(sequence.spelled[at * size : (at + 1) * size])
            own = sequence.pages[at]
            node = self.prefix.insert(sequence.node, tokens, own)
            assert node is not None, "a full page is always put into the cache"
            if node.page != own:  # another sequence computed the same at the same time
                sequence.pages[at : at + 1] = self.pages.fork([node.page])
                self.pages.free([own])
            sequence.node = node
            sequence.published += 1

    def _publish_rest(self, sequence: Sequence) -> None:
        """Let others copy what is written of the last page, by which this one may go on."""
        if sequence.node is None:
            return
        at = sequence.published
        rest = tuple(sequence.spelled[at * self.limits.page_size : sequence.cached])
        if rest:
            self.prefix.insert(sequence.node, rest, sequence.pages[at])
        self.prefix.use(sequence.node.path())

    def _give_back(self, sequence: Sequence, sliding: int) -> None:
        """Free the pages of which no later token sees anything; sinks stay.

        From then on the sequence publishes nothing: its beginning is in pieces.
        """
        size = self.limits.page_size
        first = -(-self.limits.sinks // size)
        gone = (sequence.cached - sliding + 1) // size  # pages whose last token is out of sight
        at = gone - 1
        while at >= first and sequence.pages[at] != GONE:
            self.pages.free([sequence.pages[at]])
            sequence.pages[at], sequence.node = GONE, None
            at -= 1

    def _check_published(self, sequence: Sequence) -> None:
        if sequence.node is None:
            return
        path = sequence.node.path()
        assert [node.page for node in path] == sequence.pages[: len(path)], "published pages"
        assert len(path) == sequence.published, "published pages are miscounted"
        spelled = [token for node in path for token in node.tokens]
        assert spelled == sequence.spelled[: len(spelled)], "published tokens"


def _held(sequence: Sequence) -> list[int]:
    return [page for page in sequence.pages if page != GONE]
