"""WebGPU as a device, natively through the `wgpu` package, which is installed apart.

Kernels come as WGSL modules. A step is one submission: all launches in one compute pass, their
sizes in small uniform buffers that are written before it.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.base.artifact import Phase
from sterna.base.errors import ArtifactError, Unavailable
from sterna.runtime.library import read_manifest
from sterna.runtime.report import DeviceReport, check_number
from sterna.runtime.web_folder import Offer
from sterna.runtime.work_groups import Limits, loader

_MODULE = "//// module "  # as the renderer writes it
_STORAGE = 0x80 | 0x08 | 0x04  # storage, copied to and from
_UNIFORM = 0x40 | 0x08
_MOST_GROUPS = 65535  # side by side; more become a grid, which kernels number row by row
_WANTED = ("shader-f16", "subgroup")  # features, where the adapter has them
_FEATURES = {"subgroup": "subgroups"}  # what browsers call otherwise
# Refused here, or not known.
_TOLD = re.compile(r"^(enable subgroups|diagnostic\(off, subgroup_uniformity\));\n", re.MULTILINE)
_LANES = 4  # the least that a subgroup has
_LIMITS = {
    "max-storage-buffers-per-shader-stage": "buffers",
    "max-compute-workgroup-storage-size": "shared",
    "max-compute-invocations-per-workgroup": "threads",
    "max-compute-workgroup-size-x": "threads",
    "max-storage-buffer-binding-size": "bytes",
    "max-buffer-size": "bytes",
}


def _check_features(library: Path, index: int) -> None:
    """Unavailable where the library wants what the adapter does not have."""
    found = offer(index)
    missing = [f for f in read_manifest(library).features if f not in found.features]
    if missing:
        raise Unavailable(
            f"the library wants {', '.join(missing)}, which {found.name} does not have; compile "
            "the model with --target webgpu"
        )


def available_memory(index: int = 0) -> int | None:
    """See DeviceModule: WebGPU does not tell."""
    _adapter(index)
    return None


def reports() -> list[DeviceReport]:
    """See DeviceModule."""
    try:
        found = _adapters()
        _adapter(0)
    except Unavailable as error:
        return [DeviceReport("webgpu", False, "", str(error))]
    return [
        DeviceReport(f"webgpu:{i}" if i else "webgpu", True, _told(adapter), "")
        for i, adapter in enumerate(found)
    ]


def offer(index: int = 0) -> Offer:
    """What the adapter has, in the words of browsers; see web_folder."""
    adapter = _adapter(index)
    limits = {_in_browsers(name): int(value) for name, value in adapter.limits.items()}
    features = {_FEATURES.get(name, name) for name in adapter.features}
    imitated = str(adapter.info.get("adapter_type", "")).lower() == "cpu"
    return Offer(str(adapter.info.get("device", "")), frozenset(features), limits, imitated)


def _in_browsers(name: str) -> str:
    first, *rest = name.split("-")
    return first + "".join(word.capitalize() for word in rest)


def open_device(index: int = 0) -> WebGpuDevice:
    """The adapter with that number; Unavailable says what is missing."""
    return WebGpuDevice(_adapter(index))


load = loader(open_device, _check_features)


_unheard = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_void_p)(lambda text, values: None)


def _silence_wayland() -> None:
    """Where there is no desktop: drivers look for one all the same, and libwayland prints that."""
    if "XDG_RUNTIME_DIR" in os.environ:
        return
    try:
        ctypes.CDLL("libwayland-client.so.0").wl_log_set_handler_client(_unheard)
    except (OSError, AttributeError):
        return  # nothing that could print


def _adapters() -> list[Any]:
    try:
        package = importlib.import_module("wgpu")
        _silence_wayland()
        return list(package.gpu.enumerate_adapters_sync())
    except ImportError:
        raise Unavailable(
            "WebGPU runs natively through the package wgpu, which is not installed: "
            "`pip install 'sterna[webgpu]'`"
        ) from None


def _adapter(index: int) -> Any:
    found = _adapters()
    if not found:
        raise Unavailable(
            "no WebGPU adapter is here: install the graphics driver of the hardware's maker, or "
            "mesa-vulkan-drivers to run on the CPU"
        )
    check_number("WebGPU adapter", index, len(found))
    return found[index]


def _told(adapter: Any) -> str:
    info = adapter.info
    found = [_FEATURES.get(name, name) for name in _WANTED if name in adapter.features]
    through = f"through {info.get('backend_type', 'its driver')}"
    return ", ".join([str(info.get("device", "an adapter")), through, *found])


@dataclass(frozen=True, slots=True)
class _Launch:
    pipeline: Any
    bindings: Any
    sizes: Any  # the uniform buffer of the dims, None without any


@dataclass(frozen=True, slots=True)
class _View:
    buffer: Any
    offset: int
    size: int


class WebGpuDevice:
    """See work_groups.Device."""

    def __init__(self, adapter: Any) -> None:
        wanted = {name: adapter.limits[name] for name in _LIMITS}
        features = [name for name in _WANTED if name in adapter.features]
        self._device = adapter.request_device_sync(
            required_limits=wanted, required_features=features
        )
        self._queue = self._device.queue
        self.name = str(adapter.info.get("device", "webgpu"))
        found = self._device.limits
        self.limits = Limits(
            memory=None,
            buffer_bytes=min(found["max-storage-buffer-binding-size"], found["max-buffer-size"]),
            allocation_bytes=found["max-buffer-size"],
            group_threads=found["max-compute-invocations-per-workgroup"],
            shared_bytes=found["max-compute-workgroup-storage-size"],
            buffers=found["max-storage-buffers-per-shader-stage"],
            lanes=_LANES if "subgroup" in features else 0,
        )
        self._buffers: list[Any] = []

    def compile(self, code: bytes, phases: Sequence[Phase]) -> dict[str, Any]:
        prelude, *modules = _TOLD.sub("", code.decode()).split(_MODULE)
        texts = dict(module.split("\n", 1) for module in modules)
        result = {}
        for phase in phases:
            if phase.symbol not in texts:
                raise ArtifactError(f"the library has no module {phase.symbol!r}")
            try:
                module = self._device.create_shader_module(code=prelude + texts[phase.symbol])
                result[phase.symbol] = self._device.create_compute_pipeline(
                    layout="auto", compute={"module": module, "entry_point": phase.symbol}
                )
            except Exception as error:
                raise ArtifactError(
                    f"the WebGPU of {self.name} refused kernel {phase.symbol}: {str(error)[:1000]}"
                ) from None
        return result

    def _buffer(self, size: int, usage: int) -> Any:
        made = self._device.create_buffer(size=-(-size // 16) * 16, usage=usage)
        self._buffers.append(made)
        return made

    def allocate(self, size: int) -> _View:
        return _View(self._buffer(size, _STORAGE), 0, -(-size // 16) * 16)

    def view(self, buffer: _View, offset: int, size: int) -> _View:
        return _View(buffer.buffer, buffer.offset + offset, -(-size // 4) * 4)

    def write(self, buffer: _View, data: NDArray[Any], offset: int = 0) -> None:
        flat = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        padded = np.zeros(-(-len(flat) // 4) * 4, np.uint8)
        padded[: len(flat)] = flat
        self._queue.write_buffer(buffer.buffer, buffer.offset + offset, padded)

    def read(self, buffer: _View, out: NDArray[Any], offset: int = 0) -> None:
        size = -(-out.nbytes // 4) * 4
        data = self._queue.read_buffer(buffer.buffer, buffer.offset + offset, size)
        out.reshape(-1).view(np.uint8)[:] = np.frombuffer(data, np.uint8)[: out.nbytes]

    def copy(self, buffer: _View, source: int, destination: int, size: int) -> None:
        between = self._device.create_buffer(size=size, usage=_STORAGE)  # not within one buffer
        encoder = self._device.create_command_encoder()
        encoder.copy_buffer_to_buffer(buffer.buffer, source, between, 0, size)
        encoder.copy_buffer_to_buffer(between, 0, buffer.buffer, destination, size)
        self._queue.submit([encoder.finish()])
        between.destroy()

    def prepare(
        self, function: Any, phase: Phase, buffers: Sequence[_View], dims: Sequence[str]
    ) -> _Launch:
        sizes = self._buffer(4 * len(dims), _UNIFORM) if dims else None
        entries = [
            {"binding": i, "resource": {"buffer": b.buffer, "offset": b.offset, "size": b.size}}
            for i, b in enumerate(buffers)
        ]
        if sizes is not None:
            whole = {"buffer": sizes, "offset": 0, "size": sizes.size}
            entries.append({"binding": len(buffers), "resource": whole})
        layout = function.get_bind_group_layout(0)
        bindings = self._device.create_bind_group(layout=layout, entries=entries)
        return _Launch(function, bindings, sizes)

    def run(self, launches: Sequence[tuple[_Launch, int, Sequence[int]]]) -> None:
        encoder = self._device.create_command_encoder()
        compute = encoder.begin_compute_pass()
        for launch, groups, values in launches:
            if launch.sizes is not None:
                self._queue.write_buffer(launch.sizes, 0, np.array(values, np.int32))
            compute.set_pipeline(launch.pipeline)
            compute.set_bind_group(0, launch.bindings)
            compute.dispatch_workgroups(min(groups, _MOST_GROUPS), -(-groups // _MOST_GROUPS), 1)
        compute.end()
        self._queue.submit([encoder.finish()])

    def close(self) -> None:
        while self._buffers:
            self._buffers.pop().destroy()
