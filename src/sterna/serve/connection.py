"""One client's connection: uvicorn's, with limits on how much and how slowly it may send or read.

The head of a request may have so many bytes; head and body must arrive in time; a reader that
takes nothing for a while is cut off, which cancels its answer. So nobody holds memory or a
connection for ever. Knows no route and no engine.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sterna.serve.errors import HttpError, body_of
from sterna.serve.options import ServeOptions
from sterna.serve.reply import ENCODER

_LINGER = 0.5  # seconds between "no more requests" and closing an idle connection
_PHRASES = {408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


def limited(options: ServeOptions) -> type[HttpToolsProtocol]:
    """A protocol class for uvicorn with these limits."""

    class LimitedProtocol(_Limited):
        limits = options

    return LimitedProtocol


class _Limited(HttpToolsProtocol):
    limits: ServeOptions

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._in_head = True
        self._head_bytes = 0
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._reading = _stopped(self._reading)
        self._writing = _stopped(self._writing)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head and self.parser is not None:
            self._head_bytes += len(data)
            self._check_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        if self._reading is None:
            self._expect()

    def on_headers_complete(self) -> None:
        self._head_bytes = len(self.url) + sum(len(n) + len(v) + 4 for n, v in self.headers)
        if self._check_head():
            self._in_head = False
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._in_head:  # else the head was refused, and its body is nobody's
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._reading = _stopped(self._reading)
        if not self._in_head:
            super().on_message_complete()

    def shutdown(self) -> None:
        """Finish the answer under way; an idle client gets a moment for what it has just sent."""
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(_LINGER, self._leave)
        else:
            super().shutdown()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._writing = self.loop.call_later(self.limits.write_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        self._writing = _stopped(self._writing)
        super().resume_writing()

    def _expect(self) -> None:
        """From here on a whole request must arrive in time."""
        self._reading = self.loop.call_later(self.limits.read_timeout, self._too_slow)

    def _check_head(self) -> bool:
        if self._head_bytes <= self.limits.max_head:
            return True
        most = self.limits.max_head
        self._refuse(HttpError(431, f"the request's headers have more than {most} bytes"))
        return False

    def _too_slow(self) -> None:
        self._reading = None
        seconds = self.limits.read_timeout
        self._refuse(HttpError(408, f"the request did not arrive within {seconds:g} seconds"))

    def _refuse(self, error: HttpError) -> None:
        """Say why, if no answer has begun, and hang up."""
        self._reading = _stopped(self._reading)
        if self.transport.is_closing():
            return
        if self._may_answer():
            body = ENCODER.encode(body_of(error))
            head = b"HTTP/1.1 %d %b\r\n" % (error.status, _PHRASES[error.status])
            fields = b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)
            self.transport.write(head + fields + b"connection: close\r\n\r\n" + body)
        self.transport.close()

    def _may_answer(self) -> bool:
        """Whether bytes written now are an answer to the request that is arriving."""
        cycle = self.cycle
        if self._in_head:
            return cycle is None or cycle.response_complete
        return not cycle.response_started

    def _leave(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
        else:
            super().shutdown()


def _stopped(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    if timer is not None:
        timer.cancel()
    return None
