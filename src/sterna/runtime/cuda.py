"""CUDA as a device: the driver's own interface through ctypes; no toolkit is needed.

Libraries bring PTX, which the driver finishes. Those compiled for `cuda:source` want NVRTC here.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from ctypes import byref, c_char_p, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

from sterna.base.errors import DeviceError, Unavailable
from sterna.runtime.report import DeviceReport, check_number
from sterna.runtime.streams import Calls, StreamDevice, compiled, is_source
from sterna.runtime.work_groups import Limits, loader

_OLDEST = 11040  # version of the driver that has every call below
_THREADS, _SHARED, _INTEGRATED, _MAJOR, _MINOR = 1, 8, 18, 75, 76
_NVRTC = ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2", "libnvrtc.so")
_CALLS = Calls(
    memory_info="cuMemGetInfo_v2",
    allocate="cuMemAlloc_v2",
    free="cuMemFree_v2",
    allocate_host="cuMemHostAlloc",
    free_host="cuMemFreeHost",
    to_device="cuMemcpyHtoDAsync_v2",
    to_host="cuMemcpyDtoHAsync_v2",
    within="cuMemcpyDtoDAsync_v2",
    make_stream="cuStreamCreate",
    free_stream="cuStreamDestroy_v2",
    synchronize="cuStreamSynchronize",
    load_module="cuModuleLoadData",
    unload_module="cuModuleUnload",
    function="cuModuleGetFunction",
    launch="cuLaunchKernel",
    begin_capture="cuStreamBeginCapture_v2",
    end_capture="cuStreamEndCapture",
    instantiate="cuGraphInstantiateWithFlags",
    launch_graph="cuGraphLaunch",
    free_graph="cuGraphDestroy",
    free_executable="cuGraphExecDestroy",
)


def available_memory(index: int = 0) -> int | None:
    """See DeviceModule."""
    driver = _driver()
    _handle(driver, index)
    device = CudaDevice(driver, index)
    try:
        return device.free_memory()
    finally:
        device.close()


def reports() -> list[DeviceReport]:
    """See DeviceModule."""
    try:
        driver = _driver()
        count = _count(driver)
        _handle(driver, 0)
    except Unavailable as error:
        return [DeviceReport("cuda", False, "", str(error))]
    return [
        DeviceReport(
            f"cuda:{i}" if i else "cuda",
            True,
            _told(driver, _handle(driver, i)),
            "",
            _faster(driver, i),
        )
        for i in range(count)
    ]


def open_device(index: int = 0) -> CudaDevice:
    """The device with that number; Unavailable says what is missing."""
    driver = _driver()
    _handle(driver, index)
    return CudaDevice(driver, index)


load = loader(open_device)


def _driver() -> Any:
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        raise Unavailable(
            f"CUDA is not on this machine: {name} is missing; install NVIDIA's driver"
        ) from None
    return checked(driver)


def checked(driver: Any) -> Any:
    """The driver, ready to be asked; Unavailable where it is too old or refuses."""
    missing = [name for name in _CALLS.names() if getattr(driver, name, None) is None]
    version = c_int32()
    if missing or driver.cuDriverGetVersion(byref(version)) or version.value < _OLDEST:
        raise Unavailable(
            f"NVIDIA's driver is too old: it offers CUDA {version.value // 1000}."
            f"{version.value % 1000 // 10}, and {_OLDEST // 1000}.{_OLDEST % 1000 // 10} or newer "
            "is needed; update the driver"
        )
    code = driver.cuInit(c_uint32(0))
    if code:
        raise Unavailable(f"NVIDIA's driver is here but offers nothing: {_reason(driver, code)}")
    return driver


def _reason(driver: Any, code: int) -> str:
    text = c_char_p()
    driver.cuGetErrorString(c_int32(code), byref(text))
    return f"{(text.value or b'no reason given').decode(errors='replace')} (code {code})"


def _count(driver: Any) -> int:
    count = c_int32()
    return 0 if driver.cuDeviceGetCount(byref(count)) else count.value


def _handle(driver: Any, index: int) -> c_int32:
    count = _count(driver)
    if not count:
        raise Unavailable("NVIDIA's driver is here, but no GPU of theirs")
    check_number("CUDA device", index, count)
    found = c_int32()
    driver.cuDeviceGet(byref(found), c_int32(index))
    return found


def _attribute(driver: Any, device: c_int32, which: int) -> int:
    found = c_int32()
    driver.cuDeviceGetAttribute(byref(found), c_int32(which), device)
    return found.value


def _name(driver: Any, device: c_int32) -> str:
    text = ctypes.create_string_buffer(256)
    driver.cuDeviceGetName(text, c_int32(len(text)), device)
    return text.value.decode(errors="replace")


def _memory(driver: Any, device: c_int32) -> int:
    size = c_size_t()
    driver.cuDeviceTotalMem_v2(byref(size), device)
    return size.value


def _faster(driver: Any, index: int) -> bool:
    """Whether it has memory of its own."""
    return not _attribute(driver, _handle(driver, index), _INTEGRATED)


def _told(driver: Any, device: c_int32) -> str:
    major, minor = (_attribute(driver, device, which) for which in (_MAJOR, _MINOR))
    source = "" if _nvrtc() is None else ", NVRTC"
    return (
        f"{_name(driver, device)}, sm_{major}{minor}{source}, "
        f"{_memory(driver, device) / 2**30:.1f} GiB memory"
    )


def _nvrtc() -> Any:
    """The maker's compiler where it is installed, as a system's or Python's package."""
    spec = importlib.util.find_spec("nvidia")
    folders = list(spec.submodule_search_locations or []) if spec else []
    packaged = sorted(str(f) for folder in folders for f in Path(folder).rglob("libnvrtc.so.*"))
    for name in (*_NVRTC, *packaged):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


class CudaDevice(StreamDevice):
    """See StreamDevice. Holds the device's primary context while it is open."""

    calls, maker, graph_options = _CALLS, "CUDA", (c_uint64(0),)

    def __init__(self, driver: Any, index: int) -> None:
        self._id = _handle(driver, index)
        self._context = c_void_p()
        self._compute = "".join(str(_attribute(driver, self._id, w)) for w in (_MAJOR, _MINOR))
        title, memory = _name(driver, self._id), _memory(driver, self._id)
        code = driver.cuDevicePrimaryCtxRetain(byref(self._context), self._id)
        if code:
            raise DeviceError(f"CUDA failed in opening {title}: {_reason(driver, code)}")
        limits = Limits(
            memory=memory,
            buffer_bytes=memory,
            group_threads=_attribute(driver, self._id, _THREADS),
            shared_bytes=_attribute(driver, self._id, _SHARED),
            buffers=256,
            lanes=32,
        )
        super().__init__(driver, title, limits)

    def _activate(self) -> None:
        self._call("cuCtxSetCurrent", self._context, what="choosing the device")

    def _reason(self, code: int) -> str:
        return _reason(self._driver, code)

    def _binary(self, code: bytes) -> bytes:
        return self._compiled(code, _nvrtc()) if is_source(code) else code

    def _compiled(self, source: bytes, nvrtc: Any) -> bytes:
        if nvrtc is None:
            raise Unavailable(
                "the library brings source, which NVRTC compiles, and NVRTC is not here: "
                "`pip install nvidia-cuda-nvrtc`, or compile the model for cuda"
            )
        options = [f"-arch=sm_{self._compute}".encode(), b"-fmad=false"]
        return compiled(nvrtc, "nvrtc", "CUBIN", source, options, self.name)

    def _release(self) -> None:
        self._driver.cuDevicePrimaryCtxRelease_v2(self._id)
