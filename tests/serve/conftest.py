"""A server in this process, over the null device: every test of the room talks to it by HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from running import Running, start

Start = Callable[..., Running]


@pytest.fixture
def serving() -> Iterator[Start]:
    """Start servers: `serving(engine, max_body=1024)`; all are stopped when the test ends."""
    started: list[Running] = []

    def begin(engine: Any = None, **options: Any) -> Running:
        started.append(start(engine, **options))
        return started[-1]

    yield begin
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def null_server() -> Iterator[Running]:
    """One server that tests share which leave nothing behind."""
    server = start()
    yield server
    server.stop()
