"""Ten thousand random operations on pages, prefix tree and scheduler, checked after each one."""

import random

import pytest
from null_model import limits, manifest

from sterna.engine.batch import StepArrays
from sterna.engine.options import PrefillMode
from sterna.engine.request import Sequence
from sterna.engine.scheduler import Scheduler
from sterna.runtime.null import NullExecutable

OPERATIONS = 2500


class Walk:
    """A simple model: a token is a hash of all before it, so what a step gives is known."""

    def __init__(self, seed, prefill_mode, **model):
        self.chance = random.Random(seed)
        self.limits = limits(
            max_sequences=5,
            chunk=11,
            num_pages=23,
            page_size=3,
            window=60,
            rows=8,
            prefill_mode=prefill_mode,
            sliding=model.get("sliding_window_size"),
            sinks=model.get("attention_sink_size", 0),
        )
        self.scheduler = Scheduler(self.limits)
        self.arrays = StepArrays(self.limits)
        self.device = NullExecutable(manifest(page_size=3, **model), 23)
        self.alone = NullExecutable(manifest(page_size=64, **model), 1)
        self.number = self.finished = 0

    def operate(self):
        name = self.chance.choices(("arrive", "cancel", "guess", "step"), (2, 0.5, 1, 7))[0]
        getattr(self, name)()
        self.scheduler.check()

    def arrive(self):
        if len(self.scheduler.waiting) > 12:
            return
        length = self.chance.randrange(1, 50)
        turn = self.chance.randrange(length + 1)
        tokens = [(i * i + (i >= turn)) % 200 for i in range(length)]
        self.scheduler.add(Sequence(self.number, tokens, length))
        self.number += 1

    def cancel(self):
        everyone = [*self.scheduler.running, *self.scheduler.waiting]
        if everyone:
            self.scheduler.finish(self.chance.choice(everyone))

    def guess(self):
        for sequence in self.scheduler.running:
            if sequence.pending == 1:
                right = [self.following(sequence.tokens)] if self.chance.random() < 0.7 else []
                sequence.draft = [*right, *(self.chance.randrange(200) for _ in range(2))]

    def following(self, tokens):
        self.alone._slots[:] = 0
        sequence = Sequence(0, list(tokens), len(tokens))
        one = limits(max_sequences=1, chunk=64, num_pages=1, page_size=64, window=64)
        scheduler = Scheduler(one)
        scheduler.add(sequence)
        return int(self.alone.step(StepArrays(one).fill(scheduler.next_batch()))[0].argmax())

    def step(self):
        batch = self.scheduler.next_batch()
        if batch is None:
            assert not self.scheduler.running
            assert not self.scheduler.waiting
            return
        for copy in batch.copies:
            self.device.copy_page(*copy)
        rows = iter(self.device.step(self.arrays.fill(batch)).argmax(axis=1).tolist())
        self.scheduler.complete(batch)
        for piece in batch.pieces:
            self.advance(piece, [next(rows) for _ in range(piece.rows)])

    def advance(self, piece, tokens):
        sequence = piece.sequence
        sequence.draft = []
        for i, token in enumerate(tokens):
            if self.chance.random() < 0.2:  # one that is wrong spoils all that follow
                assert token == self.following(sequence.tokens)
            sequence.tokens.append(token)
            if i == len(piece.draft) or token != piece.draft[i]:
                self.scheduler.accept(sequence, i)
                break
        if len(sequence.tokens) >= 55 or (tokens and self.chance.random() < 0.05):
            self.scheduler.finish(sequence)
            self.finished += 1


@pytest.mark.parametrize("prefill_mode", PrefillMode)
@pytest.mark.parametrize(
    "model", [{}, {"sliding_window_size": 9, "attention_sink_size": 2}], ids=["all", "sliding"]
)
def test_ten_thousand_operations(prefill_mode, model):
    walk = Walk(7, prefill_mode, **model)
    for _ in range(OPERATIONS):
        walk.operate()
    assert walk.finished > 100
    assert walk.scheduler.tally.preemptions > 10
    assert walk.scheduler.prefix.evicted > 100
    assert walk.scheduler.tally.reused_tokens > 1000
    assert walk.scheduler.tally.copied_pages > 50
    while walk.scheduler.running or walk.scheduler.waiting:
        walk.step()
        walk.scheduler.check()
    walk.scheduler.prefix.clear()
    assert walk.scheduler.pages.available == 23
