"""A second, smaller model that guesses what the first one will say; see `speculative`.

It has its own KV cache, in which each sequence lies as far as the draft model has read it. What
it guessed wrong is simply written over. When its pages run out it guesses for fewer sequences.
"""

from __future__ import annotations

from collections.abc import Sequence as Listed
from dataclasses import dataclass, field, replace

from sterna.engine.batch import Batch, StepArrays, piece_of
from sterna.engine.generation import Answer
from sterna.engine.limits import Limits
from sterna.engine.pages import Pages
from sterna.engine.request import Sequence
from sterna.engine.sampler import SampleInputs, Wanted
from sterna.runtime.executable import Executable
from sterna.runtime.sampling import NONE


@dataclass(slots=True)
class _Reader:
    """An answer as the draft model sees it: its own tokens and pages."""

    answer: Answer
    mirror: Sequence
    guesses: list[int] = field(default_factory=list)

    @property
    def ready(self) -> bool:
        """The model has read all there is, and so has guessed."""
        return self.mirror.pending == 1 and bool(self.guesses)


class DraftModel:
    """A Source of guesses. `limits` are those of its own cache; ids end at `vocabulary`."""

    def __init__(self, executable: Executable, limits: Limits, vocabulary: int) -> None:
        self._executable = executable
        self._limits = limits
        self._inputs = SampleInputs(vocabulary, executable.manifest.model.vocab_size)
        self._arrays = StepArrays(limits)
        self._pages = Pages(limits.num_pages)
        self._mirrors: dict[int, Sequence] = {}

    def guess(self, answers: Listed[Answer], most: int) -> list[list[int]]:
        """Read what is new, then go on alone, as one batch for all."""
        readers = [_Reader(answer, self._synchronized(answer.sequence)) for answer in answers]
        behind = [reader for reader in readers if self._has_room(reader.mirror, most)]
        self._step(behind[: self._limits.max_sequences])
        for _ in range(most - 1):
            going = [reader for reader in readers if reader.ready]
            if not going:
                break
            self._step(going)
        return [reader.guesses for reader in readers]

    def forget(self, sequence: Sequence) -> None:
        mirror = self._mirrors.pop(sequence.number, None)
        if mirror is not None:
            self._pages.free(mirror.pages)

    def close(self) -> None:
        self._executable.close()

    def _synchronized(self, sequence: Sequence) -> Sequence:
        """The sequence's mirror with its tokens; what was guessed wrong is no longer cached."""
        mirror = self._mirrors.get(sequence.number)
        if mirror is None:
            mirror = Sequence(sequence.number, [], sequence.prompt_length)
            self._mirrors[sequence.number] = mirror
        tokens, read = sequence.tokens, mirror.tokens
        at = min(mirror.cached, len(tokens) - 1)
        while at > 0 and read[:at] != tokens[:at]:
            at -= 1
        mirror.cached = at
        mirror.tokens = list(tokens)
        return mirror

    def _has_room(self, mirror: Sequence, most: int) -> bool:
        """Pages for all its tokens and the guesses but the last, which is never read."""
        length = len(mirror.tokens) + most - 1
        missing = -(-length // self._limits.page_size) - len(mirror.pages)
        if length > self._limits.window or missing > self._pages.available:
            return False
        mirror.pages += self._pages.allocate(max(0, missing))
        return True

    def _step(self, readers: list[_Reader]) -> None:
        """Run what pends of these, as much as fits; who has read all guesses a token."""
        pieces, taking, budget, rows = [], [], self._limits.chunk, self._limits.rows
        for reader in readers:
            if budget and rows:
                pieces.append(piece_of(reader.mirror, budget))
                taking.append(reader)
                budget, rows = budget - pieces[-1].count, rows - 1
        if not pieces:
            return
        self._executable.run(self._arrays.fill(Batch(tuple(pieces))))
        for reader, piece in zip(taking, pieces):
            reader.mirror.cached += piece.count
        done = [reader for reader, piece in zip(taking, pieces) if piece.last]
        if done:
            self._take(done)

    def _take(self, readers: list[_Reader]) -> None:
        """Sample as the engine will, with the same random number: so the guess is often right."""
        wanted = [self._wanted(row, reader) for row, reader in enumerate(readers)]
        tokens = self._executable.sample(self._inputs.of(wanted))
        for reader, token in zip(readers, tokens.tolist()):
            if token != NONE:  # no number, no guess: only the model proper's logits decide
                reader.mirror.tokens.append(token)
                reader.guesses.append(token)

    def _wanted(self, row: int, reader: _Reader) -> Wanted:
        history = replace(reader.answer.history, tokens=reader.mirror.tokens)
        return Wanted(row, reader.answer.orders, history)
