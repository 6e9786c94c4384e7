"""A browser's own compiler takes every kernel: it refuses what native WebGPU lets pass.

Above all a barrier that not all threads of a group may reach, as far as it can prove.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conformance import CHAT, CONFIG

from sterna.base.target import parse_target
from sterna.checkpoint.model_folder import ModelFolder
from sterna.codegen.renderer import renderer_of
from sterna.codegen.wgsl import MODULE
from sterna.compiler import CompileOptions, compile_source

FLAGS = ["--no-sandbox", "--disable-quic", "--disable-background-networking",
         "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]  # fmt: skip
PAGE = "https://kernels.test/"  # answered by the test itself; WebGPU wants a secure address
COMPLAINTS = """async (modules) => {
    const adapter = await navigator.gpu?.requestAdapter();
    if (!adapter) return null;
    const device = await adapter.requestDevice();
    const told = [];
    for (const code of modules) {
        const { messages } = await device.createShaderModule({ code }).getCompilationInfo();
        told.push(messages.filter((m) => m.type === "error").map((m) => m.message).join("; "));
    }
    return told;
}"""


@pytest.fixture(scope="module")
def page(driver: Any, chromium: str) -> Iterator[Any]:
    started = driver.chromium.launch(executable_path=chromium, args=FLAGS)
    opened = started.new_page()
    opened.route("**/*", lambda route: route.fulfill(content_type="text/html", body="<p>"))
    opened.goto(PAGE)
    yield opened
    started.close()


def complaints(page: Any, modules: list[str]) -> list[str]:
    found = page.evaluate(COMPLAINTS, modules)
    if found is None:
        pytest.skip("the browser has no WebGPU adapter")
    return list(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["webgpu", "webgpu:barrier-free"])
def test_no_kernel_is_refused(name: str, page: Any) -> None:
    target = parse_target(name)
    folder = ModelFolder(Path(), dict(CHAT), dict(CONFIG), "llama", "q4f16_1", "q4f16_1", {})
    source = compile_source(folder, target, CompileOptions())
    code = renderer_of(target).library_source(source.parts)
    prelude, *modules = code.split(MODULE)
    assert len(modules) > 15
    texts = [prelude + module.partition("\n")[2] for module in modules]
    titles = [module.partition("\n")[0] for module in modules]
    told = zip(titles, complaints(page, texts), strict=True)
    assert {title: said for title, said in told if said} == {}


@pytest.mark.slow
def test_a_barrier_that_some_may_miss_is_refused(page: Any) -> None:
    code = """@group(0) @binding(0) var<storage, read_write> x: array<i32>;
    @compute @workgroup_size(4) fn f() { if (x[0] > 0) { workgroupBarrier(); } }"""
    (told,) = complaints(page, [code])
    assert "uniform control flow" in told
