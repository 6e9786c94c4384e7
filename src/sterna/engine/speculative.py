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
_HOPE = 0.9  # how likely a guess is taken to be right, before a sequence is judged
_TRIAL = 3  # steps with guesses before it is
_FIRST_PAUSE = 32  # tokens without guesses where none pays; doubles each time
_WEIGHT = 0.15  # of what is new in a running mean


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
    """How speculation goes for one sequence."""

    chance: float = 0.0  # running mean of guesses that were right
    outcomes: int = 0  # how many guesses it is of
    trials: int = 0  # steps with guesses since the last pause
    resume: int = 0  # tokens the sequence must have before guesses are tried again
    pause: int = _FIRST_PAUSE


@dataclass(slots=True)
class Speculator:
    """Asks `source` for guesses, as many for each sequence as pay, `most` at most.

    A step of n tokens takes as long as such steps took so far. So many guesses are made as give the
    most tokens a second, if each is right as often as the sequence's were of late.
    """

    source: Source
    most: int
    pauses: int = 0  # times that it was switched off for a sequence
    _records: dict[int, _Record] = field(default_factory=dict)
    # Running means of a step's seconds, guessing included, by its sequences and then its tokens.
    _seconds: dict[int, dict[int, float]] = field(default_factory=dict)

    def propose(self, answers: Listed[Answer]) -> None:
        """Put guesses into the `draft` of sequences that decode."""
        lengths = [self._length(answer.sequence, len(answers)) for answer in answers]
        tried = [(answer, length) for answer, length in zip(answers, lengths) if length]
        if tried:
            longest = max(length for _, length in tried)
            guesses = self.source.guess([answer for answer, _ in tried], longest)
            for (answer, length), found in zip(tried, guesses, strict=True):
                answer.sequence.draft = found[:length]

    def learn(self, sequence: Sequence, guesses: int, right: int) -> None:
        """Note how many of a sequence's guesses were right in a step."""
        record = self._records.setdefault(sequence.number, _Record())
        record.trials += 1
        for outcome in [1.0] * right + [0.0] * (right < guesses):
            record.outcomes += 1
            record.chance += (outcome - record.chance) * max(_WEIGHT, 1 / record.outcomes)

    def time(self, batch: Batch, seconds: float) -> None:
        """Note how long a step took, the making of its guesses included."""
        if all(piece.count == 1 for piece in batch.pieces):
            known = self._seconds.setdefault(len(batch.pieces), {})
            tokens = len(batch.pieces) + batch.draft_tokens
            before = known.setdefault(tokens, seconds)
            known[tokens] = before + (seconds - before) * _WEIGHT

    def cost(self, sequences: int, tokens: int) -> float | None:
        """Seconds of a step; of the nearest smaller one where there was none of this size.

        None: no step of these sequences without guesses was measured yet.
        """
        known = self._seconds.get(sequences, {})
        if sequences not in known:
            return None
        return known[max(size for size in known if size <= tokens)]

    def forget(self, sequence: Sequence) -> None:
        self._records.pop(sequence.number, None)
        self.source.forget(sequence)

    def _length(self, sequence: Sequence, sequences: int) -> int:
        """How many guesses give the most tokens a second, if all sequences make as many."""
        record = self._records.setdefault(sequence.number, _Record())
        if len(sequence.tokens) < record.resume:
            return 0
        tried = record.trials >= _TRIAL
        rates = self._rates(sequences, record.chance if tried else _HOPE)
        if not rates:
            return 0
        best = max(range(0 if tried else 1, len(rates)), key=rates.__getitem__)
        if best == 0:
            self.pauses += 1
            record.resume = len(sequence.tokens) + record.pause
            record.outcomes = record.trials = 0
            record.pause *= 2
        return best

    def _rates(self, sequences: int, chance: float) -> list[float]:
        """Tokens a second of one sequence, by the number of guesses; empty: not known yet."""
        rates: list[float] = []
        tokens, likely = 0.0, 1.0
        for length in range(self.most + 1):
            cost = self.cost(sequences, sequences * (1 + length))
            if cost is None:
                return []
            tokens, likely = tokens + likely, likely * chance
            rates.append(tokens / cost)
        return rates


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
