"""Events to the shapes that callers see: whole answers, or chunks of a stream.

Pure: an assembler takes one event and gives the objects it completes. Both faces of the engine,
blocking and async, feed the same assemblers. Knows no threads and no queues.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, TypeVar

from sterna.engine import api
from sterna.engine.chat_parser import CallPiece, ChatParser, Parsed
from sterna.engine.generation import Finished, Piece
from sterna.engine.logprobs import chat_logprobs, completion_logprobs
from sterna.engine.reasoning import Start
from sterna.engine.sampler import Sample
from sterna.engine.tool_syntax import ID_LENGTH, ToolSyntax
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
    fingerprint: str | None = None
    start: Start = Start.SPEECH  # of a chat's answers
    tools: ToolSyntax | None = None  # None: nothing in an answer is a call
    echo: tuple[str, ...] = ()  # texts of the prompts, to be repeated

    def parser(self) -> ChatParser:
        return ChatParser(self.start, self.tools)

    def echoed(self, choice: int) -> str:
        """What a completion begins with."""
        return self.echo[choice // self.answers] if self.echo else ""


class Assembler(Protocol[T_co]):
    whole: ClassVar[bool]  # nothing comes before the end: events may be kept until then

    @property
    def lazy(self) -> bool:
        """Whether an answer may come as one piece: its text is then decoded at its end."""
        ...

    def put(self, event: Piece | Finished) -> Iterable[T_co]: ...


@dataclass(slots=True)
class Totals:
    """Usage over all prompts of a reply; timings are of the prompt that finished last."""

    left: int
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    drafted_tokens: int = 0
    drafted_right: int = 0
    reasoning_tokens: int = 0
    timings: api.Timings | None = None

    def add(self, event: Finished) -> bool:
        """Note a finished prompt; True when it was the last."""
        self.left -= 1
        self.prompt_tokens += event.prompt_tokens
        self.completion_tokens += event.completion_tokens
        self.cached_tokens += event.cached_tokens
        self.drafted_tokens += event.drafted_tokens
        self.drafted_right += event.drafted_right
        self.timings = event.timings
        return self.left == 0

    def usage(self) -> api.Usage:
        total = self.prompt_tokens + self.completion_tokens
        return api.Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            total_tokens=total,
            prompt_tokens_details=api.PromptTokensDetails(cached_tokens=self.cached_tokens),
            completion_tokens_details=api.CompletionTokensDetails(
                reasoning_tokens=self.reasoning_tokens,
                accepted_prediction_tokens=self.drafted_right,
                rejected_prediction_tokens=self.drafted_tokens - self.drafted_right,
            ),
        )


@dataclass(slots=True)
class Heard:
    """One answer of a chat, as it is taken apart: what is not told yet, and what is known."""

    parser: ChatParser
    samples: list[Sample] = field(default_factory=list)
    thought: int = 0  # tokens
    ids: list[str] = field(default_factory=list)  # of the calls

    def add(self, piece: Piece) -> Parsed:
        """Take a piece; return what it turned out to be."""
        self.samples += piece.samples
        thinking = self.parser.thinking
        parsed = self.parser.put(piece.text)
        if thinking or self.parser.thinking:
            self.thought += len(piece.samples)
        if piece.finish_reason is not None:
            rest = self.parser.finish()
            parsed.thought += rest.thought
            parsed.speech += rest.speech
            parsed.calls += rest.calls
        self.ids += [_call_id() for call in parsed.calls if call.name is not None]
        return parsed

    def reason(self, piece: Piece) -> api.FinishReason | None:
        if piece.finish_reason == "stop" and self.parser.called:
            return "tool_calls"
        return piece.finish_reason


def _call_id() -> str:
    """Nine letters and digits: some templates take no other."""
    return "c" + secrets.token_hex(ID_LENGTH // 2)


class ChatChunks:
    """A chat answer as a stream: first the role, then what comes, then the finish reason."""

    whole: ClassVar[bool] = False
    lazy: ClassVar[bool] = False

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._heard: dict[int, Heard] = {}
        self._totals = Totals(len(reply.prompts))

    def put(self, event: Piece | Finished) -> Iterable[api.ChatCompletionChunk]:
        if isinstance(event, Finished):
            if self._totals.add(event) and self._reply.usage_chunk:
                self._totals.reasoning_tokens = sum(h.thought for h in self._heard.values())
                yield self._chunk([], self._totals.usage(), self._totals.timings)
            return
        if event.choice not in self._heard:
            self._heard[event.choice] = Heard(self._reply.parser())
            opening = api.ChoiceDelta(role="assistant", content="")
            yield self._chunk([api.ChunkChoice(index=event.choice, delta=opening)])
        heard = self._heard[event.choice]
        parsed = heard.add(event)
        if not parsed.empty or event.finish_reason:
            yield self._chunk([self._choice(event, heard, parsed)])

    def _choice(self, event: Piece, heard: Heard, parsed: Parsed) -> api.ChunkChoice:
        reply, samples, heard.samples = self._reply, heard.samples, []
        return api.ChunkChoice(
            index=event.choice,
            delta=api.ChoiceDelta(
                content=parsed.speech or None,
                reasoning_content=parsed.thought or None,
                tool_calls=[_call_delta(call, heard.ids) for call in parsed.calls] or None,
            ),
            finish_reason=heard.reason(event),
            shortened=True if event.shortened and event.finish_reason else None,
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
            system_fingerprint=reply.fingerprint,
            choices=choices,
            usage=usage,
            timings=timings,
        )


def _call_delta(call: CallPiece, ids: list[str]) -> api.ToolCallDelta:
    if call.name is None:
        arguments = api.FunctionDelta(arguments=call.arguments)
        return api.ToolCallDelta(index=call.index, function=arguments)
    begin = api.FunctionDelta(name=call.name, arguments="")
    return api.ToolCallDelta(index=call.index, id=ids[call.index], type="function", function=begin)


class CompletionChunks:
    """A text completion as a stream."""

    whole: ClassVar[bool] = False
    lazy: ClassVar[bool] = False

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._pending: dict[int, Written] = {}
        self._begun: set[int] = set()
        self._totals = Totals(len(reply.prompts))

    def put(self, event: Piece | Finished) -> Iterable[api.Completion]:
        if isinstance(event, Finished):
            if self._totals.add(event) and self._reply.usage_chunk:
                yield completion(self._reply, [], self._totals)
            return
        if event.choice not in self._begun:
            self._begun.add(event.choice)
            self._pending[event.choice] = Written(self._reply.echoed(event.choice))
        written = self._pending.setdefault(event.choice, Written())
        written.add(event)
        if written.text or event.finish_reason:
            yield completion(self._reply, [written.completion_choice(self._reply, event.choice)])
            del self._pending[event.choice]


@dataclass(slots=True)
class Written:
    """What of one completion has arrived."""

    text: str = ""
    samples: list[Sample] = field(default_factory=list)
    finish_reason: api.FinishReason | None = None
    shortened: bool = False

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.samples += piece.samples
        self.finish_reason = piece.finish_reason
        self.shortened = piece.shortened and piece.finish_reason is not None

    def completion_choice(self, reply: Reply, index: int) -> api.CompletionChoice:
        prompt = reply.prompts[index // reply.answers]
        return api.CompletionChoice(
            index=index,
            text=self.text,
            finish_reason=self.finish_reason,
            logprobs=completion_logprobs(reply.tokenizer, self.samples) if reply.logprobs else None,
            prompt_token_ids=list(prompt) if reply.token_ids else None,
            token_ids=[sample.token for sample in self.samples] if reply.token_ids else None,
            shortened=self.shortened or None,
        )


class WholeChat:
    """One ChatCompletion, when all is there."""

    whole: ClassVar[bool] = True

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._totals = Totals(len(reply.prompts))
        self._heard = [Told(Heard(reply.parser())) for _ in range(reply.answers)]

    @property
    def lazy(self) -> bool:
        """Thoughts and calls are told apart, and thoughts counted, token by token."""
        return self._reply.start is Start.SPEECH and self._reply.tools is None

    def put(self, event: Piece | Finished) -> Iterable[api.ChatCompletion]:
        if isinstance(event, Piece):
            self._heard[event.choice].add(event)
            return
        self._totals.add(event)
        reply, timings = self._reply, self._totals.timings
        assert timings is not None, "finished without timings"
        self._totals.reasoning_tokens = sum(told.heard.thought for told in self._heard)
        yield api.ChatCompletion(
            id=reply.id,
            model=reply.model,
            created=reply.created,
            system_fingerprint=reply.fingerprint,
            choices=[told.choice(reply, i) for i, told in enumerate(self._heard)],
            usage=self._totals.usage(),
            timings=timings,
        )


@dataclass(slots=True)
class Told:
    """A chat's answer put together again."""

    heard: Heard
    thought: str = ""
    speech: str = ""
    calls: list[api.FunctionCall] = field(default_factory=list)
    finish_reason: api.FinishReason | None = None
    shortened: bool = False

    def add(self, piece: Piece) -> None:
        parsed = self.heard.add(piece)
        self.thought += parsed.thought
        self.speech += parsed.speech
        for call in parsed.calls:
            if call.name is not None:
                self.calls.append(api.FunctionCall(name=call.name, arguments=""))
            self.calls[-1].arguments += call.arguments
        self.finish_reason = self.heard.reason(piece)
        self.shortened = piece.shortened

    def choice(self, reply: Reply, index: int) -> api.Choice:
        assert self.finish_reason is not None, "an answer without an end"
        calls = [api.ToolCall(id=id, function=call) for id, call in zip(self.heard.ids, self.calls)]
        samples = self.heard.samples
        return api.Choice(
            index=index,
            message=api.Message(
                role="assistant",
                content=None if calls and not self.speech else self.speech,
                refusal=None,
                reasoning_content=self.thought or None,
                tool_calls=calls or None,
            ),
            finish_reason=self.finish_reason,
            shortened=self.shortened or None,
            logprobs=chat_logprobs(reply.tokenizer, samples) if reply.logprobs else None,
        )


class WholeCompletion:
    """One Completion, when all is there."""

    whole: ClassVar[bool] = True
    lazy: ClassVar[bool] = True

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._totals = Totals(len(reply.prompts))
        count = len(reply.prompts) * reply.answers
        self._written = [Written(reply.echoed(i)) for i in range(count)]

    def put(self, event: Piece | Finished) -> Iterable[api.Completion]:
        if isinstance(event, Piece):
            self._written[event.choice].add(event)
        elif self._totals.add(event):
            choices = [w.completion_choice(self._reply, i) for i, w in enumerate(self._written)]
            yield completion(self._reply, choices, self._totals)


def completion(
    reply: Reply, choices: list[api.CompletionChoice], totals: Totals | None = None
) -> api.Completion:
    return api.Completion(
        id=reply.id,
        model=reply.model,
        created=reply.created,
        system_fingerprint=reply.fingerprint,
        choices=choices,
        usage=totals.usage() if totals else None,
        timings=totals.timings if totals else None,
    )
