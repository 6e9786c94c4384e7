"""Pages of a browser with WebGPU on the processor, as tests open them."""

from __future__ import annotations

from typing import Any

from serving import FileServer

FLAGS = [
    *("--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
    *("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"),
]


def opened(browser: Any, site: FileServer) -> Any:
    """A page once the package is loaded."""
    page = browser.new_page()
    page.goto(f"{site.url}/page/index.html")
    page.wait_for_function("window.ready === true")
    return page
