"""Fixtures every test may use."""

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
