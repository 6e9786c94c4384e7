"""OpenCL as a device: the calls of OpenCL 1.2 that a step needs, through ctypes.

The driver is found by the system's loader, libOpenCL; nothing is installed with Sterna. Kernels
come as source and are compiled by the driver when a model is loaded.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import sys
from collections.abc import Callable, Sequence
from ctypes import byref, c_char_p, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.base.artifact import Phase
from sterna.base.errors import ArtifactError, DeviceError, OutOfMemory, Unavailable
from sterna.runtime.report import DeviceReport, check_number
from sterna.runtime.work_groups import Limits, loader

_NAMES = {"win32": "OpenCL.dll", "darwin": "/System/Library/Frameworks/OpenCL.framework/OpenCL"}
_BUILD = b"-cl-std=CL1.2 -w"  # or drivers tell of warnings in the midst of an answer
_CORRECT = b" -cl-fp32-correctly-rounded-divide-sqrt"

_ALL_DEVICES, _READ_WRITE, _REGION = 0xFFFFFFFF, 1, 0x1220
_NAME, _VERSION, _AVAILABLE = 0x102B, 0x102F, 0x1027
_THREADS, _MEMORY, _LOCAL, _LARGEST = 0x1004, 0x101F, 0x1023, 0x1010
_ALIGN, _PARAMETER, _SINGLE, _BUILD_LOG = 0x1019, 0x1017, 0x101B, 0x1183
_TYPE, _UNIFIED, _GPU = 0x1000, 0x1035, 4
_EXTENSIONS, _SUBGROUP_SIZES = 0x1030, 0x4108
_SWAPS = {"cl_intel_subgroups", "cl_khr_subgroup_shuffle"}
_CORRECTLY_ROUNDED = 1 << 7
_NO_MEMORY = (-4, -5, -6)  # device, resources, host
_NOT_FOUND = (-1, -1001)  # no device, no platform

_FUNCTIONS = (
    *("clGetPlatformIDs", "clGetDeviceIDs", "clGetDeviceInfo", "clCreateContext"),
    *("clCreateCommandQueue", "clCreateBuffer", "clCreateSubBuffer", "clCreateProgramWithSource"),
    *("clBuildProgram", "clGetProgramBuildInfo", "clCreateKernel", "clSetKernelArg"),
    *("clEnqueueNDRangeKernel", "clEnqueueWriteBuffer", "clEnqueueReadBuffer"),
    *("clEnqueueCopyBuffer", "clFinish", "clFlush", "clReleaseMemObject", "clReleaseKernel"),
    *("clReleaseProgram", "clReleaseCommandQueue", "clReleaseContext"),
)
_MAKERS = tuple(f for f in _FUNCTIONS if f.startswith("clCreate"))


def available_memory(index: int = 0) -> int | None:
    """See DeviceModule: all of the device's, for its driver does not tell what is taken."""
    driver = _driver()
    return _number(driver, _device(driver, index), _MEMORY)


def reports() -> list[DeviceReport]:
    """See DeviceModule."""
    try:
        driver = _driver()
        found = _devices(driver)
        _device(driver, 0)
    except Unavailable as error:
        return [DeviceReport("opencl", False, "", str(error))]
    return [
        DeviceReport(
            f"opencl:{i}" if i else "opencl", True,
            f"{_text(driver, d, _NAME)}, {_text(driver, d, _VERSION)}, "
            f"{_number(driver, d, _MEMORY) / 2**30:.1f} GiB memory", "",
            faster=bool(_number(driver, d, _TYPE) & _GPU) and not _number(driver, d, _UNIFIED),
        )
        for i, d in enumerate(found)
    ]  # fmt: skip


def open_device(index: int = 0) -> OpenCLDevice:
    """The device with that number, over all platforms; Unavailable says what is missing."""
    driver = _driver()
    return OpenCLDevice(driver, _device(driver, index))


load = loader(open_device)


def _device(driver: ctypes.CDLL, index: int) -> int:
    found = _devices(driver)
    if not found:
        raise Unavailable(
            "no OpenCL device is here: libOpenCL was found, but no driver offers a device; install "
            "the one of the hardware's maker, or pocl-opencl-icd to run on the CPU"
        )
    check_number("OpenCL device", index, len(found))
    return found[index]


def _driver() -> ctypes.CDLL:
    name = _NAMES.get(sys.platform, "libOpenCL.so.1")
    try:
        library = ctypes.CDLL(name)
    except OSError:
        raise Unavailable(
            f"OpenCL is not on this machine: {name} is missing; install the OpenCL driver of the "
            "hardware's maker, or ocl-icd-libopencl1 with pocl-opencl-icd to run on the CPU"
        ) from None
    for function in _FUNCTIONS:
        found = getattr(library, function, None)
        if found is None:
            raise Unavailable(f"the OpenCL of this machine is too old: {name} has no {function}")
        found.restype = c_void_p if function in _MAKERS else c_int32
    return library


def _devices(driver: ctypes.CDLL) -> list[int]:
    platforms = _handles(lambda n, ids, count: driver.clGetPlatformIDs(n, ids, count))
    found: list[int] = []
    for platform in platforms:
        at = c_void_p(platform)
        found += _handles(
            lambda n, ids, count, at=at: driver.clGetDeviceIDs(  # type: ignore[misc]
                at, c_uint64(_ALL_DEVICES), n, ids, count
            )
        )
    return found


def _handles(ask: Callable[[c_uint32, Any, Any], int]) -> list[int]:
    count = c_uint32()
    code = ask(c_uint32(0), None, byref(count))
    if code in _NOT_FOUND or count.value == 0:
        return []
    _check(code, "listing devices")
    ids = (c_void_p * count.value)()
    _check(ask(count, ids, None), "listing devices")
    return [int(i or 0) for i in ids]


def _check(code: int, what: str) -> None:
    if code in _NO_MEMORY:
        raise OutOfMemory(f"the OpenCL device has no memory left for {what}; use a smaller context")
    if code != 0:
        raise DeviceError(f"OpenCL failed in {what} with code {code}")


def _info(driver: ctypes.CDLL, device: int, what: int, size: int = 8) -> bytes:
    buffer = ctypes.create_string_buffer(size)
    code = driver.clGetDeviceInfo(c_void_p(device), c_uint32(what), c_size_t(size), buffer, None)
    _check(code, "asking what the device is")
    return buffer.raw


def _text(driver: ctypes.CDLL, device: int, what: int, most: int = 1024) -> str:
    return _info(driver, device, what, most).split(b"\0")[0].decode(errors="replace").strip()


def _number(driver: ctypes.CDLL, device: int, what: int) -> int:
    return int.from_bytes(_info(driver, device, what), "little")


def _lanes(driver: ctypes.CDLL, device: int) -> int:
    """The most threads that a kernel may ask for in a subgroup; 0 where it cannot ask or swap."""
    extensions = set(_text(driver, device, _EXTENSIONS, 1 << 14).split())
    if "cl_intel_required_subgroup_size" not in extensions or not extensions & _SWAPS:
        return 0
    sizes = np.frombuffer(_info(driver, device, _SUBGROUP_SIZES, 8 * 16), np.uint64)
    return int(max(sizes))


@dataclass(frozen=True, slots=True)
class _Launch:
    kernel: c_void_p
    threads: int
    first_dim: int


class OpenCLDevice:
    """See work_groups.Device. Owns a context, a queue, and all that was made in them."""

    def __init__(self, driver: ctypes.CDLL, device: int) -> None:
        self._driver, self._id = driver, c_void_p(device)
        self.name = _text(driver, device, _NAME)
        parameter = _number(driver, device, _PARAMETER)
        self.limits = Limits(
            memory=_number(driver, device, _MEMORY),
            buffer_bytes=_number(driver, device, _LARGEST),
            group_threads=_number(driver, device, _THREADS),
            shared_bytes=_number(driver, device, _LOCAL),
            buffers=max(1, parameter // 8 - 8),
            lanes=_lanes(driver, device),
        )
        self.align = _number(driver, device, _ALIGN) // 8
        self._rounded = bool(_number(driver, device, _SINGLE) & _CORRECTLY_ROUNDED)
        self._made: list[tuple[str, c_void_p]] = []
        self._context = self._new(
            "Context", None, c_uint32(1), byref(self._id), None, None, what="a context"
        )
        self._queue = self._new(
            "CommandQueue", self._context, self._id, c_uint64(0), what="a queue"
        )
        self._program: c_void_p | None = None

    def _new(self, kind: str, *args: Any, what: str) -> c_void_p:
        """Call clCreate<kind> and remember to release what it made."""
        code = c_int32()
        made = c_void_p(getattr(self._driver, f"clCreate{kind}")(*args, byref(code)))
        _check(code.value, what)
        release = {"Buffer": "MemObject", "SubBuffer": "MemObject"}.get(kind, kind)
        self._made.append((release.removesuffix("WithSource"), made))
        return made

    def compile(self, code: bytes, phases: Sequence[Phase]) -> dict[str, Any]:
        """See Device: the driver's own compiler."""
        text = c_char_p(code)
        program = self._new(
            "ProgramWithSource",
            self._context,
            c_uint32(1),
            byref(text),
            byref(c_size_t(len(code))),
            what="a program",
        )
        options = _BUILD + (_CORRECT if self._rounded else b"")
        failed = self._driver.clBuildProgram(
            program, c_uint32(1), byref(self._id), c_char_p(options), None, None
        )
        if failed:
            log = ctypes.create_string_buffer(1 << 16)
            self._driver.clGetProgramBuildInfo(
                program, self._id, c_uint32(_BUILD_LOG), c_size_t(len(log)), log, None
            )
            first = log.value.decode(errors="replace").strip()[:2000]
            raise ArtifactError(
                f"the OpenCL driver of {self.name} refused the kernels (code {failed}): {first}"
            )
        self._program = program
        return {phase.symbol: phase.symbol for phase in phases}

    def allocate(self, size: int) -> c_void_p:
        return self._new(
            "Buffer", self._context, c_uint64(_READ_WRITE), c_size_t(size), None,
            what=f"a buffer of {size} bytes",
        )  # fmt: skip

    def view(self, buffer: c_void_p, offset: int, size: int) -> c_void_p:
        if offset % self.align:
            raise ArtifactError(
                f"the library places tensors at multiples it was compiled for, and {self.name} "
                f"wants multiples of {self.align} bytes; compile the model for this device"
            )
        region = (c_size_t * 2)(offset, size)
        return self._new(
            "SubBuffer", buffer, c_uint64(_READ_WRITE), c_uint32(_REGION), region, what="a view"
        )

    def write(self, buffer: c_void_p, data: NDArray[Any], offset: int = 0) -> None:
        held = np.ascontiguousarray(data)
        code = self._driver.clEnqueueWriteBuffer(
            self._queue, buffer, c_uint32(1), c_size_t(offset), c_size_t(held.nbytes),
            c_void_p(held.ctypes.data), c_uint32(0), None, None,
        )  # fmt: skip
        _check(code, "writing a buffer")

    def read(self, buffer: c_void_p, out: NDArray[Any], offset: int = 0) -> None:
        code = self._driver.clEnqueueReadBuffer(
            self._queue, buffer, c_uint32(1), c_size_t(offset), c_size_t(out.nbytes),
            c_void_p(out.ctypes.data), c_uint32(0), None, None,
        )  # fmt: skip
        _check(code, "reading a result")

    def copy(self, buffer: c_void_p, source: int, destination: int, size: int) -> None:
        code = self._driver.clEnqueueCopyBuffer(
            self._queue, buffer, buffer, c_size_t(source), c_size_t(destination), c_size_t(size),
            c_uint32(0), None, None,
        )  # fmt: skip
        _check(code, "copying a page")

    def prepare(
        self, function: str, phase: Phase, buffers: Sequence[c_void_p], dims: Sequence[str]
    ) -> _Launch:
        kernel = self._new("Kernel", self._program, c_char_p(function.encode()), what=function)
        for i, buffer in enumerate(buffers):
            code = self._driver.clSetKernelArg(
                kernel, c_uint32(i), c_size_t(ctypes.sizeof(c_void_p)), byref(buffer)
            )
            _check(code, f"giving {function} its buffers")
        return _Launch(kernel, phase.threads, len(buffers))

    def run(self, launches: Sequence[tuple[_Launch, int, Sequence[int]]]) -> None:
        driver, four = self._driver, c_size_t(4)
        for launch, groups, values in launches:
            for i, value in enumerate(values):
                at = c_uint32(launch.first_dim + i)
                driver.clSetKernelArg(launch.kernel, at, four, byref(c_int32(value)))
            size, local = c_size_t(groups * launch.threads), c_size_t(launch.threads)
            code = driver.clEnqueueNDRangeKernel(
                self._queue, launch.kernel, c_uint32(1), None, byref(size), byref(local),
                c_uint32(0), None, None,
            )  # fmt: skip
            _check(code, "launching a kernel")
        _check(driver.clFlush(self._queue), "starting a step")

    def close(self) -> None:
        if self._made:
            self._driver.clFinish(self._queue)
        while self._made:
            kind, handle = self._made.pop()
            getattr(self._driver, f"clRelease{kind}")(handle)
