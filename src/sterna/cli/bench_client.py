"""One streamed chat request to an OpenAI-compatible server, with the time of all that comes back.

In: an address and a body. Out: a Sample. HTTP/1.1 over asyncio, so that a thousand requests at once
cost one thread. Knows no statistics.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urlsplit

import h11

from sterna.base.errors import Unavailable, UsageError

_READ = 65536


@dataclass(slots=True)
class Sample:
    """One request. Times are those of `time.perf_counter`; `error`: why it is no measurement."""

    begun: float
    ended: float = 0.0
    pieces: list[float] = field(default_factory=list)  # when each piece of text came
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Server:
    """Where to ask, and as whom."""

    url: SplitResult
    key: str | None = None

    @property
    def address(self) -> tuple[str, int]:
        default = 443 if self.url.scheme == "https" else 80
        return self.url.hostname or "", self.url.port or default

    def path(self, name: str) -> str:
        base = self.url.path.rstrip("/").removesuffix("/v1")
        return f"{base}/v1/{name}"


def server(url: str, key: str | None) -> Server:
    """UsageError for what is no address of a server."""
    parts = urlsplit(url)
    try:
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        valid = False
    if not valid or parts.query or parts.fragment:
        raise UsageError(f"{url!r} is no address of a server; give one like http://localhost:8000")
    if key is not None and not (key.isascii() and key.isprintable()):
        raise UsageError("the API key has characters that cannot be sent in a header")
    return Server(parts, key)


async def first_model(to: Server) -> str:
    """The name of the first model that is served. Unavailable where there is none to be had."""
    connection = Connection(to)
    try:
        status = await connection.send("GET", "models", None)
        body = b"".join([data async for data in connection.body()])
        found = json.loads(body)
        if status == 200:
            return str(found["data"][0]["id"])
        raise Unavailable(f"{to.url.geturl()} lists no models: {_refusal(status, body)}")
    except (OSError, h11.ProtocolError, EOFError) as error:
        raise Unavailable(f"{to.url.geturl()} cannot be reached: {_reason(error)}") from None
    except (ValueError, LookupError, TypeError):
        raise Unavailable(
            f"{to.url.geturl()} lists no models as OpenAI's API does; name one with --served-model"
        ) from None
    finally:
        connection.close()


async def ask(
    connection: Connection, body: Mapping[str, Any], begun: float, seconds: float
) -> Sample:
    """One request over a connection, which is then free for the next; failures are noted."""
    sample = Sample(begun)
    try:
        async with asyncio.timeout(seconds):
            await _exchange(connection, body, sample)
    except TimeoutError:
        sample.error = f"no answer within {seconds:g} s"
    except (OSError, h11.ProtocolError, EOFError) as error:
        sample.error = _reason(error)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        sample.error = f"an answer that is none of OpenAI's: {error}"
    sample.ended = time.perf_counter()
    if sample.error is not None:
        connection.close()
    return sample


class Connection:
    """Kept open from one request to the next, as clients do; opened when it is needed."""

    def __init__(self, to: Server) -> None:
        self._to = to
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._http = h11.Connection(h11.CLIENT)

    async def send(self, method: str, name: str, body: bytes | None) -> int:
        """Send a request; the status of its answer."""
        reused = self._streams is not None
        try:
            return await self._send(method, name, body)
        except (ConnectionError, EOFError):
            if not reused:
                raise
            self.close()  # the server closed it while it was idle: that is its right
            return await self._send(method, name, body)

    async def body(self) -> AsyncIterator[bytes]:
        """The answer's body as it comes; then the connection can be used again."""
        while not isinstance(event := await self._event(), h11.EndOfMessage):
            if isinstance(event, h11.Data):
                yield bytes(event.data)
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        else:
            self.close()

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
        self._streams, self._http = None, h11.Connection(h11.CLIENT)

    async def _send(self, method: str, name: str, body: bytes | None) -> int:
        if self._streams is None:
            secure = ssl.create_default_context() if self._to.url.scheme == "https" else None
            self._streams = await asyncio.open_connection(*self._to.address, ssl=secure)
        host, port = self._to.address
        headers = [("host", f"[{host}]:{port}" if ":" in host else f"{host}:{port}")]
        if self._to.key is not None:
            headers.append(("authorization", f"Bearer {self._to.key}"))
        if body is not None:
            headers += [("content-type", "application/json"), ("content-length", str(len(body)))]
        request = h11.Request(method=method, target=self._to.path(name), headers=headers)
        data = self._http.send(request) or b""
        data += (self._http.send(h11.Data(body)) or b"") if body is not None else b""
        self._streams[1].write(data + (self._http.send(h11.EndOfMessage()) or b""))
        await self._streams[1].drain()
        while not isinstance(event := await self._event(), h11.Response):
            pass
        return int(event.status_code)

    async def _event(self) -> h11.Event:
        assert self._streams is not None, "nothing was sent"
        while (event := self._http.next_event()) is h11.NEED_DATA:
            data = await self._streams[0].read(_READ)
            if not data and self._http.their_state is h11.SEND_RESPONSE:
                raise EOFError("the server closed the connection")
            self._http.receive_data(data)
        if isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
            raise EOFError("the server closed the connection")
        assert not isinstance(event, type), "the markers are dealt with above"
        return event


async def _exchange(connection: Connection, body: Mapping[str, Any], sample: Sample) -> None:
    status = await connection.send("POST", "chat/completions", json.dumps(body).encode())
    if status != 200:
        found = b"".join([data async for data in connection.body()])
        sample.error = _refusal(status, found)
        return
    complete = False
    async for event in _events(connection.body()):
        if event == b"[DONE]":
            complete = True
            continue
        chunk = json.loads(event)
        if error := chunk.get("error"):
            raise ValueError(error.get("message"))
        _note(chunk, sample)
    if not complete:
        sample.error = "the answer broke off"


def _note(chunk: Mapping[str, Any], sample: Sample) -> None:
    deltas = [choice.get("delta", {}) for choice in chunk.get("choices", ())]
    if any(delta.get("content") or delta.get("reasoning_content") for delta in deltas):
        sample.pieces.append(time.perf_counter())
    if usage := chunk.get("usage"):
        sample.prompt_tokens = int(usage["prompt_tokens"])
        sample.output_tokens = int(usage["completion_tokens"])
        details = usage.get("prompt_tokens_details") or {}
        sample.cached_tokens = int(details.get("cached_tokens") or 0)


async def _events(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of each server-sent event, in however many pieces it comes."""
    pending = b""
    async for data in body:
        *whole, pending = (pending + data).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in whole:
            for line in event.split(b"\n"):
                if line.startswith(b"data:"):
                    yield line[5:].strip()


def _refusal(status: int, body: bytes) -> str:
    try:
        return f"status {status}: {json.loads(body)['error']['message']}"
    except (ValueError, LookupError, TypeError):
        return f"status {status}"


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
