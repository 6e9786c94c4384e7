"""Chat and text completions: a checked body to the engine, its answer to the client.

The fields themselves are the engine's (`engine.api_request`), as are the results. Here: which
model, whole or streamed, what it took for the metrics.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from sterna.engine.api import ChatCompletion, ChatCompletionChunk, Completion, Timings, Usage
from sterna.engine.api_request import (
    CHAT_REFUSED,
    COMPLETION_REFUSED,
    ChatRequest,
    CompletionRequest,
    read_chat,
    read_completion,
)
from sterna.engine.stream import AsyncStream
from sterna.serve.errors import HttpError
from sterna.serve.exchange import Exchange, event_of
from sterna.serve.reply import ENCODER
from sterna.serve.state import State

Body = dict[str, Any]
Whole = ChatCompletion | Completion
Chunk = ChatCompletionChunk | Completion

OBJECT = msgspec.json.Decoder(Body)
DONE = event_of(b"[DONE]")
_CHAT_FIELDS = frozenset({*ChatRequest.__struct_fields__, *CHAT_REFUSED})
_COMPLETION_FIELDS = frozenset({*CompletionRequest.__struct_fields__, *COMPLETION_REFUSED})


@dataclass(slots=True)
class Call:
    """A request under way: whose counters it belongs to, and what is known for them so far."""

    model: str
    state: State
    began: float = field(default_factory=lambda: asyncio.get_running_loop().time())
    reasons: list[str] = field(default_factory=list)

    def finish(self, usage: Usage, timings: Timings) -> None:
        seconds = asyncio.get_running_loop().time() - self.began
        self.state.metrics.finished(self.model, usage, timings, seconds, self.reasons)


async def chat_completions(exchange: Exchange, state: State) -> None:
    body = await exchange.read(OBJECT)
    _check_names(body, _CHAT_FIELDS, read_chat, "messages")
    name, engine = state.models.choose(body.pop("model", None))
    await _answer(exchange, Call(name, state), engine.chat.completions.create, body)


async def completions(exchange: Exchange, state: State) -> None:
    body = await exchange.read(OBJECT)
    _check_names(body, _COMPLETION_FIELDS, read_completion, "prompt")
    name, engine = state.models.choose(body.pop("model", None))
    await _answer(exchange, Call(name, state), engine.completions.create, body)


def _check_names(
    body: Body, known: frozenset[str], read: Callable[[Mapping[str, Any]], object], needed: str
) -> None:
    """The body is about to become keywords: no other names may get there."""
    if not body.keys() <= known:
        read(body)  # says which, and what is possible
    if body.get(needed) is None:
        raise HttpError(400, f"{needed} is missing", needed)


async def _answer(exchange: Exchange, call: Call, create: Any, body: Body) -> None:
    stream = body.pop("stream", None)
    if not isinstance(stream, bool | None):
        raise HttpError(400, f"stream is {stream!r}, possible are true and false", "stream")
    if stream:
        await _stream(exchange, call, create, body)
        return
    async with exchange.watched():
        result: Whole = await create(stream=False, **body)
    call.reasons += [choice.finish_reason or "stop" for choice in result.choices]
    assert result.usage is not None, "a whole answer without usage"
    assert result.timings is not None, "a whole answer without timings"
    call.finish(result.usage, result.timings)
    await exchange.send_json(result)


async def _stream(exchange: Exchange, call: Call, create: Any, body: Body) -> None:
    asked = body.pop("stream_options", None)
    usage = isinstance(asked, dict) and asked.get("include_usage") is True
    if isinstance(asked, dict) or asked is None:  # anything else is for the engine to refuse
        asked = {**(asked or {}), "include_usage": True}  # the metrics want it in any case
    async with (
        exchange.watched(),
        await create(stream=True, stream_options=asked, **body) as chunks,
    ):
        await exchange.send_events(_events(chunks, call, usage))


async def _events(chunks: AsyncStream[Any], call: Call, usage: bool) -> AsyncIterator[bytes]:
    """Chunks that came together go out together: so a reader that is behind catches up."""
    while several := await chunks.several():
        yield b"".join(_event(chunk, call, usage) for chunk in several)
    yield DONE


def _event(chunk: Chunk, call: Call, usage: bool) -> bytes:
    call.reasons += [c.finish_reason for c in chunk.choices if c.finish_reason is not None]
    if not chunk.choices:
        assert chunk.usage is not None, "a last chunk without usage"
        assert chunk.timings is not None, "a last chunk without timings"
        call.finish(chunk.usage, chunk.timings)
        if not usage:
            return b""
    return event_of(ENCODER.encode(chunk))
