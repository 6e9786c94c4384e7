"""The scheduler's policy, and its invariants after every step of random traffic."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from null_model import limits, manifest

from sterna.engine.batch import StepArrays
from sterna.engine.request import Phase, Sequence
from sterna.engine.scheduler import Scheduler
from sterna.runtime.null import NullExecutable


def sequence(number, length, leader=None):
    tokens = [(number + i) % 256 for i in range(length)]
    return Sequence(number, tokens, length, leader)


def run(scheduler, decode=True):
    """One step without a device: every sequence at its end gets a token."""
    batch = scheduler.next_batch()
    if batch is not None:
        scheduler.complete(batch)
        for piece in batch.pieces:
            if piece.last and decode:
                piece.sequence.tokens.append(1)
    scheduler.check()
    return batch


def shape(batch):
    return [(piece.sequence.number, piece.count, piece.last) for piece in batch.pieces]


def test_nothing_to_do():
    assert Scheduler(limits()).next_batch() is None


def test_prompts_and_decodes_share_a_step():
    scheduler = Scheduler(limits(chunk=8))
    scheduler.add(sequence(0, 3))
    assert shape(run(scheduler)) == [(0, 3, True)]
    scheduler.add(sequence(1, 12))
    scheduler.add(sequence(2, 4))
    assert shape(run(scheduler)) == [(0, 1, True), (1, 7, False)]
    assert shape(run(scheduler)) == [(0, 1, True), (1, 5, True), (2, 2, False)]
    assert shape(run(scheduler)) == [(0, 1, True), (1, 1, True), (2, 2, True)]


def test_first_come_first_served_even_when_a_later_one_would_fit():
    scheduler = Scheduler(limits(num_pages=10, page_size=4, window=40, chunk=64))
    scheduler.add(sequence(0, 28))
    scheduler.add(sequence(1, 16))
    scheduler.add(sequence(2, 2))
    assert shape(run(scheduler)) == [(0, 28, True)]
    assert [s.number for s in scheduler.waiting] == [1, 2]


def test_admission_keeps_a_spare_page_for_each_running_sequence():
    scheduler = Scheduler(limits(num_pages=4, page_size=4, window=16))
    scheduler.add(sequence(0, 8))
    scheduler.add(sequence(1, 8))
    assert shape(run(scheduler)) == [(0, 8, True)]


def test_no_more_sequences_than_the_limit():
    scheduler = Scheduler(limits(max_sequences=2))
    for number in range(3):
        scheduler.add(sequence(number, 2))
    assert len(run(scheduler).pieces) == 2


def test_the_youngest_is_preempted_and_resumes_first():
    scheduler = Scheduler(limits(num_pages=4, page_size=2, window=8))
    scheduler.add(sequence(0, 1))
    scheduler.add(sequence(1, 1))
    scheduler.add(sequence(2, 7))
    old, young = scheduler.waiting[0], scheduler.waiting[1]
    while scheduler.preemptions == 0:
        run(scheduler)
    assert young.phase is Phase.WAITING
    assert [s.number for s in scheduler.waiting] == [1, 2]
    assert young.cached == 0
    assert len(young.tokens) > 1  # what it wrote is kept
    scheduler.finish(old)
    assert run(scheduler).pieces[0].sequence is young


def test_answers_to_one_prompt_share_its_full_pages():
    scheduler = Scheduler(limits(chunk=6, page_size=4))
    leader = sequence(0, 11)
    follower = sequence(1, 11, leader)
    scheduler.add(leader)
    scheduler.add(follower)
    assert shape(run(scheduler)) == [(0, 6, False)]
    assert shape(run(scheduler)) == [(0, 5, True)]
    assert shape(run(scheduler)) == [(0, 1, True), (1, 3, True)]
    assert follower.pages[:2] == leader.pages[:2]
    assert follower.pages[2] != leader.pages[2]
    scheduler.finish(leader)
    scheduler.check()


def test_finish_in_every_phase_returns_all_pages():
    scheduler = Scheduler(limits(max_sequences=1))
    running, waiting = sequence(0, 9), sequence(1, 9)
    scheduler.add(running)
    scheduler.add(waiting)
    run(scheduler)
    scheduler.finish(waiting)
    scheduler.finish(running)
    scheduler.check()
    assert scheduler.pages.available == 512
    assert scheduler.next_batch() is None


def test_check_notices_a_lost_page():
    scheduler = Scheduler(limits())
    scheduler.add(sequence(0, 9))
    run(scheduler)
    scheduler.running[0].pages.pop()
    with pytest.raises(AssertionError):
        scheduler.check()


class SchedulerMachine(RuleBasedStateMachine):
    """Random arrivals, cancellations and steps, each step run by the null device.

    The device's logits must be those of a fresh device given the whole sequence at once.
    """

    @initialize(
        num_pages=st.integers(6, 14),
        chunk=st.integers(1, 9),
        sequences=st.integers(1, 4),
        page_size=st.integers(1, 4),
    )
    def start(self, num_pages, chunk, sequences, page_size):
        self.limits = limits(
            max_sequences=min(sequences, chunk),
            chunk=chunk,
            num_pages=num_pages,
            page_size=page_size,
            window=num_pages * page_size,
        )
        self.scheduler = Scheduler(self.limits)
        self.arrays = StepArrays(self.limits)
        self.device = NullExecutable(manifest(page_size=page_size), num_pages)
        self.number = 0

    @rule(data=st.data(), answers=st.integers(1, 3))
    def arrive(self, data, answers):
        length = data.draw(st.integers(1, self.limits.window - 1))
        leader = None
        for _ in range(answers):
            found = sequence(self.number, length, leader)
            found.tokens = [(length * 7 + i) % 256 for i in range(length)]
            leader = leader or found
            self.scheduler.add(found)
            self.number += 1

    @precondition(lambda self: self.scheduler.running or self.scheduler.waiting)
    @rule(data=st.data())
    def cancel(self, data):
        everyone = [*self.scheduler.running, *self.scheduler.waiting]
        self.scheduler.finish(data.draw(st.sampled_from(everyone)))

    @rule(steps=st.integers(1, 6))
    def step(self, steps):
        for _ in range(steps):
            batch = self.scheduler.next_batch()
            if batch is None:
                assert not self.scheduler.running
                assert not self.scheduler.waiting
                return
            assert sum(piece.count for piece in batch.pieces) <= self.limits.chunk
            logits = self.device.step(self.arrays.fill(batch))
            self.scheduler.complete(batch)
            self.advance([piece.sequence for piece in batch.pieces if piece.last], logits)
            self.scheduler.check()

    def advance(self, ready, logits):
        for found, row in zip(ready, logits):
            assert (row == whole(found.tokens)).all()
            found.tokens.append(int(row[:256].argmax()))
            if len(found.tokens) >= self.limits.window:
                self.scheduler.finish(found)

    @invariant()
    def consistent(self):
        if hasattr(self, "scheduler"):
            self.scheduler.check()

    def teardown(self):
        """Whatever is left comes to an end, and every page returns."""
        if not hasattr(self, "scheduler"):
            return
        for _ in range(20_000):
            if not self.scheduler.running and not self.scheduler.waiting:
                break
            self.step(1)
        assert self.scheduler.pages.available == self.limits.num_pages


def whole(tokens):
    """Logits after `tokens`, computed in one step by a device that never saw anything else."""
    one = limits(max_sequences=1, chunk=256, num_pages=64)
    scheduler = Scheduler(one)
    scheduler.add(Sequence(0, list(tokens), len(tokens)))
    return NullExecutable(manifest(), 64).step(StepArrays(one).fill(scheduler.next_batch()))[0]


SchedulerMachine.TestCase.settings = settings(
    max_examples=25, stateful_step_count=15, deadline=None, derandomize=True
)
TestScheduler = SchedulerMachine.TestCase
