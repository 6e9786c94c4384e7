"""Metal as a device: Apple's framework through the Objective-C runtime; nothing is installed.

Kernels come as source, which the system compiles when a model is loaded, or with finished code
beside it, which is loaded as it is; a system that is too old for that compiles the source. Buffers
are memory that processor and GPU share, so writing and reading are copies in memory. A step is one
command buffer.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Sequence
from ctypes import c_bool, c_int32, c_uint64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.base.artifact import Phase
from sterna.base.errors import ArtifactError, DeviceError, OutOfMemory, Unavailable
from sterna.runtime.library import read_manifest
from sterna.runtime.objc import ObjectiveC
from sterna.runtime.report import DeviceReport, check_number
from sterna.runtime.work_groups import Limits, Sized, loader

_FRAMEWORK = "/System/Library/Frameworks/Metal.framework/Metal"
_SHARED = c_uint64(0)  # storage that both sides reach
_FAMILIES = {"apple7": 1007}  # MTLGPUFamily: since A14 and M1
_FAILED = 5  # status of a command buffer
_LOG = logging.getLogger("sterna")
_GROUP_THREADS = 1024  # of every Apple GPU; a pipeline may have fewer


class Size(ctypes.Structure):
    """MTLSize."""

    _fields_ = (("width", c_uint64), ("height", c_uint64), ("depth", c_uint64))


def available_memory(index: int = 0) -> int | None:
    """See DeviceModule: what the system recommends that one program uses at most."""
    device = open_device(index)
    device.close()
    return device.limits.memory


def reports() -> list[DeviceReport]:
    """See DeviceModule."""
    try:
        runtime, found = _found()
        _chosen(found, 0)
    except Unavailable as error:
        return [DeviceReport("metal", False, "", str(error))]
    reports = []
    for i, each in enumerate(found):
        device = MetalDevice(runtime, each)
        device.close()
        told = f"{device.name}, {(device.limits.memory or 0) / 2**30:.1f} GiB memory"
        reports.append(DeviceReport(f"metal:{i}" if i else "metal", True, told, "", faster=True))
    return reports


def open_device(index: int = 0) -> MetalDevice:
    """The device with that number; Unavailable says what is missing."""
    runtime, found = _found()
    return MetalDevice(runtime, _chosen(found, index))


def _check_library(library: Path, index: int) -> None:
    """Unavailable where a library is for another family of GPUs."""
    runtime, found = _found()
    check_features(runtime, _chosen(found, index), read_manifest(library).features)


load = loader(open_device, _check_library)


def check_features(runtime: ObjectiveC, device: c_void_p, features: Sequence[str]) -> None:
    """Unavailable where the GPU is of none of the families that a library wants."""
    for name in features:
        family = c_uint64(_FAMILIES.get(name, 0))
        if not runtime.send(device, "supportsFamily:", family, returns=c_bool):
            with runtime.pool():
                title = runtime.read(runtime.send(device, "name")) or "this GPU"
            raise Unavailable(
                f"the library wants a GPU of Metal's family {name}, which {title} is not; compile "
                "the model with --target metal"
            )


def _found() -> tuple[ObjectiveC, list[c_void_p]]:
    if sys.platform != "darwin":
        raise Unavailable("Metal is on Apple's systems only, and this is none")
    try:
        runtime, framework = ObjectiveC(), ctypes.CDLL(_FRAMEWORK)
    except OSError:
        raise Unavailable(
            f"Metal is not on this machine: {_FRAMEWORK} is missing; macOS 12 or newer has it"
        ) from None
    framework.MTLCopyAllDevices.restype = c_void_p
    return runtime, listed(runtime, c_void_p(framework.MTLCopyAllDevices()))


def listed(runtime: ObjectiveC, array: c_void_p) -> list[c_void_p]:
    """The objects of an NSArray."""
    count = runtime.send(array, "count", returns=c_uint64)
    return [c_void_p(runtime.send(array, "objectAtIndex:", c_uint64(i))) for i in range(count)]


def _chosen(found: Sequence[c_void_p], index: int) -> c_void_p:
    if not found:
        raise Unavailable("this Mac offers no GPU to Metal, as virtual machines often do not")
    check_number("Metal device", index, len(found))
    return found[index]


@dataclass(frozen=True, slots=True)
class _Buffer:
    handle: c_void_p
    offset: int
    size: int
    address: int  # of the offset, for the processor


@dataclass(frozen=True, slots=True)
class _Function:
    pipeline: c_void_p


@dataclass(frozen=True, slots=True)
class _Launch:
    pipeline: c_void_p
    threads: Size
    buffers: tuple[_Buffer, ...]


class MetalDevice:
    """See work_groups.Device. Owns a queue, and all that was made for it."""

    def __init__(self, runtime: ObjectiveC, device: c_void_p) -> None:
        self._runtime, self._id = runtime, device
        self._made: list[c_void_p] = []
        self._running: c_void_p | None = None  # the command buffer of the last step
        with runtime.pool():
            self.name = runtime.read(runtime.send(device, "name")) or "a GPU of Apple's"
        numbers = ("recommendedMaxWorkingSetSize", "maxBufferLength", "maxThreadgroupMemoryLength")
        memory, largest, shared = (
            int(runtime.send(device, number, returns=c_uint64)) for number in numbers
        )
        self.limits = Limits(
            memory=memory,
            buffer_bytes=largest,
            group_threads=_GROUP_THREADS,
            shared_bytes=shared,
            buffers=31,
            lanes=32,
        )
        self._queue = self._own(runtime.send(device, "newCommandQueue"), "a queue")

    def _own(self, made: Any, what: str) -> c_void_p:
        """Remember to release what was made; DeviceError where nothing was."""
        if not made:
            raise DeviceError(f"Metal failed in making {what} on {self.name}")
        self._made.append(c_void_p(made))
        return self._made[-1]

    def _told(self, error: c_void_p) -> str:
        text = self._runtime.send(error, "localizedDescription") if error else None
        return self._runtime.read(text)[:2000] or "no reason given"

    # Memory.

    def allocate(self, size: int) -> _Buffer:
        size = -(-max(size, 1) // 16) * 16
        made = self._runtime.send(self._id, "newBufferWithLength:options:", c_uint64(size), _SHARED)
        if not made:
            raise OutOfMemory(
                f"{self.name} has no memory left for a buffer of {size} bytes; use a smaller "
                "context or batch"
            )
        handle = self._own(made, "a buffer")
        return _Buffer(handle, 0, size, int(self._runtime.send(handle, "contents") or 0))

    def view(self, buffer: _Buffer, offset: int, size: int) -> _Buffer:
        return _Buffer(buffer.handle, buffer.offset + offset, size, buffer.address + offset)

    def write(self, buffer: _Buffer, data: NDArray[Any], offset: int = 0) -> None:
        self._wait()
        held = np.ascontiguousarray(data)
        ctypes.memmove(buffer.address + offset, held.ctypes.data, held.nbytes)

    def read(self, buffer: _Buffer, out: NDArray[Any], offset: int = 0) -> None:
        self._wait()
        ctypes.memmove(out.ctypes.data, buffer.address + offset, out.nbytes)

    def copy(self, buffer: _Buffer, source: int, destination: int, size: int) -> None:
        self._wait()
        ctypes.memmove(buffer.address + destination, buffer.address + source, size)

    def _wait(self) -> None:
        """Until the last step is done; DeviceError where it failed."""
        if self._running is None:
            return
        running, self._running = self._running, None
        self._runtime.send(running, "waitUntilCompleted", returns=None)
        status = self._runtime.send(running, "status", returns=c_uint64)
        with self._runtime.pool():
            told = self._told(self._runtime.send(running, "error")) if status == _FAILED else ""
        self._runtime.send(running, "release", returns=None)
        if told:
            raise DeviceError(f"Metal failed in a step on {self.name}: {told}")

    # Kernels.

    def compile(self, code: bytes, phases: Sequence[Phase]) -> dict[str, Any]:
        """See Device: finished code where the library has it and the system takes it, or source."""
        source, _, finished = code.partition(b"\0")
        with self._runtime.pool():
            library = self._finished(finished) if finished else None
            held = self._own(library or self._compiled(source.decode()), "a library")
            return {phase.symbol: self._function(held, phase) for phase in phases}

    def _finished(self, code: bytes) -> Any:
        """A library of finished code, or nothing where the system refuses it, which is told."""
        data, error = self._runtime.data(code), c_void_p()
        made = self._runtime.send(self._id, "newLibraryWithData:error:", data, _place(error))
        self._runtime.send(data, "release", returns=None)
        if not made:
            why = "the Metal of %s refused the finished code, so it compiles the source: %s"
            _LOG.warning(why, self.name, self._told(error))
        return made

    def _compiled(self, source: str) -> Any:
        """A library by the system's own compiler, without fast math."""
        runtime, error = self._runtime, c_void_p()
        options = self._own(runtime.send(runtime.kind("MTLCompileOptions"), "new"), "options")
        runtime.send(options, "setFastMathEnabled:", c_bool(False), returns=None)
        made = runtime.send(
            self._id, "newLibraryWithSource:options:error:", runtime.text(source), options,
            _place(error),
        )  # fmt: skip
        if not made:
            raise ArtifactError(
                f"the Metal of {self.name} refused the kernels: {self._told(error)}"
            )
        return made

    def _function(self, library: c_void_p, phase: Phase) -> _Function:
        runtime, error = self._runtime, c_void_p()
        named = runtime.send(library, "newFunctionWithName:", runtime.text(phase.symbol))
        if not named:
            raise ArtifactError(f"the library has no kernel {phase.symbol!r}")
        function = self._own(named, phase.symbol)
        made = runtime.send(
            self._id, "newComputePipelineStateWithFunction:error:", function, _place(error)
        )
        if not made:
            raise ArtifactError(
                f"the Metal of {self.name} refused kernel {phase.symbol}: {self._told(error)}"
            )
        pipeline = self._own(made, phase.symbol)
        most = runtime.send(pipeline, "maxTotalThreadsPerThreadgroup", returns=c_uint64)
        if phase.threads > most:
            raise DeviceError(
                f"kernel {phase.symbol} wants {phase.threads} threads in a group, and {self.name} "
                f"has {most} for it; compile the model for a target that is like this device"
            )
        return _Function(pipeline)

    def prepare(
        self, function: _Function, phase: Phase, buffers: Sequence[_Buffer], dims: Sequence[str]
    ) -> _Launch:
        return _Launch(function.pipeline, Size(phase.threads, 1, 1), tuple(buffers))

    def run(self, launches: Sized) -> None:
        self._wait()
        runtime = self._runtime
        with runtime.pool():
            commands = c_void_p(runtime.send(self._queue, "commandBuffer"))
            runtime.send(commands, "retain")
            encoder = c_void_p(runtime.send(commands, "computeCommandEncoder"))
            for launch, groups, values in launches:
                self._encode(encoder, launch, groups, values)
            runtime.send(encoder, "endEncoding", returns=None)
            runtime.send(commands, "commit", returns=None)
        self._running = commands

    def _encode(
        self, encoder: c_void_p, launch: _Launch, groups: int, values: Sequence[int]
    ) -> None:
        """A launch, which begins when those before it are done."""
        send = self._runtime.send
        send(encoder, "setComputePipelineState:", launch.pipeline, returns=None)
        for i, b in enumerate(launch.buffers):
            where = c_uint64(b.offset), c_uint64(i)
            send(encoder, "setBuffer:offset:atIndex:", b.handle, *where, returns=None)
        for i, value in enumerate(values, len(launch.buffers)):
            number = c_int32(value)
            given = _place(number), c_uint64(4), c_uint64(i)
            send(encoder, "setBytes:length:atIndex:", *given, returns=None)
        sizes = Size(groups, 1, 1), launch.threads
        send(encoder, "dispatchThreadgroups:threadsPerThreadgroup:", *sizes, returns=None)

    def close(self) -> None:
        if self._running is not None:
            self._runtime.send(self._running, "waitUntilCompleted", returns=None)
            self._runtime.send(self._running, "release", returns=None)
            self._running = None
        while self._made:
            self._runtime.send(self._made.pop(), "release", returns=None)


def _place(value: Any) -> c_void_p:
    """The address of a ctypes value, which the caller keeps."""
    return c_void_p(ctypes.addressof(value))
