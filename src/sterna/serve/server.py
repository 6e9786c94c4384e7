"""Sockets, signals and the end: an application becomes a process that can be stopped politely.

On SIGTERM or Ctrl-C it takes no new connections and finishes what it has accepted, for `grace`
seconds at most; a second Ctrl-C ends it at once. Knows no route.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import threading
from collections.abc import Callable, Generator, Mapping
from types import FrameType
from typing import Any

import uvicorn

try:
    import resource
except ImportError:  # Windows, which has no such limit
    resource = None  # type: ignore[assignment]

from sterna.base.errors import Unavailable
from sterna.serve.app import App
from sterna.serve.connection import limited
from sterna.serve.models import Model
from sterna.serve.options import ServeOptions
from sterna.serve.web import WebApp

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LAST_WORDS = 2.0  # seconds for answers that are cut off to say so


class Server(uvicorn.Server):
    """A server over sockets that are already bound; `run` blocks until it was told to stop."""

    def __init__(self, app: App | WebApp, options: ServeOptions, ready: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=limited(options),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=options.idle_timeout,  # type: ignore[arg-type]
                backlog=4096,
            )
        )
        self._grace = options.grace
        self._application = app
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    def stop(self) -> None:
        """Drain and end; from any thread."""
        self._application.state.draining = True
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.stop()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {sig: signal.signal(sig, self.handle_exit) for sig in _SIGNALS}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._stop_listening()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._grace):
                while self.server_state.connections and not self.force_exit:
                    await asyncio.sleep(0.02)
        tasks = set(self.server_state.tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_LAST_WORDS)

    async def _stop_listening(self) -> None:
        """Close the listeners; who has connected already, and waits to be accepted, still is."""
        listening = [one.dup() for server in self.servers for one in server.sockets]
        for server in self.servers:
            server.close()
        clients: list[socket.socket] = []
        for one in listening:
            with one:
                clients += _waiting(one)
        for client in clients:
            await self._serve_one(client)

    async def _serve_one(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        make: Any = self.config.http_protocol_class  # uvicorn declares less than it calls
        protocol = make(
            config=self.config, server_state=self.server_state, app_state={}, _loop=loop
        )
        await loop.connect_accepted_socket(lambda: protocol, client)


def _waiting(listening: socket.socket) -> list[socket.socket]:
    clients: list[socket.socket] = []
    with contextlib.suppress(BlockingIOError):
        while True:
            clients.append(listening.accept()[0])
            clients[-1].setblocking(False)
    return clients


def serve(
    engines: Mapping[str, Model],
    options: ServeOptions,
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve until a signal says to stop, then close the engines.

    `ready` is called with the address when connections are accepted. Unavailable if the port
    cannot be had.
    """
    app = App(engines, options)
    try:
        _listen(app, options, ready)
    finally:
        app.state.models.close()


def serve_web(options: ServeOptions, ready: Callable[[str], None] = lambda url: None) -> None:
    """Serve the page of `options.web` until a signal says to stop; errors as `serve`."""
    _listen(WebApp(options), options, ready)


def _listen(app: App | WebApp, options: ServeOptions, ready: Callable[[str], None]) -> None:
    # Else asyncio warns of each write to a client that has just gone.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    allow_open_files()
    sockets = bind(options.host, options.port)
    address = url(options.host, sockets[0])
    Server(app, options, lambda: ready(address)).run(sockets)


def bind(host: str, port: int) -> list[socket.socket]:
    """A socket for each address of `host`, all of one port; Unavailable says what is in the way."""
    try:
        found = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise Unavailable(f"{host} is no address of this machine: {error.strerror}") from None
    sockets: list[socket.socket] = []
    for family, kind, protocol, _, address in dict.fromkeys(found):
        chosen = sockets[0].getsockname()[1] if sockets else port
        try:
            sockets.append(_listening(family, kind, protocol, (address[0], chosen, *address[2:])))
        except OSError as error:
            if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                _close(sockets)
                raise Unavailable(
                    f"cannot listen on {host} port {chosen}: {error.strerror}; "
                    "choose another with --port"
                ) from None
    if not sockets:
        raise Unavailable(f"this machine has no address {host} to listen on")
    return sockets


def allow_open_files() -> None:
    """As many connections as this user may have; the usual soft limit is 1024."""
    if resource is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(ValueError, OSError):  # some systems have a limit of their own
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _listening(family: int, kind: int, protocol: int, address: tuple[object, ...]) -> socket.socket:
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
    except OSError:
        made.close()
        raise
    made.setblocking(False)
    return made


def _close(sockets: list[socket.socket]) -> None:
    for one in sockets:
        one.close()


def url(host: str, bound: socket.socket) -> str:
    name = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"http://{name}:{bound.getsockname()[1]}"
