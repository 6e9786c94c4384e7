"""Events to the shapes that callers see: whole answers, or chunks of a stream.

Pure: an assembler takes one event and gives the objects it completes. Both faces of the engine,
blocking and async, feed the same assemblers. Knows no threads and no queues.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, TypeVar

from sterna.engine import api
from sterna.engine.generation import Finished, Piece
from sterna.engine.logprobs import chat_logprobs, completion_logprobs
from sterna.engine.sampler import Sample
from sterna.text.tokenizer import Tokenizer

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Reply:
    """What all objects of one reply have in common."""

    id: str
    model: str
    created: int
    tokenizer: Tokenizer
    prompts: tuple[tuple[int, ...], ...]
    answers: int  # for each prompt
    logprobs: bool
    usage_chunk: bool = False
    token_ids: bool = False


class Assembler(Protocol[T_co]):
    whole: ClassVar[bool]  # nothing comes before the end: events may be kept until then

    def put(self, event: Piece | Finished) -> Iterable[T_co]: ...


@dataclass(slots=True)
class Totals:
    """Usage over all prompts of a reply; timings are of the prompt that finished last."""

    left: int
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    timings: api.Timings | None = None

    def add(self, event: Finished) -> bool:
        """Note a finished prompt; True when it was the last."""
        self.left -= 1
        self.prompt_tokens += event.prompt_tokens
        self.completion_tokens += event.completion_tokens
        self.cached_tokens += event.cached_tokens
        self.timings = event.timings
        return self.left == 0

    def usage(self) -> api.Usage:
        total = self.prompt_tokens + self.completion_tokens
        return api.Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            total_tokens=total,
            prompt_tokens_details=api.PromptTokensDetails(cached_tokens=self.cached_tokens),
            completion_tokens_details=api.CompletionTokensDetails(reasoning_tokens=0),
        )


class ChatChunks:
    """A chat answer as a stream: first the role, then text, then the finish reason."""

    whole: ClassVar[bool] = False

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._begun: set[int] = set()
        self._pending: dict[int, list[Sample]] = {}
        self._totals = Totals(len(reply.prompts))

    def put(self, event: Piece | Finished) -> Iterable[api.ChatCompletionChunk]:
        if isinstance(event, Finished):
            if self._totals.add(event) and self._reply.usage_chunk:
                yield self._chunk([], self._totals.usage(), self._totals.timings)
            return
        if event.choice not in self._begun:
            self._begun.add(event.choice)
            opening = api.ChoiceDelta(role="assistant", content="")
            yield self._chunk([api.ChunkChoice(index=event.choice, delta=opening)])
        samples = self._pending.setdefault(event.choice, [])
        samples.append(event.sample)
        if event.text or event.finish_reason:
            yield self._chunk([self._choice(event, samples)])
            samples.clear()

    def _choice(self, event: Piece, samples: list[Sample]) -> api.ChunkChoice:
        reply = self._reply
        return api.ChunkChoice(
            index=event.choice,
            delta=api.ChoiceDelta(content=event.text) if event.text else api.ChoiceDelta(),
            finish_reason=event.finish_reason,
            logprobs=chat_logprobs(reply.tokenizer, samples) if reply.logprobs else None,
        )

    def _chunk(
        self,
        choices: list[api.ChunkChoice],
        usage: api.Usage | None = None,
        timings: api.Timings | None = None,
    ) -> api.ChatCompletionChunk:
        reply = self._reply
        return api.ChatCompletionChunk(
            id=reply.id,
            model=reply.model,
            created=reply.created,
            choices=choices,
            usage=usage,
            timings=timings,
        )


class CompletionChunks:
    """A text completion as a stream."""

    whole: ClassVar[bool] = False

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._pending: dict[int, Written] = {}
        self._totals = Totals(len(reply.prompts))

    def put(self, event: Piece | Finished) -> Iterable[api.Completion]:
        if isinstance(event, Finished):
            if self._totals.add(event) and self._reply.usage_chunk:
                yield completion(self._reply, [], self._totals)
            return
        written = self._pending.setdefault(event.choice, Written())
        written.add(event)
        if event.text or event.finish_reason:
            yield completion(self._reply, [written.completion_choice(self._reply, event.choice)])
            del self._pending[event.choice]


@dataclass(slots=True)
class Written:
    """What of one answer has arrived."""

    text: str = ""
    samples: list[Sample] = field(default_factory=list)
    finish_reason: api.FinishReason | None = None

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.samples.append(piece.sample)
        self.finish_reason = piece.finish_reason

    def completion_choice(self, reply: Reply, index: int) -> api.CompletionChoice:
        prompt = reply.prompts[index // reply.answers]
        return api.CompletionChoice(
            index=index,
            text=self.text,
            finish_reason=self.finish_reason,
            logprobs=completion_logprobs(reply.tokenizer, self.samples) if reply.logprobs else None,
            prompt_token_ids=list(prompt) if reply.token_ids else None,
            token_ids=[sample.token for sample in self.samples] if reply.token_ids else None,
        )

    def chat_choice(self, reply: Reply, index: int) -> api.Choice:
        assert self.finish_reason is not None, "an answer without an end"
        return api.Choice(
            index=index,
            message=api.Message(role="assistant", content=self.text, refusal=None),
            finish_reason=self.finish_reason,
            logprobs=chat_logprobs(reply.tokenizer, self.samples) if reply.logprobs else None,
        )


class _Whole:
    """Collects every answer of a reply."""

    whole: ClassVar[bool] = True

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._totals = Totals(len(reply.prompts))
        self._written = [Written() for _ in range(len(reply.prompts) * reply.answers)]

    def _complete(self, event: Piece | Finished) -> bool:
        if isinstance(event, Finished):
            return self._totals.add(event)
        self._written[event.choice].add(event)
        return False


class WholeChat(_Whole):
    """One ChatCompletion, when all is there."""

    def put(self, event: Piece | Finished) -> Iterable[api.ChatCompletion]:
        if not self._complete(event):
            return
        reply, timings = self._reply, self._totals.timings
        assert timings is not None, "finished without timings"
        yield api.ChatCompletion(
            id=reply.id,
            model=reply.model,
            created=reply.created,
            choices=[written.chat_choice(reply, i) for i, written in enumerate(self._written)],
            usage=self._totals.usage(),
            timings=timings,
        )


class WholeCompletion(_Whole):
    """One Completion, when all is there."""

    def put(self, event: Piece | Finished) -> Iterable[api.Completion]:
        if self._complete(event):
            choices = [w.completion_choice(self._reply, i) for i, w in enumerate(self._written)]
            yield completion(self._reply, choices, self._totals)


def completion(
    reply: Reply, choices: list[api.CompletionChoice], totals: Totals | None = None
) -> api.Completion:
    return api.Completion(
        id=reply.id,
        model=reply.model,
        created=reply.created,
        choices=choices,
        usage=totals.usage() if totals else None,
        timings=totals.timings if totals else None,
    )
