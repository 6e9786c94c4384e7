"""Drivers with streams, as CUDA's and ROCm's, that run kernels on the CPU, and can fail.

In: the calls that `runtime/streams.py` makes, with ctypes arguments. A stream does nothing before
it is waited for, so a device that reuses memory too early or reads without waiting is found out.
Source is compiled by g++ over simt.h; machine code cannot be run here, and is refused as by a
driver that has no hardware for it.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from ctypes import c_char_p, c_uint, c_void_p
from typing import Any, ClassVar

from simt_device import compiled

from sterna.runtime import cuda, hip
from sterna.runtime.cuda import CudaDevice
from sterna.runtime.hip import HipDevice

INVALID, OUT_OF_MEMORY, NO_CODE, NOT_FOUND, LOST = 1, 2, 209, 500, 719
MARK = b"code on the CPU "
_KERNEL = re.compile(r"__launch_bounds__\(\d+\) (\w+)\(")

Operation = Callable[[], None]


def _number(given: Any) -> int:
    return int(getattr(given, "value", given) or 0)


class FakeCompiler:
    """NVRTC or hipRTC: what it makes of source is a mark and the name of a library."""

    libraries: ClassVar[dict[bytes, ctypes.CDLL]] = {}

    def __init__(self, prefix: str, kind: str) -> None:
        self.source, self.log, self.result = b"", b"", b""
        self.options: list[bytes] = []
        for call in ("CreateProgram", "CompileProgram", "GetProgramLogSize", "GetProgramLog"):
            setattr(self, prefix + call, getattr(self, call))
        setattr(self, f"{prefix}DestroyProgram", lambda program: 0)
        setattr(self, f"{prefix}Get{kind}Size", self.size)
        setattr(self, f"{prefix}Get{kind}", self.code)

    def CreateProgram(self, program: Any, source: c_char_p, *rest: Any) -> int:  # noqa: N802
        self.source = source.value or b""
        return 0

    def CompileProgram(self, program: Any, count: Any, options: Any) -> int:  # noqa: N802
        self.options = list(options)
        text = self.source.decode()
        if "__global__" not in text:
            self.log = b"kernels(1): error: no kernel here"
            return 6
        entries = [
            f'extern "C" const char *run_{title}(unsigned groups, unsigned threads, void **given)'
            f"{{ return simt::launch({title}, groups, threads, simt::Values{{given}}); }}"
            for title in _KERNEL.findall(text)
        ]
        name = MARK + str(len(self.libraries)).encode()
        source = "\n".join(['#include "languages.h"', text, *entries])
        self.libraries[name] = compiled(source)
        self.result = name
        return 0

    def GetProgramLogSize(self, program: Any, size: Any) -> int:  # noqa: N802
        size._obj.value = len(self.log) + 1
        return 0

    def GetProgramLog(self, program: Any, log: Any) -> int:  # noqa: N802
        log.value = self.log
        return 0

    def size(self, program: Any, size: Any) -> int:
        size._obj.value = len(self.result)
        return 0

    def code(self, program: Any, code: Any) -> int:
        code.raw = self.result
        return 0


class FakeDriver:
    """What both makers' drivers do. `fails` maps names of calls to the codes they give instead."""

    count = 2
    free, total = 1 << 30, 1 << 31

    def __init__(self, **fails: int) -> None:
        self.fails, self.calls = fails, list[str]()
        self.held: dict[int, Any] = {}
        self.queue: list[Operation] = []
        self.recording: list[Operation] | None = None
        self.functions: list[Any] = []
        self.modules: list[ctypes.CDLL] = []
        self.graphs: list[list[Operation]] = []
        self.lost = False

    def run(self, call: str, *args: Any) -> int:
        self.calls.append(call)
        return self.fails.get(call) or getattr(self, call)(*args) or 0

    def _enqueue(self, operation: Operation) -> None:
        (self.queue if self.recording is None else self.recording).append(operation)

    def allocate(self, found: Any, size: Any, flags: Any = None) -> int:
        room = ctypes.create_string_buffer(b"\xff" * (_number(size) + 256), _number(size) + 256)
        address = -(-ctypes.addressof(room) // 256) * 256
        self.held[address] = room
        found._obj.value = address
        return 0

    allocate_host = allocate

    def release(self, address: Any) -> int:
        return 0 if self.held.pop(_number(address), None) else INVALID

    free_host = release

    def _holds(self, address: int, size: int) -> bool:
        return any(
            begin <= address and address + size <= ctypes.addressof(room) + len(room)
            for begin, room in self.held.items()
        )

    def copy(self, to: Any, source: Any, size: Any, stream: Any) -> int:
        places = _number(to), _number(source), _number(size)
        if not all(self._holds(place, places[2]) for place in places[:2]):
            return INVALID
        self._enqueue(lambda: ctypes.memmove(*places) and None)
        return 0

    def memory_info(self, free: Any, total: Any) -> int:
        free._obj.value, total._obj.value = self.free, self.total
        return 0

    def make_stream(self, stream: Any, flags: Any) -> int:
        stream._obj.value = 7
        return 0

    def free_stream(self, stream: Any) -> int:
        return 0

    def synchronize(self, stream: Any) -> int:
        if self.recording is not None:
            return INVALID
        waiting, self.queue = self.queue, []
        if self.lost:
            return LOST
        for operation in waiting:
            operation()
        return 0

    def load_module(self, module: Any, code: c_char_p) -> int:
        image = code.value or b""
        if not image.startswith(MARK):
            return NO_CODE
        self.modules.append(FakeCompiler.libraries[image])
        module._obj.value = len(self.modules)
        return 0

    def unload_module(self, module: Any) -> int:
        return 0

    def function(self, found: Any, module: Any, symbol: c_char_p) -> int:
        title = f"run_{(symbol.value or b'').decode()}"
        function = getattr(self.modules[_number(module) - 1], title, None)
        if function is None:
            return NOT_FOUND
        function.restype = c_char_p
        self.functions.append(function)
        found._obj.value = len(self.functions)
        return 0

    def launch(self, function: Any, *rest: Any) -> int:
        groups, _, _, threads, _, _, _, _, arguments, _ = rest
        run = self.functions[_number(function) - 1]
        # A driver copies what the addresses point at; 8 bytes are the most that an argument has.
        held = [ctypes.string_at(address, 8) for address in arguments]
        copies = [ctypes.create_string_buffer(value, 8) for value in held]
        given = (c_void_p * len(copies))(*map(ctypes.addressof, copies))

        def operation() -> None:
            error = run(c_uint(_number(groups)), c_uint(_number(threads)), given)
            assert error is None, (error.decode(), copies)

        self._enqueue(operation)
        return 0

    def begin_capture(self, stream: Any, mode: Any) -> int:
        self.recording = []
        return 0

    def end_capture(self, stream: Any, graph: Any) -> int:
        assert self.recording is not None
        self.graphs.append(self.recording)
        self.recording = None
        graph._obj.value = len(self.graphs)
        return 0

    def instantiate(self, made: Any, graph: Any, *rest: Any) -> int:
        made._obj.value = _number(graph)
        return 0

    def launch_graph(self, graph: Any, stream: Any) -> int:
        self.queue += self.graphs[_number(graph) - 1]
        return 0

    def free_graph(self, graph: Any) -> int:
        return 0

    free_executable = free_graph


def _names(driver: FakeDriver, given: dict[str, str]) -> None:
    """Offer the driver's functions under the names of a maker."""
    for name, call in given.items():
        setattr(driver, name, lambda *args, call=call: driver.run(call, *args))


class FakeCuda(FakeDriver):
    """NVIDIA's driver, by the names of its interface."""

    attributes: ClassVar = {1: 1024, 8: 49152, 18: 0, 75: 9, 76: 0}

    def __init__(self, version: int = 12040, **fails: int) -> None:
        super().__init__(**fails)
        self.version, self.retained = version, 0
        _names(
            self,
            {
                "cuMemGetInfo_v2": "memory_info", "cuMemAlloc_v2": "allocate",
                "cuMemFree_v2": "release", "cuMemHostAlloc": "allocate_host",
                "cuMemFreeHost": "free_host", "cuMemcpyHtoDAsync_v2": "copy",
                "cuMemcpyDtoHAsync_v2": "copy", "cuMemcpyDtoDAsync_v2": "copy",
                "cuStreamCreate": "make_stream", "cuStreamDestroy_v2": "free_stream",
                "cuStreamSynchronize": "synchronize", "cuModuleLoadData": "load_module",
                "cuModuleUnload": "unload_module", "cuModuleGetFunction": "function",
                "cuLaunchKernel": "launch", "cuStreamBeginCapture_v2": "begin_capture",
                "cuStreamEndCapture": "end_capture", "cuGraphInstantiateWithFlags": "instantiate",
                "cuGraphLaunch": "launch_graph", "cuGraphDestroy": "free_graph",
                "cuGraphExecDestroy": "free_executable",
            },
        )  # fmt: skip

    def cuInit(self, flags: Any) -> int:  # noqa: N802
        return self.fails.get("init", 0)

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = self.version
        return 0

    def cuGetErrorString(self, code: Any, text: Any) -> int:  # noqa: N802
        text._obj.value = b"what CUDA calls it"
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self.count
        return 0

    def cuDeviceGet(self, device: Any, index: Any) -> int:  # noqa: N802
        device._obj.value = _number(index)
        return 0

    def cuDeviceGetName(self, text: Any, size: Any, device: Any) -> int:  # noqa: N802
        text.value = b"Imagined GPU"
        return 0

    def cuDeviceGetAttribute(self, found: Any, which: Any, device: Any) -> int:  # noqa: N802
        found._obj.value = self.attributes[_number(which)]
        return 0

    def cuDeviceTotalMem_v2(self, size: Any, device: Any) -> int:  # noqa: N802
        size._obj.value = self.total
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> int:  # noqa: N802
        self.retained += 1
        context._obj.value = 1
        return self.fails.get("context", 0)

    def cuDevicePrimaryCtxRelease_v2(self, device: Any) -> int:  # noqa: N802
        self.retained -= 1
        return 0

    def cuCtxSetCurrent(self, context: Any) -> int:  # noqa: N802
        return 0 if _number(context) else INVALID


class FakeHip(FakeDriver):
    """AMD's driver, by the names of its interface."""

    attributes: ClassVar = {56: 1024, 16: 0, 74: 65536}

    def __init__(self, **fails: int) -> None:
        super().__init__(**fails)
        self.hipGetErrorString = lambda code: b"what ROCm calls it"
        _names(
            self,
            {
                "hipMemGetInfo": "memory_info", "hipMalloc": "allocate", "hipFree": "release",
                "hipHostMalloc": "allocate_host", "hipHostFree": "free_host",
                "hipMemcpyHtoDAsync": "copy", "hipMemcpyDtoHAsync": "copy",
                "hipMemcpyDtoDAsync": "copy", "hipStreamCreateWithFlags": "make_stream",
                "hipStreamDestroy": "free_stream", "hipStreamSynchronize": "synchronize",
                "hipModuleLoadData": "load_module", "hipModuleUnload": "unload_module",
                "hipModuleGetFunction": "function", "hipModuleLaunchKernel": "launch",
                "hipStreamBeginCapture": "begin_capture", "hipStreamEndCapture": "end_capture",
                "hipGraphInstantiate": "instantiate", "hipGraphLaunch": "launch_graph",
                "hipGraphDestroy": "free_graph", "hipGraphExecDestroy": "free_executable",
            },
        )  # fmt: skip

    def hipInit(self, flags: Any) -> int:  # noqa: N802
        return self.fails.get("init", 0)

    def hipGetDeviceCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self.count
        return 0

    def hipDeviceGetName(self, text: Any, size: Any, device: Any) -> int:  # noqa: N802
        text.value = b"Imagined GPU"
        return 0

    def hipDeviceGetAttribute(self, found: Any, which: Any, device: Any) -> int:  # noqa: N802
        found._obj.value = self.attributes[_number(which)]
        return 0

    def hipDeviceTotalMem(self, size: Any, device: Any) -> int:  # noqa: N802
        size._obj.value = self.total
        return 0

    def hipSetDevice(self, index: Any) -> int:  # noqa: N802
        return 0 if _number(index) < self.count else INVALID


class SimulatedCuda(CudaDevice):
    """CUDA as a device, whose driver and compiler are those above."""

    def _binary(self, code: bytes) -> bytes:
        return self._compiled(code, FakeCompiler("nvrtc", "CUBIN"))


class SimulatedHip(HipDevice):
    """ROCm as a device, whose driver and compiler are those above."""

    def _binary(self, code: bytes) -> bytes:
        return self._compiled(code, FakeCompiler("hiprtc", "Code"))


def simulated_cuda() -> CudaDevice:
    return SimulatedCuda(cuda.checked(FakeCuda()), 0)


def simulated_hip() -> HipDevice:
    return SimulatedHip(hip.checked(FakeHip()), 0)
