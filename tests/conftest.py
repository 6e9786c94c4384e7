"""Fixtures every test may use."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real inputs beside a checkout; tests that need it skip where it is absent."""
    folder = REPO.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the folder of real inputs (../shared/data) beside the checkout")
    return folder


@pytest.fixture(scope="session")
def chromium() -> str:
    """Where a browser of Chromium's kind is."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"needs a browser: none of {', '.join(BROWSERS)} is here")
    return found


@pytest.fixture(scope="session")
def driver() -> Iterator[Any]:
    """Playwright, which a process starts once: beside its event loop there is no second."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with playwright.sync_playwright() as started:
        yield started


@pytest.fixture(autouse=True)
def _own_event_loop(request: pytest.FixtureRequest) -> Iterator[None]:
    """Playwright's event loop counts as running as long as the process: not in others' tests."""
    playwrights = asyncio._get_running_loop()
    if playwrights is None or "driver" in request.fixturenames:
        yield
        return
    asyncio._set_running_loop(None)
    yield
    asyncio._set_running_loop(playwrights)
