"""Weights that a device binds in parts, and launches with more groups than it takes at once."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

from compiled import Compiled, build_tiny, tiny
from conformance import CONFIG, TARGETS, driver_webgpu
from test_whole_models import some_steps

from sterna.base.artifact import CompileOptions
from sterna.base.target import Target, parse_target
from sterna.checkpoint.mlc import read_mlc_folder
from sterna.codegen.renderer import RenderedKernel, renderer_of
from sterna.compiler import compile_model, compile_source
from sterna.ir.expr import Buffer, Var
from sterna.ir.loop import PrimFunc, store
from sterna.kernels.build import parallel
from sterna.runtime.library import read_manifest
from sterna.runtime.work_groups import load_on, numbered

sys.path.insert(0, str(Path(__file__).resolve().parent))

from run_kernel import RunningKernels

from sterna.base.dtype import F32
from sterna.checkpoint.model_folder import open_model

OPTIONS = {"prefill_chunk_size": 48, "max_batch_size": 4, "context_window_size": 256}
PART = 4096  # bytes: the limit that is pretended
SHAPE = {**tiny.VARIANTS["llama2-gqa"], **CONFIG}


def narrow(name: str) -> Target:
    return replace(parse_target(name), most_buffer_bytes=PART, most_buffers=16)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return build_tiny(tmp_path_factory.mktemp("model"), SHAPE, "q4f32_1", **OPTIONS)


def test_what_is_bound_in_parts(model: Compiled, tmp_path: Path) -> None:
    options = CompileOptions(**OPTIONS)
    source = compile_source(open_model(model.folder), narrow("webgpu"), options)
    manifest = source.manifest
    assert manifest.part_bytes == PART
    phases = [p for k in manifest.kernels for p in k.phases]
    parted = [p for p in phases if len(set(p.buffers)) < len(p.buffers)]
    assert parted
    whole = compile_source(open_model(model.folder), parse_target("webgpu"), options).manifest
    assert all(len(set(p.buffers)) == len(p.buffers) for k in whole.kernels for p in k.phases)
    assert numbered((0, 1, 1, 2)) == [(0, None), (1, 0), (1, 1), (2, None)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["webgpu", "webgpu:barrier-free", "vulkan", "vulkan:f32"])
def test_parts_give_the_same_bits(name: str, model: Compiled, tmp_path: Path) -> None:
    tensors = read_mlc_folder(model.folder).tensors
    found = []
    for title, target in (("whole", parse_target(name)), ("parts", narrow(name))):
        library = tmp_path / f"{title}.sterna"
        options = CompileOptions(**OPTIONS)
        compile_model(model.folder, target, library, options=options, cached=False)
        executable = load_on(TARGETS[name](), library, tensors, num_pages=40)
        found.append(some_steps(executable))
        executable.close()
    assert read_manifest(tmp_path / "parts.sterna").part_bytes == PART
    for whole, parts in zip(*found, strict=True):
        np.testing.assert_array_equal(whole.view(np.uint32), parts.view(np.uint32))


@pytest.mark.slow
def test_more_groups_than_stand_side_by_side() -> None:
    n, target, device = Var("n", lo=1), parse_target("webgpu"), driver_webgpu()
    out = Buffer("out", F32, (n,))
    func = PrimFunc("count", (out,), (n,), parallel("i", n, lambda i: store(out, i, 1.0)))
    kernel = RenderedKernel(func, renderer_of(target).render_kernel(func, target))
    running = RunningKernels({"count": kernel}, target, device)
    size = 65535 * 64 + 64 * 3 + 5
    after = running.run("count", {"out": np.zeros(size, np.float32)}, {"n": size})
    assert (after["out"] == 1).all()
    device.close()
