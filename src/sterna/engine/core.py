"""The engine's thread: commands in through one queue, events out through each request's sink.

One step at a time: take commands, ask the scheduler, run the device, sample, tell. Nothing waits
for ever: whatever stops the thread reaches every open request, and later ones, as an exception.
Knows nothing of prompts as text nor of the shapes that callers see.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from dataclasses import dataclass
from enum import Enum, auto
from itertools import count

import numpy as np
from numpy.typing import NDArray

from sterna.base.errors import DeviceError, Error, RequestError
from sterna.engine.batch import Batch, StepArrays
from sterna.engine.generation import Answer, Ask, Clock, Request, Sink
from sterna.engine.parts import Parts
from sterna.engine.request import Phase, Sequence
from sterna.engine.sampler import sample
from sterna.engine.scheduler import Scheduler


class _Verb(Enum):
    SUBMIT = auto()
    CANCEL = auto()
    CLOSE = auto()


@dataclass(slots=True)
class Counters:
    """Totals since the start."""

    requests: int = 0
    failed: int = 0
    cancelled: int = 0
    steps: int = 0
    prompt_tokens: int = 0  # computed: sharing saves some, preemption repeats some
    completion_tokens: int = 0
    step_seconds: float = 0.0


class Core:
    """Starts its thread at once; `close` ends it and closes the executable."""

    def __init__(self, parts: Parts) -> None:
        self.counters = Counters()
        self.scheduler = Scheduler(parts.limits)
        self._parts = parts
        self._arrays = StepArrays(parts.limits)
        self._answers: dict[int, Answer] = {}  # by the number of their sequence
        self._numbers = count()
        self._inbox: queue.SimpleQueue[tuple[_Verb, Request | None]] = queue.SimpleQueue()
        self._lock = threading.Lock()  # between submitting and stopping
        self._stopped: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="sterna-engine", daemon=True)
        self._thread.start()

    @property
    def failure(self) -> Exception | None:
        """Why the thread ended; None while it runs."""
        return self._stopped

    def submit(self, ask: Ask, sink: Sink) -> Request:
        """Queue a prompt. `sink` is called on the engine's thread; it must not block."""
        request = Request(ask, sink, Clock(time.perf_counter()))
        with self._lock:
            if self._stopped is not None:
                raise _again(self._stopped)
            self._inbox.put((_Verb.SUBMIT, request))
        return request

    def cancel(self, request: Request) -> None:
        """Return the request's pages before the next step; no further events."""
        self._inbox.put((_Verb.CANCEL, request))

    def close(self) -> None:
        """End open requests with RequestError, stop the thread, close the executable."""
        self._inbox.put((_Verb.CLOSE, None))
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        reason: Exception = RequestError("the engine was closed")
        try:
            while self._obey():
                batch = self.scheduler.next_batch()
                if batch is not None:
                    self._step(batch)
        except Exception as error:
            reason = error
        self._stop(reason)

    def _obey(self) -> bool:
        """Carry out all commands, waiting for one if there is nothing to do; False: stop."""
        idle = not self._answers
        while True:
            try:
                verb, request = self._inbox.get(block=idle)
            except queue.Empty:
                return True
            if verb is _Verb.CLOSE:
                return False
            assert request is not None, "a command without a request"
            if verb is _Verb.SUBMIT:
                self._admit(request)
            elif request.open:
                self.counters.cancelled += 1
                self._drop(request)
            idle = not self._answers

    def _admit(self, request: Request) -> None:
        self.counters.requests += 1
        try:
            self._start(request)
        except Exception as error:
            self._fail(request, error)

    def _start(self, request: Request) -> None:
        for index in range(request.ask.options.n):
            prompt = list(request.ask.prompt)
            sequence = Sequence(next(self._numbers), prompt, len(prompt))
            answer = Answer(request, index, sequence, self._parts)
            request.answers.append(answer)
            self._answers[sequence.number] = answer
            self.scheduler.add(sequence)

    def _step(self, batch: Batch) -> None:
        began = time.perf_counter()
        for piece in batch.pieces:
            self._answers[piece.sequence.number].request.clock.start(began)
        self.counters.prompt_tokens += batch.prefill_tokens
        for source, destination in batch.copies:
            self._parts.executable.copy_page(source, destination)
        logits = self._parts.executable.step(self._arrays.fill(batch))
        self.scheduler.complete(batch)
        self.counters.steps += 1
        self.counters.step_seconds += time.perf_counter() - began
        ready = [self._answers[p.sequence.number] for p in batch.pieces if p.last]
        for answer, row in zip(ready, logits):
            # A sibling that failed in this very step has taken its whole request along.
            if answer.sequence.phase is Phase.RUNNING:
                self._advance(answer, row)

    def _advance(self, answer: Answer, row: NDArray[np.float32]) -> None:
        request = answer.request
        try:
            chosen = sample(
                row[: self._parts.vocabulary], request.ask.options, answer.history, answer.banned
            )
            piece = answer.accept(chosen)
            self.counters.completion_tokens += 1
            request.clock.tick(time.perf_counter())
            request.sink(piece)
            if answer.finish_reason is not None:
                self._forget(answer)
            if not request.open:
                request.sink(request.finished())
        except Exception as error:
            # It concerns this request alone: its logits, its text, its listener.
            self._fail(request, error)

    def _forget(self, answer: Answer) -> None:
        self._answers.pop(answer.sequence.number, None)
        if answer.sequence.phase is not Phase.FINISHED:
            self.scheduler.finish(answer.sequence)

    def _drop(self, request: Request) -> None:
        for answer in request.answers:
            answer.finish_reason = answer.finish_reason or "stop"
            self._forget(answer)

    def _fail(self, request: Request, error: Exception) -> None:
        self.counters.failed += 1
        self._drop(request)
        _tell(request, error)

    def _stop(self, reason: Exception) -> None:
        """Tell everyone who waits, in the scheduler or still in the inbox; then clean up."""
        with self._lock:
            self._stopped = reason
        waiting = {id(answer.request): answer.request for answer in self._answers.values()}
        while not self._inbox.empty():
            verb, request = self._inbox.get()
            if verb is _Verb.SUBMIT and request is not None:
                waiting[id(request)] = request
        for request in waiting.values():
            _tell(request, _again(reason))
        self._answers.clear()
        self._parts.executable.close()


def _again(reason: Exception) -> Exception:
    """The reason as a fresh exception, for another thread to raise."""
    if isinstance(reason, RequestError):
        return RequestError(str(reason))
    kind = "" if isinstance(reason, Error) else f"{type(reason).__name__}: "
    error = DeviceError(f"the engine stopped: {kind}{reason}")
    error.__cause__ = reason
    return error


def _tell(request: Request, error: Exception) -> None:
    with contextlib.suppress(Exception):  # the listener's event loop may be closed by now
        request.sink(error)
