"""One request and its answer, as routes see them.

In: ASGI's scope, receive and send. Out: a checked body, and an answer whole or as a stream. A
client that hangs up cancels the route's work wherever it is: while the body arrives, while the
engine computes, in the midst of a stream. Knows no engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from functools import cached_property
from typing import Any, TypeVar

import msgspec

from sterna.serve.errors import HttpError, body_of
from sterna.serve.reply import ENCODER, Message, Receive, Scope, Send, send_error, send_json

T = TypeVar("T")

EVENT_STREAM = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class Gone(Exception):
    """The client hung up; nobody is there to be told anything."""


class Exchange:
    """`gone`: the client hung up. `status`: of the answer that began, 0 before."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, max_body: int) -> None:
        self.scope = scope
        self.id = f"req_{secrets.token_hex(12)}"
        self.status = 0
        self.gone = False
        self._receive = receive
        self._send = send
        self._max_body = max_body

    @cached_property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.scope["headers"])

    async def read(self, decoder: msgspec.json.Decoder[T]) -> T:
        """The body as the decoder's type; HttpError says what is wrong with it."""
        self._check_kind()
        return decode(decoder, await self._body())

    async def send_json(self, value: Any, status: int = 200) -> None:
        self.status = status
        await send_json(self._message, value, status)

    async def send_error(self, error: BaseException) -> None:
        await send_error(self._message, error)

    async def _message(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"].append((b"x-request-id", self.id.encode()))
        await self._send(message)

    async def send_bytes(self, body: bytes, headers: tuple[tuple[bytes, bytes], ...]) -> None:
        length = (b"content-length", b"%d" % len(body))
        start = {"type": "http.response.start", "status": 200, "headers": [*headers, length]}
        await self._message(start)
        await self._message({"type": "http.response.body", "body": body})

    async def send_events(self, events: AsyncIterator[bytes]) -> None:
        """Server-sent events, each already framed; one that fails ends the stream with an error.

        Nothing runs ahead of the reader but what the connection buffers: the next event is taken
        when the last one was accepted.
        """
        start = {"type": "http.response.start", "status": 200, "headers": list(EVENT_STREAM)}
        await self._message(start)
        try:
            async for event in events:
                await self._send({"type": "http.response.body", "body": event, "more_body": True})
        except (Exception, asyncio.CancelledError) as error:
            if not self.gone:
                failed = event_of(ENCODER.encode(body_of(told(error))))
                await self._send({"type": "http.response.body", "body": failed, "more_body": False})
            raise
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Cancel what runs inside when the client hangs up. The body must have been read."""
        watcher = asyncio.create_task(self._watch(asyncio.current_task()))
        try:
            yield
        finally:
            watcher.cancel()

    async def _watch(self, work: asyncio.Task[Any] | None) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        assert work is not None, "nothing to cancel"
        work.cancel()

    def _check_kind(self) -> None:
        kind = self.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            raise HttpError(
                415,
                f"the body is of type {kind.decode('latin-1')!r}; send JSON with "
                "Content-Type: application/json",
            )
        if self.headers.get(b"content-encoding", b"identity") != b"identity":
            raise HttpError(415, "the body is compressed; send it as it is")

    async def _body(self) -> bytes:
        length = self.headers.get(b"content-length", b"0")
        self._check_size(int(length) if length.isdigit() else 0)
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.gone = True
                raise Gone
            parts.append(message["body"])
            size += len(parts[-1])
            self._check_size(size)
            if not message["more_body"]:
                return b"".join(parts)

    def _check_size(self, size: int) -> None:
        if size > self._max_body:
            raise HttpError(413, f"the body has more than {self._max_body} bytes")


def told(error: BaseException) -> BaseException:
    """What a client hears of it: a route is cancelled when the server's grace time is over."""
    if isinstance(error, asyncio.CancelledError):
        return HttpError(503, "the server is stopping", code="stopping")
    return error


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """HttpError 400 for what is not JSON, or not of the decoder's type, with the field's name."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise HttpError(400, f"the request is wrong: {error}", param=_field(str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HttpError(400, f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise HttpError(400, "the body is nested too deeply") from None


def _field(message: str) -> str | None:
    """The field that a message of msgspec is about: "... - at `$.stop[0]`"."""
    unknown = message.partition("unknown field `")[2].partition("`")[0]
    at = message.partition("`$.")[2].partition("`")[0]
    return ".".join(name for name in (at, unknown) if name) or None


def event_of(data: bytes, name: bytes = b"") -> bytes:
    """A server-sent event of one line of data."""
    head = b"event: %b\n" % name if name else b""
    return b"%bdata: %b\n\n" % (head, data)
