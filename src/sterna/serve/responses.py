"""OpenAI's responses: the same answers as chat completions, as items and typed events.

In: the chunks of a chat answer. Out: a response's events, or the response that they add up to:
whole answers and streams come out of one writer, so they cannot differ.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec

from sterna.engine.api import ChatCompletionChunk, ChunkChoice, ToolCallDelta, Usage
from sterna.serve.errors import HttpError, body_of
from sterna.serve.exchange import Exchange, decode, event_of
from sterna.serve.generate import OBJECT, Finished, adapter_of, count, counting
from sterna.serve.reply import ENCODER
from sterna.serve.responses_input import chat_fields
from sterna.serve.responses_schema import (
    HARMLESS,
    REFUSED,
    CallItem,
    Incomplete,
    InputDetails,
    Logprob,
    MessageItem,
    OutputDetails,
    OutputItem,
    OutputText,
    ReasoningItem,
    ReasoningText,
    ResponseError,
    ResponseObject,
    ResponsesRequest,
    ResponseUsage,
    Status,
    StreamEvent,
    TextOptions,
)
from sterna.serve.state import State

_REQUEST = msgspec.json.Decoder(ResponsesRequest)
_ECHOED = (
    *("instructions", "max_output_tokens", "prompt_cache_key", "reasoning", "safety_identifier"),
    *("temperature", "top_logprobs", "top_p", "user"),
)


async def responses(exchange: Exchange, state: State) -> None:
    request = read(await exchange.read(OBJECT))
    name, engine = state.models.writer(request.model)
    writer = Writer(empty(request, name))
    finished = counting(state, name)
    asked = {"stream": True, "stream_options": {"include_usage": True}, **chat_fields(request)}
    asked["model"] = adapter_of(name, engine)
    create: Any = engine.chat.completions.create
    async with exchange.watched(), await create(**asked) as chunks:
        if request.stream:
            await exchange.send_events(_framed(_events(chunks, writer, finished)))
            return
        async for _ in _events(chunks, writer, finished):
            pass
    await exchange.send_json(writer.response)


def read(body: dict[str, object]) -> ResponsesRequest:
    """HttpError names the field that is unknown, unsupported or wrong."""
    for name, reason in REFUSED.items():
        value = body.pop(name, None)
        if value is not None and value != HARMLESS.get(name):
            raise HttpError(400, f"{name} is not supported: {reason}", name)
    if body.get("store"):
        raise HttpError(400, "store is not supported: nothing is stored; send false", "store")
    present = {name: value for name, value in body.items() if value is not None}
    return decode(_REQUEST, ENCODER.encode(present))


def empty(request: ResponsesRequest, model: str) -> ResponseObject:
    """The response before anything is said."""
    choice = msgspec.to_builtins(request.tool_choice)
    return ResponseObject(
        id=_id("resp"),
        created_at=int(time.time()),
        model=model,
        status="in_progress",
        output=[],
        parallel_tool_calls=request.parallel_tool_calls is not False,
        text=request.text or TextOptions(),
        tool_choice="auto" if choice is None else choice,
        tools=request.tools or [],
        metadata=request.metadata or {},
        **{name: getattr(request, name) for name in _ECHOED},
    )


async def _events(
    chunks: AsyncIterator[ChatCompletionChunk], writer: Writer, finished: Finished
) -> AsyncIterator[StreamEvent]:
    try:
        for event in writer.begin():
            yield event
        async for chunk in chunks:
            for event in writer.put(chunk):
                yield event
            count(chunk, finished)
        for event in writer.end():
            yield event
    except Exception as error:
        yield writer.fail(error)
        raise


async def _framed(events: AsyncIterator[StreamEvent]) -> AsyncIterator[bytes]:
    async for event in events:
        yield event_of(ENCODER.encode(event), event.type.encode())


class Writer:
    """Collects an answer. `response` is what is known so far, and the whole at the end."""

    def __init__(self, response: ResponseObject) -> None:
        self.response = response
        self._number = 0
        self._open: OutputItem | None = None
        self._call = -1  # the index of the tool call that is open
        self._finish: str | None = None

    def begin(self) -> Iterator[StreamEvent]:
        yield self._event("response.created", response=self._snapshot())
        yield self._event("response.in_progress", response=self._snapshot())

    def put(self, chunk: ChatCompletionChunk) -> Iterator[StreamEvent]:
        self.response.system_fingerprint = chunk.system_fingerprint
        for choice in chunk.choices:
            yield from self._choice(choice)
        if chunk.usage is not None:
            self.response.usage = _usage(chunk.usage)

    def end(self) -> Iterator[StreamEvent]:
        cut = self._finish == "length"
        if not self.response.output:  # an answer of nothing is a message all the same
            yield from self._open_message()
        yield from self._close("incomplete" if cut else "completed")
        self.response.status = "incomplete" if cut else "completed"
        if cut:
            self.response.incomplete_details = Incomplete(reason="max_output_tokens")
        yield self._event(f"response.{self.response.status}", response=self.response)

    def fail(self, error: Exception) -> StreamEvent:
        self.response.status = "failed"
        message = body_of(error).error.message
        self.response.error = ResponseError(code="server_error", message=message)
        return self._event("response.failed", response=self.response)

    def _choice(self, choice: ChunkChoice) -> Iterator[StreamEvent]:
        delta = choice.delta
        if delta.reasoning_content:
            yield from self._think(delta.reasoning_content)
        if delta.content:
            found = choice.logprobs.content if choice.logprobs else []
            logprobs = [msgspec.convert(t, Logprob, from_attributes=True) for t in found]
            yield from self._say(delta.content, logprobs)
        for call in delta.tool_calls or ():
            yield from self._ask(call)
        self._finish = choice.finish_reason or self._finish

    def _think(self, text: str) -> Iterator[StreamEvent]:
        if not isinstance(self._open, ReasoningItem):
            yield from self._close("completed")
            item = ReasoningItem(id=_id("rs"), status="in_progress", content=[])
            yield from self._add(item)
            item.content.append(ReasoningText(text=""))
            yield self._part("response.content_part.added", item.content[0])
        assert isinstance(self._open, ReasoningItem), "just opened"
        self._open.content[0].text += text
        yield self._piece("response.reasoning_text.delta", delta=text)

    def _say(self, text: str, logprobs: list[Logprob]) -> Iterator[StreamEvent]:
        if not isinstance(self._open, MessageItem):
            yield from self._open_message()
        assert isinstance(self._open, MessageItem), "just opened"
        self._open.content[0].text += text
        self._open.content[0].logprobs += logprobs
        yield self._piece("response.output_text.delta", delta=text, logprobs=logprobs)

    def _open_message(self) -> Iterator[StreamEvent]:
        yield from self._close("completed")
        item = MessageItem(id=_id("msg"), status="in_progress", content=[])
        yield from self._add(item)
        item.content.append(OutputText(text=""))
        yield self._part("response.content_part.added", item.content[0])

    def _ask(self, call: ToolCallDelta) -> Iterator[StreamEvent]:
        function = call.function
        if call.index != self._call or not isinstance(self._open, CallItem):
            yield from self._close("completed")
            self._call = call.index
            name = function.name if function and function.name else ""
            item = CallItem(
                id=_id("fc"), call_id=call.id or "", name=name, arguments="", status="in_progress"
            )
            yield from self._add(item)
        assert isinstance(self._open, CallItem), "just opened"
        if function and function.arguments:
            self._open.arguments += function.arguments
            yield self._event(
                "response.function_call_arguments.delta",
                item_id=self._open.id,
                output_index=self._index,
                delta=function.arguments,
            )

    def _add(self, item: OutputItem) -> Iterator[StreamEvent]:
        self.response.output.append(item)
        self._open = item
        added = msgspec.structs.replace(item)
        yield self._event(
            "response.output_item.added", output_index=self._index, item=_without_parts(added)
        )

    def _close(self, status: Status) -> Iterator[StreamEvent]:
        item = self._open
        if item is None:
            return
        if isinstance(item, CallItem):
            yield self._event(
                "response.function_call_arguments.done",
                item_id=item.id,
                output_index=self._index,
                name=item.name,
                arguments=item.arguments,
            )
        else:
            yield from self._close_part(item)
        item.status = status
        yield self._event("response.output_item.done", output_index=self._index, item=item)
        self._open = None

    def _close_part(self, item: ReasoningItem | MessageItem) -> Iterator[StreamEvent]:
        part = item.content[0]
        if isinstance(part, OutputText):
            done = self._piece("response.output_text.done", text=part.text, logprobs=part.logprobs)
        else:
            done = self._piece("response.reasoning_text.done", text=part.text)
        yield done
        yield self._part("response.content_part.done", part)

    @property
    def _index(self) -> int:
        return len(self.response.output) - 1

    def _part(self, kind: str, part: OutputText | ReasoningText) -> StreamEvent:
        return self._piece(kind, part=msgspec.structs.replace(part))

    def _piece(self, kind: str, **fields: object) -> StreamEvent:
        assert self._open is not None, "a piece of nothing"
        return self._event(
            kind, item_id=self._open.id, output_index=self._index, content_index=0, **fields
        )

    def _event(self, kind: str, **fields: object) -> StreamEvent:
        self._number += 1
        return StreamEvent(type=kind, sequence_number=self._number - 1, **fields)  # type: ignore[arg-type]

    def _snapshot(self) -> ResponseObject:
        return msgspec.structs.replace(self.response, output=list(self.response.output))


def _without_parts(item: OutputItem) -> OutputItem:
    if not isinstance(item, CallItem):
        item.content = []
    return item


def _usage(usage: Usage) -> ResponseUsage:
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputDetails(cached_tokens=usage.prompt_tokens_details.cached_tokens),
        output_tokens=usage.completion_tokens,
        output_tokens_details=OutputDetails(
            reasoning_tokens=usage.completion_tokens_details.reasoning_tokens
        ),
        total_tokens=usage.total_tokens,
    )


def _id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(16)}"
