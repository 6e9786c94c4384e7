"""Speculative decoding: guesses at the next tokens, to be verified by the model in one step.

A `Source` guesses; the `Speculator` decides for whom, and stops where it does not pay. A guess is
right if it is the token that the engine samples from the model's own logits at its place, with
the random number of that place: so answers are those of plain decoding, token for token, greedy
or sampled. Only speed depends on the guesses. Runs on the engine's thread.

Sources: Leviathan et al. 2023 (arXiv:2211.17192); prompt lookup: Saxena 2023,
https://github.com/apoorvumang/prompt-lookup-decoding.
"""

from __future__ import annotations

from collections.abc import Sequence as Listed
from dataclasses import dataclass, field
from typing import Protocol

from sterna.engine.batch import Batch
from sterna.engine.generation import Answer
from sterna.engine.request import Sequence

NGRAMS = (4, 3, 2)  # lengths of the endings looked up, the longest first
_TRIAL = 6  # verified guesses before a request's speculation is judged
_FIRST_PAUSE = 32  # tokens without guesses after a bad judgement; doubles each time
_WEIGHT = 0.2  # of what is new in a running mean
_LEAST_COST = 1.05  # of a step with guesses, in steps without: what it takes to pay at least


class Source(Protocol):
    """Where guesses come from."""

    def guess(self, answers: Listed[Answer], most: int) -> list[list[int]]:
        """For each answer up to `most` tokens that may follow those it has."""
        ...

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended."""
        ...

    def close(self) -> None: ...


@dataclass(slots=True)
class _Record:
    """How speculation went for one sequence."""

    trials: int = 0
    gain: float = 0.0  # running mean of right guesses in a step
    resume: int = 0  # tokens the sequence must have before it is tried again
    pause: int = _FIRST_PAUSE


@dataclass(slots=True)
class _Mean:
    """A running mean; the first values count as much as later ones."""

    value: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        self.count += 1
        self.value += (value - self.value) * max(_WEIGHT, 1 / self.count)


@dataclass(slots=True)
class Speculator:
    """Asks `source` for up to `most` guesses a sequence, for those for whom it pays."""

    source: Source
    most: int
    pauses: int = 0  # times that it was switched off for a sequence
    _records: dict[int, _Record] = field(default_factory=dict)
    _plain: _Mean = field(default_factory=_Mean)  # seconds of steps without guesses
    _guessed: _Mean = field(default_factory=_Mean)  # and with guesses, their making included

    def propose(self, answers: Listed[Answer]) -> None:
        """Put guesses into the `draft` of sequences that decode."""
        tried = [answer for answer in answers if self._pays(answer.sequence)]
        if tried:
            for answer, guesses in zip(tried, self.source.guess(tried, self.most), strict=True):
                answer.sequence.draft = guesses

    def learn(self, sequence: Sequence, right: int) -> None:
        """Note how many of a sequence's guesses were right in a step."""
        record = self._records.setdefault(sequence.number, _Record())
        record.trials += 1
        record.gain += (right - record.gain) * max(_WEIGHT, 1 / record.trials)
        if record.trials >= _TRIAL and 1 + record.gain < self.cost:
            record.resume = len(sequence.tokens) + record.pause
            record.trials, record.gain, record.pause = 0, 0.0, 2 * record.pause
            self.pauses += 1

    def time(self, batch: Batch, seconds: float) -> None:
        """Note how long a step took, the making of its guesses included."""
        if all(piece.count == 1 for piece in batch.pieces):
            (self._guessed if batch.draft_tokens else self._plain).add(seconds)

    @property
    def cost(self) -> float:
        """How many steps without guesses a step with guesses takes."""
        if not self._plain.count or not self._guessed.count:
            return _LEAST_COST
        return max(_LEAST_COST, self._guessed.value / self._plain.value)

    def forget(self, sequence: Sequence) -> None:
        self._records.pop(sequence.number, None)
        self.source.forget(sequence)

    def _pays(self, sequence: Sequence) -> bool:
        record = self._records.get(sequence.number)
        return record is None or len(sequence.tokens) >= record.resume


@dataclass(slots=True)
class _Endings:
    """Where each n-gram of a sequence last ended, and where its present ending did before."""

    read: int = 0
    last: dict[tuple[int, ...], int] = field(default_factory=dict)
    before: dict[int, int] = field(default_factory=dict)  # by length of the n-gram

    def take(self, tokens: list[int]) -> None:
        """Read the tokens that are new."""
        for end in range(self.read + 1, len(tokens) + 1):
            self.before.clear()
            for n in NGRAMS:
                if n <= end:
                    key = tuple(tokens[end - n : end])
                    if (found := self.last.get(key)) is not None:
                        self.before[n] = found
                    self.last[key] = end
        self.read = len(tokens)


class NGramLookup:
    """Guesses that what followed the same few tokens before, in prompt or answer, follows again."""

    def __init__(self) -> None:
        self._endings: dict[int, _Endings] = {}

    def guess(self, answers: Listed[Answer], most: int) -> list[list[int]]:
        return [self._continue(answer.sequence, most) for answer in answers]

    def forget(self, sequence: Sequence) -> None:
        self._endings.pop(sequence.number, None)

    def close(self) -> None:
        """Nothing to free."""

    def _continue(self, sequence: Sequence, most: int) -> list[int]:
        endings = self._endings.setdefault(sequence.number, _Endings())
        endings.take(sequence.tokens)
        for n in NGRAMS:
            if (at := endings.before.get(n)) is not None:
                return _repeated(sequence.tokens, at, most)
        return []


def _repeated(tokens: list[int], at: int, count: int) -> list[int]:
    """What follows position `at`; past the end it goes on with itself, as a loop does."""
    period = len(tokens) - at
    return [tokens[at + i % period] for i in range(count)]
