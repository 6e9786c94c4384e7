"""The package for browsers, `web/`: skipped where node, npm or a browser is not there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

from building import build
from pages import FLAGS, opened
from serving import FileServer
from web_models import WebModel, web_model

from sterna import demo

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def dist() -> Path:
    """The built package."""
    return build()


@pytest.fixture(scope="session")
def tern(tmp_path_factory: pytest.TempPathFactory) -> WebModel:
    """The demo model."""
    return web_model(Path(demo.FOLDER), tmp_path_factory.mktemp("tern"), "q4f32_1")


@pytest.fixture(scope="session")
def tern_f16(tmp_path_factory: pytest.TempPathFactory) -> WebModel:
    """The demo model with scales and, where the device has it, a KV cache in f16."""
    return web_model(Path(demo.FOLDER), tmp_path_factory.mktemp("tern-f16"), "q4f16_1")


@pytest.fixture(scope="session")
def site(dist: Path) -> Iterator[FileServer]:
    """A server of the package and of a page that has loaded it; models are added by tests."""
    server = FileServer({"dist": dist, "page": HERE / "page"})
    yield server
    server.close()


@pytest.fixture(scope="session")
def launch(
    driver: Any, chromium: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Any]]:
    """Start a browser with WebGPU on the processor, its profile in a folder."""
    started: list[Any] = []

    def begin(profile: Path | None = None, flags: list[str] | None = None) -> Any:
        context = driver.chromium.launch_persistent_context(
            profile or tmp_path_factory.mktemp("profile"),
            executable_path=chromium,
            headless=True,
            args=FLAGS if flags is None else flags,
        )
        context.set_default_timeout(60_000)
        started.append(context)
        return context

    yield begin
    for context in started:
        context.close()


@pytest.fixture(scope="session")
def browser(launch: Callable[..., Any]) -> Any:
    return launch()


@pytest.fixture
def page(browser: Any, site: FileServer) -> Iterator[Any]:
    """A page that has loaded the package, with nothing kept from tests before."""
    site.forget()
    made = opened(browser, site)
    made.evaluate(CLEAR)
    yield made
    made.close()


CLEAR = """async () => {
  const root = await navigator.storage.getDirectory();
  for await (const name of root.keys()) await root.removeEntry(name, { recursive: true });
}"""
