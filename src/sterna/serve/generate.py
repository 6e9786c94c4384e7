"""Chat and text completions: a checked body to the engine, its answer to the client.

The fields themselves are the engine's (`engine.api_request`), as are the results. Here: which
model, whole or streamed, how it ended for the metrics.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Any

import msgspec

from sterna.engine.api import ChatCompletion, ChatCompletionChunk, Completion
from sterna.engine.api_request import (
    CHAT_REFUSED,
    COMPLETION_REFUSED,
    ChatRequest,
    CompletionRequest,
    read_chat,
    read_completion,
)
from sterna.engine.engine import AsyncEngine
from sterna.engine.stream import AsyncStream
from sterna.serve.errors import HttpError
from sterna.serve.exchange import Exchange, event_of
from sterna.serve.reply import ENCODER
from sterna.serve.state import State

Body = dict[str, Any]
Finished = Callable[[str], None]  # told the reason for which an answer ended
Whole = ChatCompletion | Completion
Chunk = ChatCompletionChunk | Completion

OBJECT = msgspec.json.Decoder(Body)
DONE = event_of(b"[DONE]")
_CHAT_FIELDS = frozenset({*ChatRequest.__struct_fields__, *CHAT_REFUSED})
_COMPLETION_FIELDS = frozenset({*CompletionRequest.__struct_fields__, *COMPLETION_REFUSED})


async def chat_completions(exchange: Exchange, state: State) -> None:
    body = await exchange.read(OBJECT)
    _check_names(body, _CHAT_FIELDS, read_chat, "messages")
    name, engine = state.models.writer(body.pop("model", None))
    body["model"] = adapter_of(name, engine)
    await _answer(exchange, counting(state, name), engine.chat.completions.create, body)


async def completions(exchange: Exchange, state: State) -> None:
    body = await exchange.read(OBJECT)
    _check_names(body, _COMPLETION_FIELDS, read_completion, "prompt")
    name, engine = state.models.writer(body.pop("model", None))
    body["model"] = adapter_of(name, engine)
    await _answer(exchange, counting(state, name), engine.completions.create, body)


def adapter_of(name: str, engine: AsyncEngine) -> str | None:
    """The model to ask the engine for: a server may have other names for it, not for adapters."""
    return name if name in engine.adapters else None


def _check_names(
    body: Body, known: frozenset[str], read: Callable[[Mapping[str, Any]], object], needed: str
) -> None:
    """The body is about to become keywords: no other names may get there."""
    if not body.keys() <= known:
        read(body)  # says which, and what is possible
    if body.get(needed) is None:
        raise HttpError(400, f"{needed} is missing", needed)


def counting(state: State, model: str) -> Finished:
    return partial(state.metrics.finished, model)


async def _answer(exchange: Exchange, finished: Finished, create: Any, body: Body) -> None:
    stream = body.pop("stream", None)
    if not isinstance(stream, bool | None):
        raise HttpError(400, f"stream is {stream!r}, possible are true and false", "stream")
    async with exchange.watched():
        if stream:
            async with await create(stream=True, **body) as chunks:
                await exchange.send_events(_events(chunks, finished))
            return
        result: Whole = await create(stream=False, **body)
    for choice in result.choices:
        finished(choice.finish_reason or "stop")
    await exchange.send_json(result)


async def _events(chunks: AsyncStream[Any], finished: Finished) -> AsyncIterator[bytes]:
    """Chunks that came together go out together: so a reader that is behind catches up."""
    while several := await chunks.several():
        for chunk in several:
            count(chunk, finished)
        yield b"".join([event_of(ENCODER.encode(chunk)) for chunk in several])
    yield DONE


def count(chunk: Chunk, finished: Finished) -> None:
    """Tell of the answers that end with this chunk."""
    for choice in chunk.choices:
        if choice.finish_reason is not None:
            finished(choice.finish_reason)
