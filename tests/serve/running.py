"""Servers in a thread of their own, and a plain HTTP client that hides nothing."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))

from null_model import EOS, manifest
from null_model import engine as null_engine

from sterna.engine.engine import AsyncEngine
from sterna.runtime.null import NullExecutable
from sterna.serve.app import App
from sterna.serve.options import ServeOptions
from sterna.serve.server import Server, bind, url

MODEL = "null"
HELLO = [{"role": "user", "content": "hello"}]


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]


class Running:
    """A server that accepts connections."""

    def __init__(self, app: App, options: ServeOptions) -> None:
        self.app = app
        sockets = bind(options.host, options.port)
        self.port: int = sockets[0].getsockname()[1]
        self.url = url(options.host, sockets[0])
        ready = threading.Event()
        self.server = Server(app, options, ready.set)
        self.thread = threading.Thread(target=self.server.run, args=(sockets,), daemon=True)
        self.thread.start()
        assert ready.wait(10), "the server did not start"

    @property
    def engine(self) -> AsyncEngine:
        return next(iter(self.app.state.models.values()))

    def ask(
        self,
        path: str,
        body: Any = None,
        *,
        method: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request. A body that is not bytes is sent as JSON."""
        sent = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        kind = {} if sent is None else {"content-type": "application/json"}
        connection = http.client.HTTPConnection("localhost", self.port, timeout=30)
        try:
            method = method or ("GET" if sent is None else "POST")
            connection.request(method, path, sent, {**kind, **(headers or {})})
            got = connection.getresponse()
            return Answer(got.status, {k.lower(): v for k, v in got.getheaders()}, got.read())
        finally:
            connection.close()

    def chat(self, **fields: Any) -> Answer:
        asked = {"messages": HELLO, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
        return self.ask("/v1/chat/completions", asked | fields)

    def idle(self) -> bool:
        """Nothing runs or waits, and every page is free."""
        found = self.engine.metrics()
        pages = found["pages_free"] == found["pages_total"]
        return pages and not found["running"] and not found["waiting"]

    def stop(self) -> None:
        self.server.stop()
        self.thread.join(20)
        assert not self.thread.is_alive(), "the server did not stop"
        self.app.state.models.close()


class Chain(NullExecutable):
    """Says `answer` after a ":", then ends. No byte twice: each names the one that follows."""

    def __init__(self, answer: bytes) -> None:
        super().__init__(manifest(), 512)
        self._after = dict(zip([ord(":"), *answer], [*answer, EOS]))

    def step(self, batch: Any) -> Any:
        logits = super().step(batch)
        logits[:] = -100
        for i, row in enumerate(batch.logit_rows):
            logits[i, self._after.get(int(batch.tokens[row]), ord("z"))] = 100
        return logits


def null(window: int = 256, pages: int = 512, **options: Any) -> AsyncEngine:
    """The null device with another window; `options` are those of the engine."""
    executable = NullExecutable(manifest(context_window_size=window), pages)
    engine: AsyncEngine = null_engine(executable, face=AsyncEngine, **options)
    return engine


def scripted(answer: str = "ok, fine!") -> AsyncEngine:
    """An engine that says this, and then is done."""
    engine: AsyncEngine = null_engine(Chain(answer.encode()), face=AsyncEngine)
    return engine


def start(engine: Any = None, **options: Any) -> Running:
    """Over one engine, several by name, or the null device."""
    engine = engine or null()
    engines = engine if isinstance(engine, dict) else {engine.model_name: engine}
    chosen = ServeOptions(port=0, **options)
    return Running(App(engines, chosen), chosen)


@dataclass(frozen=True)
class Process:
    """`sterna serve` as a user starts it."""

    url: str
    model: str
    environment: dict[str, str]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


def sterna_serve(environment: dict[str, str], *arguments: str) -> tuple[subprocess.Popen[str], str]:
    """A server process and its address, once it accepts connections."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sterna", "serve", "--port", "0", *arguments],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    told = []
    assert process.stderr is not None
    for line in process.stderr:
        told.append(line)
        if found := re.search(r"serving on (http://\S+:\d+)", line):
            return process, found[1]
    process.wait()
    raise AssertionError("".join(told))


def until(holds: Callable[[], bool], seconds: float = 10) -> bool:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True
