"""The engine's thread: commands in through one queue, events out through each request's sink.

One step at a time: take commands, ask the scheduler, run the device, sample, tell. Events of a
step are handed over together at its end. Nothing waits for ever: whatever stops the thread
reaches every open request, and later ones, as an exception. Knows nothing of prompts as text nor
of the shapes that callers see.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TypeVar

from sterna.base.errors import DeviceError, Error, RequestError
from sterna.engine.batch import Batch, Piece, StepArrays
from sterna.engine.generation import Answer, Ask, Clock, Event, Request, Sink
from sterna.engine.metrics import Counters, Histograms
from sterna.engine.parts import Parts
from sterna.engine.prefix_store import PrefixStore
from sterna.engine.request import Phase, Sequence
from sterna.engine.sampler import SampleInputs, Wanted, needs_logits, told
from sterna.engine.scheduler import Scheduler
from sterna.engine.speculative import Speculator
from sterna.engine.trace import Trace
from sterna.runtime.sampling import NONE

T = TypeVar("T")
Command = Callable[[], None]


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The device's choices for an answer's next tokens, if its guesses are right.

    Where a grammar has a say there is the first alone. `row` is its row in the step's logits.
    """

    wanted: list[Wanted]
    tokens: list[int]
    row: int


class Core:
    """Starts its thread at once; `close` ends it and closes the executable."""

    def __init__(
        self,
        parts: Parts,
        speculator: Speculator | None = None,
        store: PrefixStore | None = None,
        trace_file: Path | None = None,
    ) -> None:
        """With `trace_file` a trace is on from the start, and written there at the end."""
        self.counters = Counters()
        self.histograms = Histograms()
        self.scheduler = Scheduler(parts.limits)
        self._parts = parts
        self._speculator = speculator
        self._store = store
        if store is not None:
            store.restore(self.scheduler.prefix, self.scheduler.pages, parts.executable)
        self._arrays = StepArrays(parts.limits)
        self._inputs = SampleInputs(parts.vocabulary, parts.executable.manifest.model.vocab_size)
        self._answers: dict[int, Answer] = {}  # by the number of their sequence
        self._new: dict[int, Answer] = {}  # of these, those that no step has run
        self._last_step = 0.0  # when its tokens came
        self._steady = 0  # tokens of this step whose forerunners came with the last one
        self._numbers = count()
        self._touched: list[Request] = []  # with events to hand over at the end of the step
        self._trace_file = trace_file
        self._trace = None if trace_file is None else Trace(time.perf_counter())
        self._inbox: queue.SimpleQueue[Command | Request | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # between submitting and stopping
        self._stopped: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="sterna-engine", daemon=True)
        self._thread.start()

    @property
    def draft_pauses(self) -> int:
        """Times that speculative decoding was switched off for a request."""
        return 0 if self._speculator is None else self._speculator.pauses

    @property
    def failure(self) -> Exception | None:
        """Why the thread ended; None while it runs."""
        return self._stopped

    def submit(
        self,
        ask: Ask,
        sink: Sink,
        *,
        whole: bool = False,
        lazy: bool = False,
        flush: Callable[[], None] | None = None,
    ) -> Request:
        """Queue a prompt. `sink` and `flush` are called on the engine's thread, and must not block.

        `sink` gets the events of each step, with `whole` all of them at the end, and with `lazy`
        one for each answer where possible. `flush` is then called once for all sinks that share it.
        """
        request = Request(ask, sink, Clock(time.perf_counter()), whole, lazy, flush)
        self._put(request)
        return request

    def cancel(self, request: Request) -> None:
        """Return the request's pages before the next step; no further events."""
        self._inbox.put(lambda: self._cancel(request))

    def call(self, function: Callable[[], T]) -> T:
        """The result of `function`, called on the engine's thread between two steps."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

        self._put(run)
        while True:  # a thread that ends meanwhile obeys no more
            with contextlib.suppress(TimeoutError):
                return future.result(0.1)
            if self._stopped is not None and not future.done():
                raise _again(self._stopped)

    def close(self) -> None:
        """End open requests with RequestError, stop the thread, close the executable."""
        self._inbox.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def start_trace(self) -> None:
        """See Engine.start_trace; on the engine's thread."""
        self._trace = Trace(time.perf_counter())

    def stop_trace(self) -> bytes:
        """See Engine.stop_trace; on the engine's thread."""
        trace, self._trace = self._trace, None
        if trace is None:
            raise RequestError("no trace is on; call start_trace first")
        return trace.json()

    def _put(self, item: Command | Request) -> None:
        with self._lock:
            if self._stopped is not None:
                raise _again(self._stopped)
            self._inbox.put(item)

    def _run(self) -> None:
        reason: Exception = RequestError("the engine was closed")
        try:
            while self._obey():
                began = time.perf_counter()
                self._speculate()
                batch = self.scheduler.next_batch()
                if batch is not None:
                    self._step(batch, began)
        except Exception as error:
            reason = error
        self._stop(reason)

    def _obey(self) -> bool:
        """Carry out all commands, waiting for one if there is nothing to do; False: stop."""
        while True:
            idle = not self._answers
            if idle:
                self._tidy()
            try:
                command = self._inbox.get(block=idle)
            except queue.Empty:
                return True
            if command is None:
                return False
            if isinstance(command, Request):
                self._admit(command)
            else:
                command()

    def _tidy(self) -> None:
        """Save what the disk was too slow for, while nobody asks for anything."""
        while self._store is not None and self.scheduler.prefix.born and self._inbox.empty():
            self._store.follow(self.scheduler.prefix, self._parts.executable, patient=True)

    def _admit(self, request: Request) -> None:
        self.counters.requests += 1
        try:
            self._start(request)
        except Exception as error:
            self._fail(request, error)

    def _start(self, request: Request) -> None:
        for index in range(request.ask.options.n):
            prompt = list(request.ask.prompt)
            ask, number = request.ask, next(self._numbers)
            sequence = Sequence(
                number, prompt, len(prompt), ask.adapter, ask.pictures, ask.spelling
            )
            answer = Answer(request, index, sequence, self._parts)
            request.answers.append(answer)
            self._answers[sequence.number] = self._new[sequence.number] = answer
            self.scheduler.add(sequence)

    def _cancel(self, request: Request) -> None:
        if request.open:
            self.counters.cancelled += 1
            self._drop(request)

    def _speculate(self) -> None:
        if self._speculator is not None:
            decoding = [s for s in self.scheduler.running if s.pending == 1]
            self._speculator.propose([self._answers[s.number] for s in decoding])

    def _step(self, batch: Batch, began: float) -> None:
        prepared = time.perf_counter()
        self._note_starts(batch, prepared)
        self._compute(batch)
        computed = time.perf_counter()
        self.scheduler.complete(batch)
        self._sample(batch, computed)
        sampled = time.perf_counter()
        self._hand_over()
        self.counters.steps += 1
        self.counters.step_seconds += computed - prepared
        if self._store is not None:
            self._store.follow(self.scheduler.prefix, self._parts.executable)
        if self._speculator is not None:
            self._speculator.time(batch, sampled - began)
        if self._trace is not None:
            self._note_step(self._trace, batch, (began, prepared, computed, sampled))

    def _note_starts(self, batch: Batch, now: float) -> None:
        for piece in batch.pieces if self._new else ():
            answer = self._new.pop(piece.sequence.number, None)
            if answer is not None and answer.request.clock.started is None:
                answer.request.clock.started = now
                self.histograms.queue_seconds.observe(now - answer.request.clock.arrived)
        self.counters.prompt_tokens += batch.prefill_tokens
        self.histograms.step_tokens.observe(sum(piece.size for piece in batch.pieces))

    def _compute(self, batch: Batch) -> None:
        executable = self._parts.executable
        for source, destination in batch.copies:
            executable.copy_page(source, destination)
        for picture in batch.unseen():
            picture.rows = executable.see(picture.patches.values, picture.patches.grid)
        executable.run(self._arrays.fill(batch))

    def _sample(self, batch: Batch, now: float) -> None:
        asked: list[tuple[Piece, Answer, int, int]] = []  # with its first row, and of `wanted`
        wanted: list[Wanted] = []
        at = 0
        for piece in batch.pieces:
            if piece.last:
                answer = self._answers.get(piece.sequence.number)
                if answer is not None:  # no sibling failed just now
                    asked.append((piece, answer, at, len(wanted)))
                    if piece.draft or answer.constrained:
                        wanted += self._wanted(answer, at, piece.draft)
                    else:
                        wanted.append(answer.wanted(at))
                at += 1 + len(piece.draft)
        chosen = self._choose(wanted)
        ends = [*(first for _, _, _, first in asked[1:]), len(wanted)]
        for (piece, answer, row, first), end in zip(asked, ends):
            # A sibling that failed in this very step has taken its whole request along.
            if piece.sequence.phase is not Phase.RUNNING:
                continue
            if answer.silent and not piece.draft and chosen[first] != NONE:
                self._take(answer, chosen[first], now)
            else:
                choices = _Chosen(wanted[first:end], chosen[first:end], row)
                self._advance(answer, piece, choices, now)
        if self._steady:
            gap = now - self._last_step
            self.histograms.inter_token_seconds.observe(gap, self._steady)
        self._last_step, self._steady = now, 0

    def _wanted(self, answer: Answer, row: int, draft: tuple[int, ...]) -> list[Wanted]:
        try:
            if answer.constrained or not draft:
                return [answer.wanted(row)]
            return [answer.wanted(row + i, draft[:i]) for i in range(len(draft) + 1)]
        except Exception as error:  # of its grammar
            self._fail(answer.request, error)
            return []

    def _choose(self, wanted: list[Wanted]) -> list[int]:
        if not wanted:
            return []
        given = self._inputs.of(wanted)
        tokens: list[int] = self._parts.executable.sample(given).tolist()
        return tokens

    def _take(self, answer: Answer, token: int, now: float) -> None:
        """As `_advance`, for an answer of which nothing is told before its end."""
        try:
            ended = answer.take(token)
            self.counters.completion_tokens += 1
            self._note_token(answer, now)
            if ended:
                self._tell(answer.request, answer.told())
                self._end(answer)
        except Exception as error:
            self._fail(answer.request, error)

    def _advance(self, answer: Answer, piece: Piece, chosen: _Chosen, now: float) -> None:
        """Append the token that follows, and those after it while they are what was guessed."""
        try:
            tokens, before = answer.sequence.tokens, len(answer.sequence.tokens)
            self._append(answer, chosen, 0, now)
            if piece.draft:
                draft, answer.sequence.draft = [*piece.draft], []
                while answer.finish_reason is None and _begins(draft, tokens[before:]):
                    self._append(answer, chosen, len(tokens) - before, now)
                self._note_draft(piece, tokens[before:])
            if answer.finish_reason is not None:
                self._end(answer)
        except Exception as error:
            # It concerns this request alone: its logits, its text, its listener.
            self._fail(answer.request, error)

    def _end(self, answer: Answer) -> None:
        """The answer has its last token."""
        self._forget(answer)
        if not answer.request.open:
            self._finish(answer.request)

    def _append(self, answer: Answer, chosen: _Chosen, at: int, now: float) -> None:
        row = chosen.row + at
        if at < len(chosen.tokens):
            wanted, token = chosen.wanted[at], chosen.tokens[at]
        else:
            wanted = answer.wanted(row)
            (token,) = self._choose([wanted])
        request, tokens = answer.request, answer.sequence.tokens
        before = len(tokens)
        logits = self._parts.executable.logits()[row] if needs_logits(wanted, token) else None
        piece = answer.accept(told(wanted, token, logits, self._parts.vocabulary))
        if piece is not None:
            self._tell(request, piece)
        self.counters.completion_tokens += len(tokens) - before
        self._note_token(answer, now)

    def _finish(self, request: Request) -> None:
        finished = request.finished()
        self._tell(request, finished)
        if request.whole:
            self._touched.append(request)
        self.counters.finished += 1
        clock, seen = request.clock, self.histograms
        if clock.started is not None and clock.first is not None and clock.last is not None:
            seen.prefill_seconds.observe(clock.first - clock.started)
            seen.decode_seconds.observe(clock.last - clock.first)
            seen.request_seconds.observe(clock.last - clock.arrived)
        seen.prompt_tokens.observe(finished.prompt_tokens)
        seen.cached_tokens.observe(finished.cached_tokens)
        seen.completion_tokens.observe(finished.completion_tokens)

    def _note_token(self, answer: Answer, now: float) -> None:
        clock, before = answer.request.clock, answer.last
        clock.last = answer.last = now
        if clock.first is None:
            clock.first = now
            self.histograms.time_to_first_token_seconds.observe(now - clock.arrived)
        elif before == self._last_step:
            self._steady += 1  # most are: they are counted together
        elif before is not None:
            self.histograms.inter_token_seconds.observe(now - before)

    def _note_draft(self, piece: Piece, found: list[int]) -> None:
        """`found` are the tokens that stand where others were guessed."""
        sequence = piece.sequence
        same = [guess == token for guess, token in zip(piece.draft, found)]
        right = same.index(False) if False in same else len(same)
        self.scheduler.accept(sequence, right)
        if self._speculator is not None:
            self._speculator.learn(sequence, len(piece.draft), right)
        sequence.drafted += len(piece.draft)
        sequence.drafted_right += right
        self.counters.drafts += 1
        self.counters.draft_tokens += len(piece.draft)
        self.counters.draft_tokens_accepted += right

    def _note_step(self, trace: Trace, batch: Batch, times: tuple[float, ...]) -> None:
        began, prepared, computed, sampled = times
        sizes = {"sequences": len(batch.pieces), "tokens": sum(p.size for p in batch.pieces)}
        told = time.perf_counter()
        trace.span("step", began, told, **sizes, prefill_tokens=batch.prefill_tokens)
        trace.span("schedule", began, prepared)
        trace.span("device", prepared, computed, **sizes, copies=len(batch.copies))
        trace.span("sample", computed, sampled)
        trace.span("hand over", sampled, told)
        pages = self.scheduler.pages
        used = {"free": pages.available, "cached": pages.idle}
        trace.counters("pages", told, {**used, "used": len(pages) - sum(used.values())})
        queues = {"running": len(self.scheduler.running), "waiting": len(self.scheduler.waiting)}
        trace.counters("sequences", told, queues)

    def _tell(self, request: Request, event: Event) -> None:
        """Keep an event for the end of the step, or of a request that is wanted whole."""
        if not request.outbox and not request.whole:
            self._touched.append(request)
        request.outbox.append(event)

    def _hand_over(self) -> None:
        """Give listeners what the step brought, and wake each event loop once."""
        flushes: dict[Callable[[], None], list[Request]] = {}
        touched, self._touched = self._touched, []
        for request in touched:
            events, request.outbox = request.outbox, []
            if not events:
                continue  # it failed since
            try:
                request.sink(events)
            except Exception as error:
                self._fail(request, error)
            if request.flush is not None:
                flushes.setdefault(request.flush, []).append(request)
        for flush, requests in flushes.items():
            try:
                flush()
            except Exception as error:  # their event loop was closed
                for request in requests:
                    self._fail(request, error)

    def _forget(self, answer: Answer) -> None:
        self._answers.pop(answer.sequence.number, None)
        self._new.pop(answer.sequence.number, None)
        if answer.sequence.phase is not Phase.FINISHED:
            self.scheduler.finish(answer.sequence)
            if self._speculator is not None:
                self._speculator.forget(answer.sequence)

    def _drop(self, request: Request) -> None:
        for answer in request.answers:
            answer.finish_reason = answer.finish_reason or "stop"
            self._forget(answer)
        request.outbox.clear()

    def _fail(self, request: Request, error: Exception) -> None:
        self.counters.failed += request.open or not request.answers
        self._drop(request)
        _report(request, error)

    def _stop(self, reason: Exception) -> None:
        """Tell everyone who waits, in the scheduler or still in the inbox; then clean up."""
        with self._lock:
            self._stopped = reason
        waiting = {id(answer.request): answer.request for answer in self._answers.values()}
        while not self._inbox.empty():
            item = self._inbox.get()
            if isinstance(item, Request):
                waiting[id(item)] = item
        for request in waiting.values():
            _report(request, _again(reason))
        self._answers.clear()
        self._tidy()
        if self._trace_file is not None and self._trace is not None:
            self._trace.save(self._trace_file)
        if self._store is not None:
            self._store.close()
        self._parts.executable.close()
        if self._speculator is not None:
            self._speculator.source.close()


def _begins(draft: list[int], tokens: list[int]) -> bool:
    return draft[: len(tokens)] == tokens


def _again(reason: Exception) -> Exception:
    """The reason as a fresh exception, for another thread to raise."""
    if isinstance(reason, RequestError):
        return RequestError(str(reason))
    kind = "" if isinstance(reason, Error) else f"{type(reason).__name__}: "
    error = DeviceError(f"the engine stopped: {kind}{reason}")
    error.__cause__ = reason
    return error


def _report(request: Request, error: Exception) -> None:
    """The last event of a request that failed, at once."""
    with contextlib.suppress(Exception):  # the listener's event loop may be closed by now
        request.sink([error])
        if request.flush is not None:
            request.flush()
