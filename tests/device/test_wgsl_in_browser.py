"""A browser's own compiler takes every kernel: it refuses what native WebGPU lets pass.

Above all a barrier that not all threads of a group may reach, as far as it can prove.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conformance import CHAT, CONFIG
from folding_kernel import ROWS, SLOTS, folding
from run_kernel import NOTHING

from sterna.base.artifact import CompileOptions
from sterna.base.target import parse_target
from sterna.checkpoint.model_folder import ModelFolder
from sterna.codegen.renderer import LibraryParts, RenderedKernel, renderer_of
from sterna.codegen.wgsl import HANDS_ON, MODULE, SUBGROUPS, SWAPS
from sterna.compiler import compile_source
from sterna.ir.interpret import evaluate_primfunc

FLAGS = ["--no-sandbox", "--disable-quic", "--disable-background-networking",
         "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]  # fmt: skip
PAGE = "https://kernels.test/"  # answered by the test itself; WebGPU wants a secure address
COMPLAINTS = """async ([modules, requiredFeatures]) => {
    const adapter = await navigator.gpu?.requestAdapter();
    if (!adapter || !requiredFeatures.every((name) => adapter.features.has(name))) return null;
    const device = await adapter.requestDevice({ requiredFeatures });
    const told = [];
    for (const code of modules) {
        const { messages } = await device.createShaderModule({ code }).getCompilationInfo();
        told.push(messages.filter((m) => m.type === "error").map((m) => m.message).join("; "));
    }
    return told;
}"""


RUN = """async ([code, symbol, groups, features, given]) => {
    const adapter = await navigator.gpu?.requestAdapter();
    if (!adapter || !features.every((name) => adapter.features.has(name))) return null;
    const device = await adapter.requestDevice({ requiredFeatures: features });
    const module = device.createShaderModule({ code });
    const pipeline = device.createComputePipeline({
        layout: "auto", compute: { module, entryPoint: symbol },
    });
    const [storage, from, to, read] = [0x80, 4, 8, 1];
    const size = 4 * given.length;
    const [x, out, back] = [storage | to, storage | from, read | to].map(
        (usage) => device.createBuffer({ size, usage }));
    device.queue.writeBuffer(x, 0, new Float32Array(given));
    const entries = [x, out].map((buffer, binding) => ({ binding, resource: { buffer } }));
    const encoder = device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    pass.setPipeline(pipeline);
    const layout = pipeline.getBindGroupLayout(0);
    pass.setBindGroup(0, device.createBindGroup({ layout, entries }));
    pass.dispatchWorkgroups(groups);
    pass.end();
    encoder.copyBufferToBuffer(out, 0, back, 0, size);
    device.queue.submit([encoder.finish()]);
    await back.mapAsync(1);
    return [...new Float32Array(back.getMappedRange())];
}"""


# What modules hand values on with, and how many do; all others are those of the row without.
TARGETS = {
    "webgpu": ("", 0),
    "webgpu:subgroups": (SWAPS, 2),  # attention of prompts and of single tokens
    "webgpu:barrier-free": ("", 0),
    "webgpu:barrier-free-subgroups": (HANDS_ON, 9),  # products, but for the logits
}


@pytest.fixture(scope="module")
def page(driver: Any, chromium: str) -> Iterator[Any]:
    started = driver.chromium.launch(executable_path=chromium, args=FLAGS)
    opened = started.new_page()
    opened.route("**/*", lambda route: route.fulfill(content_type="text/html", body="<p>"))
    opened.goto(PAGE)
    yield opened
    started.close()


def complaints(page: Any, modules: list[str], features: Sequence[str] = ()) -> list[str]:
    found = page.evaluate(COMPLAINTS, [modules, list(features)])
    if found is None:
        pytest.skip(f"the browser has no WebGPU adapter with {list(features)}")
    return list(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_no_kernel_is_refused(name: str, page: Any) -> None:
    target = parse_target(name)
    folder = ModelFolder(Path(), dict(CHAT), dict(CONFIG), "llama", "q4f16_1", "q4f16_1", {})
    source = compile_source(folder, target, CompileOptions())
    code = renderer_of(target).library_source(source.parts)
    prelude, *modules = code.split(MODULE)
    assert len(modules) > 15
    word, many = TARGETS[name]
    if word:
        modules = [module for module in modules if word in module]
        assert len(modules) == many
    texts = [prelude + module.partition("\n")[2] for module in modules]
    titles = [module.partition("\n")[0] for module in modules]
    told = zip(titles, complaints(page, texts, target.features), strict=True)
    assert {title: said for title, said in told if said} == {}


@pytest.mark.slow
def test_a_barrier_that_some_may_miss_is_refused(page: Any) -> None:
    code = """@group(0) @binding(0) var<storage, read_write> x: array<i32>;
    @compute @workgroup_size(4) fn f() { if (x[0] > 0) { workgroupBarrier(); } }"""
    (told,) = complaints(page, [code])
    assert "uniform control flow" in told


@pytest.mark.slow
def test_a_swap_that_some_may_miss_is_refused(page: Any) -> None:
    code = f"""{SUBGROUPS}
    @group(0) @binding(0) var<storage, read_write> x: array<f32>;
    @compute @workgroup_size(8) fn f(@builtin(local_invocation_index) t: u32) {{
        if (t < 3u) {{ x[t] = {SWAPS}(x[t], 1u); }}
    }}"""
    (told,) = complaints(page, [code], ["subgroups"])
    assert "uniform control flow" in told


@pytest.mark.slow
def test_swapped_values_are_what_neighbours_have(page: Any) -> None:
    """The sum of a row in halves, of which the browser's smallest subgroup reaches the last two."""
    target, func = parse_target("webgpu:subgroups"), folding("fold")
    kernel = RenderedKernel(func, renderer_of(target).render_kernel(func, target))
    code = renderer_of(target).library_source(LibraryParts(NOTHING, {"fold": kernel}, {}))
    assert code.count(SWAPS) == 2
    x = np.random.default_rng(0).standard_normal((3, ROWS, SLOTS)).astype(np.float32)
    meant = np.zeros_like(x)
    evaluate_primfunc(func, {"x": x, "out": meant}, {})
    given = [code, "fold", 3, list(target.features), x.reshape(-1).tolist()]
    found = page.evaluate(RUN, given)
    if found is None:
        pytest.skip("the browser has no WebGPU adapter with subgroups")
    assert np.array_equal(np.array(found, np.float32).reshape(x.shape), meant)
