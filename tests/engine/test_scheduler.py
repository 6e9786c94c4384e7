"""The scheduler's policy, and its invariants after every step of random traffic."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from null_model import limits, manifest

from sterna.engine.batch import StepArrays
from sterna.engine.options import PrefillMode
from sterna.engine.request import GONE, Phase, Sequence
from sterna.engine.scheduler import PATIENCE, Scheduler
from sterna.runtime.null import NullExecutable


def sequence(number, length, start=None):
    start = number * 31 if start is None else start
    return Sequence(number, [(start + i) % 256 for i in range(length)], length)


def run(scheduler):
    """One step without a device: every sequence at its end gets a token."""
    batch = scheduler.next_batch()
    if batch is not None:
        scheduler.complete(batch)
        for piece in batch.pieces:
            if piece.last:
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


def test_one_that_does_not_fit_is_overtaken_a_bounded_number_of_times():
    scheduler = Scheduler(limits(num_pages=10, page_size=4, window=40, chunk=64))
    old, large = sequence(0, 12), sequence(1, 36)
    scheduler.add(old)
    scheduler.add(large)
    run(scheduler)
    for number in range(2, PATIENCE + 2):
        small = sequence(number, 2)
        scheduler.add(small)
        assert shape(run(scheduler)) == [(0, 1, True), (number, 2, True)]
        scheduler.finish(small)
    assert large.overtaken == PATIENCE
    scheduler.add(sequence(99, 2))
    assert shape(run(scheduler)) == [(0, 1, True)]
    scheduler.finish(old)
    assert shape(run(scheduler)) == [(1, 36, True)]


def test_first_come_first_served_where_there_is_room():
    scheduler = Scheduler(limits(chunk=5))
    for number in range(3):
        scheduler.add(sequence(number, 4))
    assert shape(run(scheduler)) == [(0, 4, True), (1, 1, False)]
    assert [s.number for s in scheduler.waiting] == [2]


def test_chunked_prompts_and_decodes_take_turns():
    scheduler = Scheduler(limits(chunk=8, prefill_mode=PrefillMode.CHUNKED))
    scheduler.add(sequence(0, 3))
    assert shape(run(scheduler)) == [(0, 3, True)]
    scheduler.add(sequence(1, 20))
    assert [shape(run(scheduler)) for _ in range(6)] == [
        [(0, 1, True)],
        [(1, 8, False)],
        [(0, 1, True)],
        [(1, 8, False)],
        [(0, 1, True)],
        [(1, 4, True)],
    ]
    assert shape(run(scheduler)) == [(0, 1, True), (1, 1, True)]


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
    while scheduler.tally.preemptions == 0:
        run(scheduler)
    assert young.phase is Phase.WAITING
    assert [s.number for s in scheduler.waiting] == [1, 2]
    assert young.cached == 0
    assert len(young.tokens) > 1  # what it wrote is kept
    scheduler.finish(old)
    assert run(scheduler).pieces[0].sequence is young


def test_a_prompt_waits_for_one_that_computes_its_beginning():
    scheduler = Scheduler(limits(chunk=6, page_size=4))
    first, second = sequence(0, 11, 0), sequence(1, 11, 0)
    scheduler.add(first)
    scheduler.add(second)
    assert shape(run(scheduler)) == [(0, 6, False)]
    assert shape(run(scheduler)) == [(0, 5, True)]
    batch = run(scheduler)
    assert shape(batch) == [(0, 1, True), (1, 1, True)]
    assert batch.copies == ((first.pages[2], second.pages[2]),)
    assert second.pages[:2] == first.pages[:2]
    assert (first.reused, second.reused) == (0, 10)
    scheduler.finish(first)
    scheduler.check()


def test_a_finished_sequence_leaves_its_pages_to_the_next():
    scheduler = Scheduler(limits(page_size=4))
    first, second = sequence(0, 11, 0), sequence(1, 14, 0)
    scheduler.add(first)
    run(scheduler)
    scheduler.finish(first)
    scheduler.add(second)
    assert shape(run(scheduler)) == [(1, 3, True)]
    assert second.reused == 11
    assert scheduler.tally.reused_tokens == 11


def test_without_a_prefix_cache_nothing_is_kept():
    scheduler = Scheduler(limits(page_size=4, prefix_cache=False))
    for number in range(2):
        scheduler.add(sequence(number, 9, 0))
    assert shape(run(scheduler)) == [(0, 9, True), (1, 9, True)]
    for found in [*scheduler.running]:
        scheduler.finish(found)
    assert scheduler.pages.available == 512


def test_kept_pages_give_way_to_running_sequences():
    scheduler = Scheduler(limits(num_pages=4, page_size=4, window=16))
    for number in range(5):
        found = sequence(number, 13, number * 50)
        scheduler.add(found)
        assert shape(run(scheduler)) == [(number, 13, True)]
        scheduler.finish(found)
    assert scheduler.prefix.evicted > 0
    assert scheduler.pages.available + scheduler.pages.idle == 4


def test_pages_left_by_the_window_are_given_back_but_not_the_sinks():
    scheduler = Scheduler(limits(num_pages=8, page_size=2, window=16, sliding=4, sinks=1))
    found = sequence(0, 3)
    scheduler.add(found)
    while len(found.tokens) < 13:
        run(scheduler)
    # The next token is at 12: it sees 9 to 12, from page 4 on, and token 0.
    assert [page == GONE for page in found.pages] == [False, True, True, True, False, False]
    scheduler.finish(found)
    scheduler.check()
    assert scheduler.pages.available + scheduler.pages.idle == 8


def test_guesses_are_verified_while_there_are_rows_and_pages():
    scheduler = Scheduler(limits(num_pages=4, page_size=4, window=16, rows=5, max_sequences=2))
    found = sequence(0, 2)
    scheduler.add(found)
    run(scheduler)
    found.draft = [7, 8, 9, 9, 9, 9, 9]
    batch = scheduler.next_batch()
    assert batch.pieces[0].draft == (7, 8, 9, 9)
    scheduler.complete(batch)
    found.tokens += [7, 8, 3]
    scheduler.accept(found, 2)
    scheduler.check()
    assert (found.cached, found.pending) == (5, 1)
    found.draft = [1] * 20
    assert len(scheduler.next_batch().pieces[0].draft) == 4


def test_guesses_end_at_the_window():
    scheduler = Scheduler(limits(window=10))
    found = sequence(0, 8)
    scheduler.add(found)
    run(scheduler)
    found.draft = [1] * 5
    assert len(scheduler.next_batch().pieces[0].draft) == 1


def test_finish_in_every_phase_returns_all_pages():
    scheduler = Scheduler(limits(max_sequences=1))
    running, waiting = sequence(0, 9), sequence(1, 9)
    scheduler.add(running)
    scheduler.add(waiting)
    run(scheduler)
    scheduler.finish(waiting)
    scheduler.finish(running)
    scheduler.check()
    assert scheduler.pages.available + scheduler.pages.idle == 512
    assert scheduler.pages.idle == 3
    assert scheduler.next_batch() is None


def test_check_notices_a_lost_page():
    scheduler = Scheduler(limits())
    scheduler.add(sequence(0, 9))
    run(scheduler)
    scheduler.running[0].pages.pop()
    with pytest.raises(AssertionError):
        scheduler.check()


class SchedulerMachine(RuleBasedStateMachine):
    """Random arrivals, cancellations, guesses and steps, each step run by the null device.

    The device's logits must be those of a fresh device given the whole sequence at once.
    """

    @initialize(
        num_pages=st.integers(6, 14),
        chunk=st.integers(1, 9),
        sequences=st.integers(1, 4),
        page_size=st.integers(1, 4),
        prefill_mode=st.sampled_from(PrefillMode),
        prefix_cache=st.sampled_from([True, True, False]),
        window=st.sampled_from([(None, 0), (5, 0), (3, 2)]),
    )
    def start(self, num_pages, chunk, sequences, page_size, prefill_mode, prefix_cache, window):
        sliding, sinks = window
        self.limits = limits(
            max_sequences=min(sequences, chunk),
            chunk=chunk,
            num_pages=num_pages,
            page_size=page_size,
            window=num_pages * page_size,
            rows=sequences + 3,
            prefill_mode=prefill_mode,
            prefix_cache=prefix_cache,
            sliding=sliding,
            sinks=sinks,
        )
        self.changes = {"sliding_window_size": sliding or -1, "attention_sink_size": sinks}
        self.scheduler = Scheduler(self.limits)
        self.arrays = StepArrays(self.limits)
        self.device = NullExecutable(manifest(page_size=page_size, **self.changes), num_pages)
        self.number = 0
        self.known = {}

    @rule(data=st.data(), answers=st.integers(1, 3), start=st.integers(0, 2))
    def arrive(self, data, answers, start):
        length = data.draw(st.integers(1, self.limits.window - 1))
        turn = data.draw(st.integers(0, length))  # where prompts that begin alike part
        tokens = [(start * 7 + i + (i >= turn)) % 256 for i in range(length)]
        for _ in range(answers):
            self.scheduler.add(Sequence(self.number, list(tokens), length))
            self.number += 1

    @precondition(lambda self: self.scheduler.running or self.scheduler.waiting)
    @rule(data=st.data())
    def cancel(self, data):
        everyone = [*self.scheduler.running, *self.scheduler.waiting]
        self.scheduler.finish(data.draw(st.sampled_from(everyone)))

    @rule(right=st.integers(0, 3), wrong=st.integers(0, 2))
    def guess(self, right, wrong):
        for found in self.scheduler.running:
            if found.pending == 1:
                tokens = list(found.tokens)
                for _ in range(right):
                    tokens.append(self.next_token(tokens))
                found.draft = tokens[len(found.tokens) :] + [255] * wrong

    @precondition(lambda self: self.scheduler.running)
    @rule(data=st.data(), count=st.integers(1, 4))
    def force(self, data, count):
        """Tokens that the engine knows without asking the model, as a grammar forces them."""
        found = data.draw(st.sampled_from(self.scheduler.running))
        found.draft = []
        found.tokens += [9] * min(count, self.limits.window - 1 - len(found.tokens))

    @rule(steps=st.integers(1, 6))
    def step(self, steps):
        for _ in range(steps):
            batch = self.scheduler.next_batch()
            if batch is None:
                assert not self.scheduler.running
                assert not self.scheduler.waiting
                return
            assert sum(piece.size for piece in batch.pieces) <= self.limits.chunk
            assert sum(piece.rows for piece in batch.pieces) <= self.limits.rows
            for copy in batch.copies:
                self.device.copy_page(*copy)
            logits = self.device.step(self.arrays.fill(batch)).copy()
            self.scheduler.complete(batch)
            self.advance(batch.pieces, logits)
            self.scheduler.check()

    def advance(self, pieces, logits):
        rows = iter(logits)
        for piece in pieces:
            found, mine = piece.sequence, [next(rows) for _ in range(piece.rows)]
            found.draft = []
            for i, row in enumerate(mine):
                assert (row == self.whole(found.tokens)).all()
                found.tokens.append(int(row[:255].argmax()))
                if i == len(piece.draft) or found.tokens[-1] != piece.draft[i]:
                    self.scheduler.accept(found, i)
                    break
            if len(found.tokens) >= self.limits.window:
                self.scheduler.finish(found)

    def whole(self, tokens):
        """Logits after `tokens`, computed in one step by a device that never saw anything else."""
        key = tuple(tokens)
        if key not in self.known:
            one = limits(max_sequences=1, chunk=256, num_pages=64)
            scheduler = Scheduler(one)
            scheduler.add(Sequence(0, list(tokens), len(tokens)))
            fresh = NullExecutable(manifest(**self.changes), 64)
            self.known[key] = fresh.step(StepArrays(one).fill(scheduler.next_batch()))[0]
        return self.known[key]

    def next_token(self, tokens):
        return int(self.whole(tokens)[:255].argmax())

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
        self.scheduler.prefix.clear()
        assert self.scheduler.pages.available == self.limits.num_pages


SchedulerMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, derandomize=True
)
TestScheduler = SchedulerMachine.TestCase
