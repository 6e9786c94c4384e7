"""Runs one kernel on a device: rendered for a target, bound to arrays, launched, read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.base.artifact import KVCache as ManifestCache
from sterna.base.artifact import Manifest, Model
from sterna.base.sizes import evaluate
from sterna.base.target import Target
from sterna.codegen.renderer import LibraryParts, RenderedKernel, renderer_of
from sterna.ir.loop import PrimFunc
from sterna.runtime.work_groups import Device

_NOTHING = Manifest(
    format=0, sterna="", target="", features=(),
    model=Model(model_type="", quantization="", fingerprint="", vocab_size=0,
                context_window_size=0, prefill_chunk_size=0, max_batch_size=0),
    kv_cache=ManifestCache(layers=0, kv_heads=0, head_dim=0, page_size=0, dtype="f32",
                           page_bytes=0),
    params=(), entries=(), kernels=(),
)  # fmt: skip


def run_kernel(
    func: PrimFunc,
    arrays: Mapping[str, NDArray[Any]],
    dims: Mapping[str, int],
    target: Target,
    device: Device,
) -> dict[str, NDArray[Any]]:
    """Every array after the kernel ran on copies of them."""
    rendered = renderer_of(target).render_kernel(func, target)
    parts = LibraryParts(_NOTHING, {func.name: RenderedKernel(func, rendered)}, {})
    functions = device.compile(renderer_of(target).code(parts), rendered.launches)
    buffers = {}
    for name, array in arrays.items():
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        padded = np.zeros(-(-max(4, len(flat)) // 4) * 4, np.uint8)
        padded[: len(flat)] = flat
        buffers[name] = device.allocate(len(padded))
        device.write(buffers[name], padded)
    names = [d.name for d in func.dims]
    for phase in rendered.launches:
        bound = [buffers[func.params[i].name] for i in phase.buffers]
        launch = device.prepare(functions[phase.symbol], phase, bound, names)
        groups = evaluate(phase.groups, dims)
        if groups:
            device.run([(launch, groups, [dims[d] for d in names])])
    result = {}
    for name, array in arrays.items():
        out = np.empty(-(-max(4, array.nbytes) // 4) * 4, np.uint8)
        device.read(buffers[name], out)
        result[name] = out[: array.nbytes].view(array.dtype).reshape(array.shape)
    return result
