"""The chat page in a real browser, before a real server over a scripted model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cli"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "serve"))

from browsing import Open, ready, watched
from running import Running, start
from scripted_model import scripted

from sterna.engine.engine import AsyncEngine

FLAGS = ["--no-sandbox", "--disable-quic", "--disable-background-networking"]


@pytest.fixture(scope="session")
def browser(driver: Any, chromium: str) -> Iterator[Any]:
    started = driver.chromium.launch(executable_path=chromium, args=FLAGS)
    yield started
    started.close()


def _server(**script: Any) -> Iterator[Running]:
    engine = scripted(None, window=8192, face=AsyncEngine, **script)
    server = start({"scripted": engine}, ui=True)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    """Its model repeats what it is asked."""
    yield from _server()


@pytest.fixture(scope="session")
def slow_server() -> Iterator[Running]:
    """The same, twenty letters a second."""
    yield from _server(pause=0.05)


@pytest.fixture
def opened(browser: Any, server: Running) -> Iterator[Open]:
    """Open the page in a browser that knows nothing; whatever it complains of fails the test."""
    contexts: list[Any] = []
    complaints: list[str] = []

    def begin(at: Running | None = None, *, expected: str | None = None, **settings: Any) -> Any:
        """A page of a server; complaints that contain `expected` are no mistakes."""
        contexts.append(browser.new_context(viewport={"width": 1000, "height": 700}, **settings))
        page = watched(contexts[-1], complaints, expected)
        page.goto((at or server).url)
        return page

    yield begin
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def page(opened: Open) -> Any:
    """The page, ready to be written to."""
    return ready(opened())


@pytest.fixture
def slow_page(opened: Open, slow_server: Running) -> Any:
    return ready(opened(slow_server))


@pytest.fixture(scope="module")
def one_page(browser: Any, server: Running) -> Iterator[Any]:
    """A page that tests share which only call its functions."""
    context, complaints = browser.new_context(), list[str]()
    page = watched(context, complaints)
    page.goto(server.url)
    yield ready(page)
    context.close()
    assert complaints == []
