"""Answers over ASGI: JSON in one piece, or an error. Knows no engine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import msgspec

from sterna.serve.errors import HttpError, body_of, status_of

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

ENCODER = msgspec.json.Encoder()
JSON = b"application/json"


async def send_json(send: Send, value: Any, status: int = 200, headers: Headers = ()) -> None:
    await send_bytes(send, ENCODER.encode(value), JSON, status, headers)


async def send_error(send: Send, error: BaseException) -> None:
    headers = error.headers if isinstance(error, HttpError) else ()
    await send_json(send, body_of(error), status_of(error), headers)


async def send_bytes(
    send: Send, body: bytes, kind: bytes, status: int = 200, headers: Headers = ()
) -> None:
    """One whole answer."""
    length = (b"content-length", b"%d" % len(body))
    start = [(b"content-type", kind), length, *headers]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body})
