"""A server in this process, over the null device: every test of the room talks to it by HTTP."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from running import Process, Running, start, sterna_serve

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


@pytest.fixture(scope="session")
def demo_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """`sterna serve` with the demo model, which it converts and compiles first."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src"),
        "STERNA_CACHE": str(tmp_path_factory.mktemp("cache")),
    }
    process, url = sterna_serve(environment)
    with urllib.request.urlopen(f"{url}/v1/models") as answer:
        model = json.load(answer)["data"][0]["id"]
    yield Process(url, model, environment)
    process.terminate()
    assert process.wait(30) == 0
    assert process.stderr is not None
    process.stderr.close()
