"""Who may ask: the one rule in front of every route.

In: the headers of a request. Out: the application is called, or a refusal is sent. In this order:
the Host must be this server (a page of a stranger's name that resolves here is not), the Origin
must be the server's own page or one that was allowed, and where keys are set one must be shown: as
`Authorization: Bearer KEY`, or as the password of `Authorization: Basic`, which is what a browser
can send for a page. Keys are compared in constant time. Knows no route.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import socket
from dataclasses import dataclass

from sterna.serve.errors import HttpError
from sterna.serve.options import ServeOptions
from sterna.serve.reply import Application, Message, Receive, Scope, Send, send_error

_PREFLIGHT = (
    (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
    (b"access-control-max-age", b"600"),
)
_WANTED, _ALLOWED = b"access-control-request-headers", b"access-control-allow-headers"


@dataclass(frozen=True, slots=True)
class Asked:
    """The headers that decide; None: not sent."""

    host: str | None
    origin: str | None
    authorization: bytes | None


class Guard:
    """Wraps an application."""

    def __init__(self, app: Application, options: ServeOptions) -> None:
        self._app = app
        self._digests = tuple(hashlib.sha256(key.encode()).digest() for key in options.api_keys)
        own = {"localhost", options.host, socket.gethostname(), *options.allow_hosts}
        self._hosts = frozenset(name.lower().strip("[]") for name in own)
        self._origins = frozenset(options.allow_origins)
        challenge = b'Basic realm="sterna"' if options.ui or options.web else b"Bearer"
        self._challenge = ((b"www-authenticate", challenge),)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            asked = _read(scope["headers"])
            self._check_host(asked.host)
            cross = self._check_origin(asked)
        except HttpError as error:
            await send_error(send, error)
            return
        if cross is not None:
            send = _with_headers(send, _cors(cross))
            if scope["method"] == "OPTIONS":
                await _preflight(scope, send)
                return
        try:
            self._check_key(asked.authorization)
        except HttpError as error:
            await send_error(send, error)
            return
        await self._app(scope, receive, send)

    def _check_host(self, host: str | None) -> None:
        name = _name(host) if host else ""
        if name not in self._hosts and not _is_address(name):
            raise HttpError(
                403,
                f"this server is not called {host!r}; call it by its address, or start it with "
                "--allow-host NAME",
                code="host_not_allowed",
            )

    def _check_origin(self, asked: Asked) -> str | None:
        """The other origin that asks, if one does and may."""
        origin = asked.origin
        if origin is None or origin.partition("://")[2] == asked.host:
            return None
        if origin not in self._origins and "*" not in self._origins:
            raise HttpError(
                403,
                f"pages of {origin} may not use this server; it can be started with "
                "--allow-origin URL",
                code="origin_not_allowed",
            )
        return origin

    def _check_key(self, authorization: bytes | None) -> None:
        if not self._digests:
            return
        key = _key(authorization)
        if key is None:
            raise HttpError(
                401,
                "no API key was sent; send one as `Authorization: Bearer KEY`",
                code="missing_api_key",
                headers=self._challenge,
            )
        shown, known = hashlib.sha256(key).digest(), False
        for digest in self._digests:  # all of them: time must not tell which
            known |= hmac.compare_digest(shown, digest)
        if not known:
            raise HttpError(
                401, "the API key is wrong", code="invalid_api_key", headers=self._challenge
            )


def _read(headers: list[tuple[bytes, bytes]]) -> Asked:
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in (b"host", b"origin", b"authorization"):
            if name in found:
                raise HttpError(400, f"the header {name.decode()} was sent twice")
            found[name] = value
    host, origin = found.get(b"host"), found.get(b"origin")
    return Asked(
        host.decode("latin-1").lower() if host is not None else None,
        origin.decode("latin-1").lower() if origin is not None else None,
        found.get(b"authorization"),
    )


def _name(host: str) -> str:
    """The host without its port: "[::1]:80" is "::1"."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_address(name: str) -> bool:
    """An IP address cannot be made to resolve elsewhere, so it names no stranger's page."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _key(authorization: bytes | None) -> bytes | None:
    scheme, _, value = (authorization or b"").partition(b" ")
    if scheme.lower() == b"bearer":
        return value.strip() or None
    if scheme.lower() == b"basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2] or None
        except binascii.Error:
            return None
    return None


def _cors(origin: str) -> tuple[tuple[bytes, bytes], ...]:
    return (
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-expose-headers", b"x-request-id, retry-after"),
        (b"vary", b"origin"),
    )


async def _preflight(scope: Scope, send: Send) -> None:
    wanted = [(_ALLOWED, value) for name, value in scope["headers"] if name == _WANTED]
    headers = [*_PREFLIGHT, *wanted]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _with_headers(send: Send, headers: tuple[tuple[bytes, bytes], ...]) -> Send:
    async def extended(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *headers]}
        await send(message)

    return extended
