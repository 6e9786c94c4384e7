"""A request and its answers as they grow: sampled tokens in, events for the caller out.

Ends an answer at an end token, a stop string (wherever token borders fall), the end of its grammar,
or the last token it may have. Knows no device and no scheduler policy; runs on the engine's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from sterna.engine.api import FinishReason, Timings
from sterna.engine.grammar import Grammar
from sterna.engine.options import SamplingOptions
from sterna.engine.parts import Parts
from sterna.engine.pictures import Picture
from sterna.engine.prefix import NO_ADAPTER
from sterna.engine.request import Sequence
from sterna.engine.sampler import History, Sample, Wanted, orders
from sterna.text.detokenizer import StopStrings, StreamDecoder


class Piece(NamedTuple):
    """What a sampled token, and those that its grammar forces after it, added to an answer.

    The last one has a finish reason.
    """

    choice: int
    text: str
    samples: tuple[Sample, ...]
    finish_reason: FinishReason | None
    shortened: bool = False  # its grammar was brought to an end before the last token it may have


@dataclass(frozen=True, slots=True)
class Finished:
    """All answers to a prompt are complete."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int  # of the prompt, reused and not computed
    timings: Timings
    drafted_tokens: int = 0  # guesses verified,
    drafted_right: int = 0  # and how many of them were right


_SPARE = 24  # tokens left when a grammar is brought to its end: more than one choice costs
_LOOK_EVERY = 64  # tokens between looks at how far the end is, while there is time

Event = Piece | Finished | Exception  # an Exception is the last event of a request that failed
Sink = Callable[[list[Event]], None]  # takes what one step brought


@dataclass(frozen=True, slots=True)
class Ask:
    """One prompt with all that decides its answers; `seed` is drawn if the options have none.

    `first_choice` numbers the answers when one call has several prompts; `shown` are special
    tokens that are part of an answer's text. `adapter` is the number of a loaded one; `pictures`
    and `spelling` are those of `pictures.Shown`.
    """

    prompt: tuple[int, ...]
    options: SamplingOptions
    seed: int
    first_choice: int = 0
    grammar: Grammar | None = None
    shown: frozenset[int] = frozenset()
    adapter: int = NO_ADAPTER
    pictures: tuple[Picture, ...] = ()
    spelling: tuple[int, ...] = ()


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
    lazy: bool = False  # and each answer may be told as one piece
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
        drafted = sum(answer.sequence.drafted for answer in self.answers)
        right = sum(answer.sequence.drafted_right for answer in self.answers)
        return Finished(prompt, tokens, cached, timings, drafted, right)


class Answer:
    """One of a request's `n` answers."""

    def __init__(self, request: Request, index: int, sequence: Sequence, parts: Parts) -> None:
        ask = request.ask
        options = ask.options
        self.request = request
        self.sequence = sequence
        self.finish_reason: FinishReason | None = None
        self.last: float | None = None  # when its last token came
        self._index = index
        self._limit = min(parts.limits.window - sequence.prompt_length, options.max_tokens or 2**62)
        self._constraint = ask.grammar.start() if ask.grammar is not None else None
        endless = options.ignore_eos and self._constraint is None
        self._stop_ids = frozenset() if endless else parts.stop_ids
        self._decoder = StreamDecoder(parts.tokenizer, shown=ask.shown)
        self._stops = StopStrings([*parts.stop_strings, *options.stop])
        if self._constraint is not None:
            self._constraint.prepare()
        stops = parts.stop_strings or options.stop
        self._lazy = request.lazy and self._constraint is None and not stops
        self._kept: list[Sample] = []
        self._end = sequence.prompt_length + self._limit
        self.orders = orders(options)
        self._plain = self._constraint is None and options.min_tokens == 0
        self.silent = self._lazy and not options.logprobs  # `take` is all that a token needs
        self.history = History(sequence.tokens, sequence.prompt_length, ask.seed, index)
        self._shortened = False
        self._way_out = 0  # how long it was when last looked for
        self._looked = 0  # and at which token of the answer

    @property
    def constrained(self) -> bool:
        """Whether a grammar has to see each token before the next can be chosen."""
        return self._constraint is not None

    def wanted(self, row: int, ahead: tuple[int, ...] = ()) -> Wanted:
        """How the next token is to be chosen from a row of the step's logits.

        `ahead`: guesses that come before it, if they are right; not for constrained answers. Waits
        for the grammar where need be.
        """
        if self._plain and not ahead:
            return Wanted(row, self.orders, self.history)
        history = self.history
        if ahead:
            history = replace(history, tokens=[*history.tokens, *ahead])
        early = self.sequence.output_length + len(ahead) < self.request.ask.options.min_tokens
        allowed = None if self._constraint is None else self._constraint.allowed()
        return Wanted(row, self.orders, history, tuple(self._stop_ids) if early else (), allowed)

    def accept(self, sample: Sample) -> Piece | None:
        """Append a sampled token and say what the caller gets to see; None: not yet.

        Tokens that the grammar forces after it are appended too: the model reads them in its next
        step and does not choose them. Where log probabilities are asked for they come one by one.
        """
        if self._lazy:
            if not self.silent:
                self._kept.append(sample)
            return self.told() if self.take(sample.token) else None
        samples, text = [sample], self._append(sample.token)
        self._mind_the_limit()
        while (token := self._forced()) is not None:
            samples.append(Sample(token))
            text += self._append(token)
        if self._constraint is not None and self.finish_reason is None:
            self._constraint.prepare()
        choice = self.request.ask.first_choice + self._index
        return Piece(choice, text, tuple(samples), self.finish_reason, self._shortened)

    def take(self, token: int) -> bool:
        """Append a token of a lazy answer, and nothing else; whether it was the last."""
        tokens = self.sequence.tokens
        tokens.append(token)
        if token in self._stop_ids:
            self.finish_reason = "stop"
            return True
        if len(tokens) >= self._end:
            self.finish_reason = "length"
            return True
        return False

    def told(self) -> Piece:
        """A lazy answer that has ended, as one piece whose text is decoded at once."""
        tokens = self.sequence.tokens[self.sequence.prompt_length :]
        said = tokens[:-1] if self.finish_reason == "stop" else tokens
        text = self._decoder.put(said) + self._decoder.finish()
        samples = tuple(map(Sample, tokens)) if self.silent else tuple(self._kept)
        choice = self.request.ask.first_choice + self._index
        return Piece(choice, text, samples, self.finish_reason)

    def _mind_the_limit(self) -> None:
        """Where tokens run short, let the grammar end while there is room for its end."""
        if self._constraint is None or self._shortened or self.finish_reason is not None:
            return
        length = self.sequence.output_length
        left = self._limit - length
        if left - self._way_out > 2 * _SPARE and length - self._looked < _LOOK_EVERY:
            return
        path = self._constraint.way_out()
        self._looked, self._way_out = length, len(path or ())
        if path and len(path) <= left < len(path) + _SPARE:
            self._constraint.end(path)
            self._shortened = True

    def _forced(self) -> int | None:
        """The token that may be appended without asking the model."""
        if self._constraint is None or self.finish_reason or self.request.ask.options.logprobs:
            return None
        return self._constraint.forced[0] if self._constraint.forced else None

    def _append(self, token: int) -> str:
        early = self._early()
        self.sequence.tokens.append(token)
        if token in self._stop_ids:
            self.finish_reason = "stop"
            return self._flush()
        text = self._decoder.put([token])
        if not early:
            text, stopped = self._stops.put(text)
            self.finish_reason = "stop" if stopped else None
        if self.finish_reason is None and self._constraint is not None:
            self._constraint.advance(token)
            if self._constraint.finished:
                text += self._flush()
                self.finish_reason = "stop"
        if self.finish_reason is None and self.sequence.output_length >= self._limit:
            text += self._flush()
            self.finish_reason = self.finish_reason or "length"
        return text

    def _early(self) -> bool:
        return self.sequence.output_length < self.request.ask.options.min_tokens

    def _flush(self) -> str:
        """What decoder and stop strings held back; it may still complete a stop string."""
        text, stopped = self._stops.put(self._decoder.finish())
        if stopped:
            self.finish_reason = "stop"
            return text
        return text + self._stops.finish()
