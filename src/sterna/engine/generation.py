"""A request and its answers as they grow: sampled tokens in, events for the caller out.

Ends an answer at an end token, a stop string (wherever token borders fall), or the last token it
may have. Knows no device and no scheduler policy; runs on the engine's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from sterna.engine.api import FinishReason, Timings
from sterna.engine.options import SamplingOptions
from sterna.engine.parts import Parts
from sterna.engine.request import Sequence
from sterna.engine.sampler import History, Sample
from sterna.text.detokenizer import StopStrings, StreamDecoder


@dataclass(frozen=True, slots=True)
class Piece:
    """What one token added to an answer; the last one has a finish reason."""

    choice: int
    text: str
    sample: Sample
    finish_reason: FinishReason | None


@dataclass(frozen=True, slots=True)
class Finished:
    """All answers to a prompt are complete."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int  # of the prompt, reused and not computed
    timings: Timings


Event = Piece | Finished | Exception  # an Exception is the last event of a request that failed
Sink = Callable[[list[Event]], None]  # takes what one step brought


@dataclass(frozen=True, slots=True)
class Ask:
    """One prompt with all that decides its answers; `seed` is drawn if the options have none.

    `first_choice` numbers the answers when one call has several prompts.
    """

    prompt: tuple[int, ...]
    options: SamplingOptions
    seed: int
    first_choice: int = 0


@dataclass(slots=True)
class Clock:
    """Times of a request, in seconds; None: not yet."""

    arrived: float
    started: float | None = None
    first: float | None = None
    last: float | None = None

    def timings(self, prompt_tokens: int, completion_tokens: int, answers: int) -> Timings:
        started = self.started or self.arrived
        first, last = self.first or started, self.last or started
        return Timings(
            time_to_first_token_s=first - self.arrived,
            prefill_tokens_per_s=_rate(prompt_tokens, first - started),
            decode_tokens_per_s=_rate(completion_tokens - answers, last - first),
        )


def _rate(tokens: int, seconds: float) -> float:
    return tokens / seconds if seconds > 0 and tokens > 0 else 0.0


@dataclass(slots=True, eq=False)
class Request:
    """An Ask on the engine's thread."""

    ask: Ask
    sink: Sink
    clock: Clock
    whole: bool = False  # nobody wants to hear of it before its end
    flush: Callable[[], None] | None = None  # called after `sink`, once for all that share it
    answers: list[Answer] = field(default_factory=list)
    outbox: list[Event] = field(default_factory=list)

    @property
    def open(self) -> bool:
        return any(answer.finish_reason is None for answer in self.answers)

    def finished(self) -> Finished:
        tokens = sum(answer.sequence.output_length for answer in self.answers)
        prompt = len(self.ask.prompt)
        timings = self.clock.timings(prompt, tokens, len(self.answers))
        cached = self.answers[0].sequence.reused or 0
        return Finished(prompt, tokens, cached, timings)


class Answer:
    """One of a request's `n` answers."""

    def __init__(self, request: Request, index: int, sequence: Sequence, parts: Parts) -> None:
        options = request.ask.options
        self.request = request
        self.sequence = sequence
        self.finish_reason: FinishReason | None = None
        self._index = index
        self._limit = min(parts.limits.window - sequence.prompt_length, options.max_tokens or 2**62)
        self._stop_ids = frozenset() if options.ignore_eos else parts.stop_ids
        self._decoder = StreamDecoder(parts.tokenizer)
        self._stops = StopStrings([*parts.stop_strings, *options.stop])

    @property
    def history(self) -> History:
        """What the sampler needs to know."""
        sequence = self.sequence
        return History(sequence.tokens, sequence.prompt_length, self.request.ask.seed, self._index)

    @property
    def banned(self) -> tuple[int, ...]:
        """Tokens that may not come next: the end, before `min_tokens`."""
        return tuple(self._stop_ids) if self._early() else ()

    def accept(self, sample: Sample) -> Piece:
        """Append a sampled token and say what the caller gets to see."""
        early = self._early()
        self.sequence.tokens.append(sample.token)
        if sample.token in self._stop_ids:
            self.finish_reason = "stop"
            return self._piece(sample, self._flush())
        text = self._decoder.put([sample.token])
        if not early:
            text, stopped = self._stops.put(text)
            self.finish_reason = "stop" if stopped else None
        if self.finish_reason is None and self.sequence.output_length >= self._limit:
            text += self._flush()
            self.finish_reason = self.finish_reason or "length"
        return self._piece(sample, text)

    def _early(self) -> bool:
        return self.sequence.output_length < self.request.ask.options.min_tokens

    def _flush(self) -> str:
        """What decoder and stop strings held back; it may still complete a stop string."""
        text, stopped = self._stops.put(self._decoder.finish())
        if stopped:
            self.finish_reason = "stop"
            return text
        return text + self._stops.finish()

    def _piece(self, sample: Sample, text: str) -> Piece:
        choice = self.request.ask.first_choice + self._index
        return Piece(choice, text, sample, self.finish_reason)
