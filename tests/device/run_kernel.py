"""Runs single kernels on a device: rendered for a target, bound to arrays, launched, read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.base.artifact import KVCache, Manifest, Model
from sterna.base.sizes import evaluate
from sterna.base.target import Target
from sterna.codegen.bundle import SourceRenderer
from sterna.codegen.renderer import LibraryParts, RenderedKernel, renderer_of
from sterna.runtime.work_groups import Device

NOTHING = Manifest(
    format=0, sterna="", target="", features=(),
    model=Model(model_type="", quantization="", fingerprint="", vocab_size=0,
                context_window_size=0, prefill_chunk_size=0, max_batch_size=0),
    kv_cache=KVCache(layers=0, kv_heads=0, head_dim=0, page_size=0, dtype="f32", page_bytes=0),
    params=(), entries=(), kernels=(),
)  # fmt: skip


class RunningKernels:
    """Kernels compiled on a device, by name."""

    def __init__(
        self, kernels: Mapping[str, RenderedKernel], target: Target, device: Device
    ) -> None:
        self.kernels, self.device = kernels, device
        phases = [p for k in kernels.values() for p in k.rendered.launches]
        renderer = renderer_of(target)
        assert isinstance(renderer, SourceRenderer)
        code = renderer.library_code(LibraryParts(NOTHING, kernels, {}), target)
        self.functions = device.compile(code, phases)

    def run(
        self, name: str, arrays: Mapping[str, NDArray[Any]], dims: Mapping[str, int]
    ) -> dict[str, NDArray[Any]]:
        """Every array after a kernel ran on copies of them; nothing is written behind one."""
        kernel, device = self.kernels[name], self.device
        buffers = {}
        for title, array in arrays.items():
            buffers[title] = device.allocate(_padded(array.nbytes))
            device.write(buffers[title], _with_tail(array))
        titles = kernel.rendered.dims
        for phase in kernel.rendered.launches:
            bound = [buffers[kernel.func.params[i].name] for i in phase.buffers]
            launch = device.prepare(self.functions[phase.symbol], phase, bound, titles)
            groups = evaluate(phase.groups, dims)
            if groups:
                device.run([(launch, groups, [dims[d] for d in titles])])
        return {title: self._read(buffers[title], array) for title, array in arrays.items()}

    def _read(self, buffer: Any, array: NDArray[Any]) -> NDArray[Any]:
        out = np.empty(_padded(array.nbytes), np.uint8)
        self.device.read(buffer, out)
        assert (out[array.nbytes :] == 0xFF).all(), "a kernel wrote behind a buffer"
        return out[: array.nbytes].view(array.dtype).reshape(array.shape)


def _padded(size: int) -> int:
    return -(-size // 4) * 4 + 64


def _with_tail(array: NDArray[Any]) -> NDArray[np.uint8]:
    whole = np.full(_padded(array.nbytes), 0xFF, np.uint8)
    whole[: array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return whole
