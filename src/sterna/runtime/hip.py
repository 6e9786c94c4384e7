"""ROCm as a device: HIP's module interface through ctypes, as AMD's driver package brings it.

Libraries bring code objects for several GPUs, of which HIP takes the one that fits. Those compiled
for `rocm:source` want hipRTC here.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import byref, c_int32, c_size_t, c_uint32
from typing import Any

from sterna.base.errors import Unavailable
from sterna.runtime.report import DeviceReport, check_number
from sterna.runtime.streams import Calls, StreamDevice, compiled, is_source
from sterna.runtime.work_groups import Limits, loader

_LIBRARIES = ("libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so.5", "libamdhip64.so")
_WINDOWS = ("amdhip64_7.dll", "amdhip64_6.dll")
_COMPILERS = ("libhiprtc.so.7", "libhiprtc.so.6", "libhiprtc.so.5", "libhiprtc.so")
# Of hipDeviceAttribute_t, as numbered since ROCm 5.0.
_THREADS, _SHARED, _INTEGRATED = 56, 74, 16
_CALLS = Calls(
    memory_info="hipMemGetInfo",
    allocate="hipMalloc",
    free="hipFree",
    allocate_host="hipHostMalloc",
    free_host="hipHostFree",
    to_device="hipMemcpyHtoDAsync",
    to_host="hipMemcpyDtoHAsync",
    within="hipMemcpyDtoDAsync",
    make_stream="hipStreamCreateWithFlags",
    free_stream="hipStreamDestroy",
    synchronize="hipStreamSynchronize",
    load_module="hipModuleLoadData",
    unload_module="hipModuleUnload",
    function="hipModuleGetFunction",
    launch="hipModuleLaunchKernel",
    begin_capture="hipStreamBeginCapture",
    end_capture="hipStreamEndCapture",
    instantiate="hipGraphInstantiate",
    launch_graph="hipGraphLaunch",
    free_graph="hipGraphDestroy",
    free_executable="hipGraphExecDestroy",
)


def available_memory(index: int = 0) -> int | None:
    """See DeviceModule."""
    device = open_device(index)
    try:
        return device.free_memory()
    finally:
        device.close()


def reports() -> list[DeviceReport]:
    """See DeviceModule."""
    try:
        driver = _driver()
        check_index(driver, 0)
    except Unavailable as error:
        return [DeviceReport("rocm", False, "", str(error))]
    return [
        DeviceReport(
            f"rocm:{i}" if i else "rocm", True, _told(driver, i), "",
            faster=_faster(driver, i),
        )
        for i in range(_count(driver))
    ]  # fmt: skip


def open_device(index: int = 0) -> HipDevice:
    """The device with that number; Unavailable says what is missing."""
    return HipDevice(_driver(), index)


load = loader(open_device)


def _driver() -> Any:
    names = _WINDOWS if sys.platform == "win32" else _LIBRARIES
    found = _first(names)
    if found is None:
        raise Unavailable(
            f"ROCm is not on this machine: {names[-1]} is missing; install AMD's ROCm runtime"
        )
    return checked(found)


def _first(names: tuple[str, ...]) -> Any:
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def checked(driver: Any) -> Any:
    """The driver, ready to be asked; Unavailable where it is too old or refuses."""
    missing = [name for name in _CALLS.names() if getattr(driver, name, None) is None]
    if missing:
        raise Unavailable(
            f"the ROCm of this machine is too old: it has no {missing[0]}; ROCm 5.0 or newer is "
            "needed"
        )
    driver.hipGetErrorString.restype = ctypes.c_char_p
    code = driver.hipInit(c_uint32(0))
    if code:
        raise Unavailable(f"ROCm is here but offers nothing: {_reason(driver, code)}")
    return driver


def _reason(driver: Any, code: int) -> str:
    text = driver.hipGetErrorString(c_int32(code)) or b"no reason given"
    return f"{text.decode(errors='replace')} (code {code})"


def _count(driver: Any) -> int:
    count = c_int32()
    return 0 if driver.hipGetDeviceCount(byref(count)) else count.value


def check_index(driver: Any, index: int) -> None:
    """Unavailable where there is no such device."""
    count = _count(driver)
    if not count:
        raise Unavailable("ROCm is here, but no GPU that it runs on")
    check_number("ROCm device", index, count)


def _attribute(driver: Any, index: int, which: int) -> int:
    found = c_int32()
    driver.hipDeviceGetAttribute(byref(found), c_int32(which), c_int32(index))
    return found.value


def _name(driver: Any, index: int) -> str:
    text = ctypes.create_string_buffer(256)
    driver.hipDeviceGetName(text, c_int32(len(text)), c_int32(index))
    return text.value.decode(errors="replace") or f"ROCm device {index}"


def _memory(driver: Any, index: int) -> int:
    size = c_size_t()
    driver.hipDeviceTotalMem(byref(size), c_int32(index))
    return size.value


def _faster(driver: Any, index: int) -> bool:
    """Whether it has memory of its own."""
    return not _attribute(driver, index, _INTEGRATED)


def _told(driver: Any, index: int) -> str:
    compiler = "" if _first(_COMPILERS) is None else ", hipRTC"
    return f"{_name(driver, index)}{compiler}, {_memory(driver, index) / 2**30:.1f} GiB memory"


class HipDevice(StreamDevice):
    """See StreamDevice."""

    calls, maker, graph_options = _CALLS, "ROCm", (None, None, c_size_t(0))

    def __init__(self, driver: Any, index: int) -> None:
        check_index(driver, index)
        self._index = c_int32(index)
        memory = _memory(driver, index)
        limits = Limits(
            memory=memory,
            buffer_bytes=memory,
            group_threads=_attribute(driver, index, _THREADS),
            shared_bytes=_attribute(driver, index, _SHARED),
            buffers=256,
            lanes=32,
        )
        super().__init__(driver, _name(driver, index), limits)

    def _activate(self) -> None:
        self._call("hipSetDevice", self._index, what="choosing the device")

    def _reason(self, code: int) -> str:
        return _reason(self._driver, code)

    def _binary(self, code: bytes) -> bytes:
        return self._compiled(code, _first(_COMPILERS)) if is_source(code) else code

    def _compiled(self, source: bytes, hiprtc: Any) -> bytes:
        if hiprtc is None:
            raise Unavailable(
                "the library brings source, which hipRTC compiles, and hipRTC is not here: install "
                "it with ROCm, or compile the model for rocm"
            )
        return compiled(hiprtc, "hiprtc", "Code", source, [b"-ffp-contract=off"], self.name)

    def _release(self) -> None:
        """Nothing is held."""
