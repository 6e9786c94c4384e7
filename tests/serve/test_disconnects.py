"""A client that leaves, at every point where it can: its request ends within a step."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from null_model import engine as null_engine
from null_model import manifest
from running import HELLO, Running, until

from sterna.engine.engine import AsyncEngine
from sterna.runtime.null import NullExecutable

Start = Callable[..., Running]
LONG = [{"role": "user", "content": "x" * 150}]


class Held(NullExecutable):
    """Runs a step only when the test lets it."""

    def __init__(self) -> None:
        super().__init__(manifest(), 512)
        self.steps = 0
        self._turns = threading.Semaphore(0)
        self._open = False

    def allow(self, count: int) -> None:
        self._turns.release(count)

    def release(self) -> None:
        self._open = True
        self._turns.release()

    def step(self, batch: Any) -> Any:
        if not self._open:
            self._turns.acquire()
        self.steps += 1
        logits = super().step(batch)
        logits[:, 256] = -np.inf  # an answer never ends by itself
        return logits


@pytest.fixture
def held(serving: Start) -> Iterator[tuple[Running, Held]]:
    executable = Held()
    options = {"max_num_sequence": 1, "prefill_chunk_size": 32}
    yield serving(null_engine(executable, face=AsyncEngine, **options)), executable
    executable.release()


def send(server: Running, **fields: Any) -> socket.socket:
    """Ask and do not wait."""
    body = json.dumps({"messages": HELLO, "max_tokens": 200} | fields).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    client = socket.create_connection(("localhost", server.port), timeout=10)
    client.sendall(head.encode() + body)
    return client


def metric(server: Running, name: str) -> float:
    return float(server.engine.metrics()[name])


@pytest.mark.parametrize("stream", [False, True])
def test_while_queued(held: tuple[Running, Held], stream: bool) -> None:
    server, executable = held
    with send(server, stream=True) as first:
        executable.allow(2)
        assert first.recv(10)
        second = send(server, stream=stream)
        assert until(lambda: server.app.state.metrics.open == 2)
        executable.allow(1)
        assert until(lambda: metric(server, "waiting") == 1)
        second.close()
        assert until(lambda: server.app.state.metrics.open == 1)
        executable.allow(1)
        assert until(lambda: metric(server, "waiting") == 0)
        assert metric(server, "running") == 1
    executable.release()
    assert until(server.idle)
    assert metric(server, "cancelled") == 2


@pytest.mark.parametrize("stream", [False, True])
def test_in_prefill(held: tuple[Running, Held], stream: bool) -> None:
    server, executable = held
    client = send(server, messages=LONG, stream=stream)
    executable.allow(1)
    assert until(lambda: executable.steps == 1)
    client.close()
    assert until(lambda: server.app.state.metrics.open == 0)
    executable.release()
    assert until(server.idle)
    assert executable.steps < 5, "the prompt takes six steps"
    assert metric(server, "cancelled") == 1
    assert metric(server, "completion_tokens") == 0


@pytest.mark.parametrize("path", ["stream", "whole"])
def test_in_the_midst_of_an_answer(held: tuple[Running, Held], path: str) -> None:
    server, executable = held
    client = send(server, stream=path == "stream")
    executable.allow(5)
    assert until(lambda: executable.steps == 5)
    client.close()
    assert until(lambda: server.app.state.metrics.open == 0)
    executable.release()
    assert until(server.idle)
    assert executable.steps <= 8
    assert metric(server, "cancelled") == 1


def test_while_its_body_arrives(null_server: Running) -> None:
    before = metric(null_server, "requests")
    client = socket.create_connection(("localhost", null_server.port))
    client.sendall(
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
        b"content-type: application/json\r\ncontent-length: 1000\r\n\r\n{"
    )
    assert until(lambda: null_server.app.state.metrics.open == 1)
    client.close()
    assert until(lambda: null_server.app.state.metrics.open == 0)
    assert metric(null_server, "requests") == before


def test_half_closed_is_gone(held: tuple[Running, Held]) -> None:
    """A client that shut its sending side may still read; this server takes it for gone."""
    server, executable = held
    client = send(server, stream=True)
    executable.allow(3)
    assert client.recv(10)
    client.shutdown(socket.SHUT_WR)
    assert until(lambda: server.app.state.metrics.open == 0)
    executable.release()
    assert until(server.idle)
    client.close()


def test_an_engine_that_stops_is_told(serving: Start) -> None:
    """In mid-stream as an event, whole as a status; then health says it."""

    class Breaking(Held):
        def step(self, batch: Any) -> Any:
            logits = super().step(batch)
            if self.steps == 3:
                raise RuntimeError("the device is gone")
            return logits

    executable = Breaking()
    server = serving(null_engine(executable, face=AsyncEngine))
    assert server.ask("/health/live").status == 200
    with send(server, stream=True) as client:
        executable.release()
        text = b""
        while b"error" not in text:
            text += client.recv(65536)
    assert b"[DONE]" not in text
    assert b"data: " in text
    assert server.chat().status == 503
    for path in ("/health", "/health/live", "/health/ready"):
        sick = server.ask(path)
        assert (sick.status, sick.json["status"]) == (503, "failed")
        assert "the device is gone" in sick.json["message"]
