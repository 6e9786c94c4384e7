"""The Vulkan device on lavapipe, or any driver that is here, and drivers that fail."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "device"))

from adding_kernel import adding_kernel

from sterna.base.artifact import Phase
from sterna.base.errors import ArtifactError, DeviceError, OutOfMemory, Unavailable
from sterna.runtime import vulkan, vulkan_api, vulkan_instance
from sterna.runtime.vulkan import VulkanDevice
from sterna.runtime.vulkan_code import entry_of, modules_of
from sterna.runtime.vulkan_instance import Instance


class Driver:
    """The loader, with some of its calls replaced. Counts all of them."""

    def __init__(self, real: Any, **replaced: Callable[..., Any]) -> None:
        self.real, self.replaced, self.calls = real, replaced, list[str]()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = self.replaced.get(name) or getattr(self.real, name)

        def counted(*args: Any) -> Any:
            self.calls.append(name)
            return call(*args)

        return counted


class Discrete(VulkanDevice):
    """A device whose own memory the processor does not reach."""

    def _memory_type(self, flags: int, *, own: bool, bits: int = 0xFFFFFFFF) -> int | None:
        return None if own else super()._memory_type(flags, own=own, bits=bits)


def opened(kind: type[VulkanDevice] = VulkanDevice) -> VulkanDevice:
    try:
        instance = Instance()
        return kind(instance, instance.chosen(0))
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def device() -> Iterator[VulkanDevice]:
    found = opened()
    yield found
    found.close()


@pytest.mark.parametrize("kind", [VulkanDevice, Discrete])
def test_memory_and_kernels(kind: type[VulkanDevice]) -> None:
    device = opened(kind)
    code, phase = adding_kernel("vulkan")
    size = (9 << 20) + 4  # more than is staged at once
    data = np.arange(size, dtype=np.uint32).view(np.uint8)[:size].copy()
    buffer = device.allocate(size)
    device.write(buffer, data)
    device.write(buffer, data[:8], 100)
    device.copy(buffer, 0, 1 << 20, 4096)
    data[100:108] = data[:8]
    data[1 << 20 : (1 << 20) + 4096] = data[:4096]
    view = device.view(buffer, 1024, 1000)
    function = device.compile(code, [phase])["add"]
    launch = device.prepare(function, phase, [view], ["n"])
    driver = device._driver = Driver(device._driver)  # type: ignore[assignment]
    for _ in range(3):
        device.run([(launch, 16, [999])])
        device._wait()
    assert driver.calls.count("vkBeginCommandBuffer") == 1  # recorded once, replayed twice
    device.run([(launch, 1, [5])])
    data[1024 : 1024 + 999] += 3
    data[1024 : 1024 + 5] += 1
    out = np.empty_like(data)
    device.read(buffer, out)
    np.testing.assert_array_equal(out, data)
    part = np.empty(16, np.uint8)
    device.read(buffer, part, 1020)
    np.testing.assert_array_equal(part, data[1020:1036])
    device.close()
    device.close()


def test_what_it_refuses(device: VulkanDevice) -> None:
    code, phase = adding_kernel("vulkan")
    buffer = device.allocate(1024)
    with pytest.raises(ArtifactError, match="wants multiples of"):
        device.view(buffer, 2, 4)
    launch = device.prepare(device.compile(code, [phase])["add"], phase, [buffer], ["n"])
    with pytest.raises(DeviceError, match="use a smaller prefill_chunk_size"):
        device.run([(launch, device._most_groups + 1, [1])])
    with pytest.raises(ArtifactError, match="no module 'other'"):
        device.compile(code, [Phase("other", "1", 1, (0,), (0,))])
    device._small = set()
    with pytest.raises(DeviceError, match=r"wants 8-bit storage, which .* does not have"):
        device.compile(code, [phase])


def one_step(device: VulkanDevice) -> None:
    code, phase = adding_kernel("vulkan")
    buffer = device.allocate(64)
    launch = device.prepare(device.compile(code, [phase])["add"], phase, [buffer], ["n"])
    device.run([(launch, 1, [64])])
    device.read(buffer, np.empty(64, np.uint8))


@pytest.mark.parametrize("call", ["vkCreateDevice", "vkCreateFence", "vkAllocateCommandBuffers"])
def test_a_device_that_cannot_be_opened(call: str) -> None:
    opened().close()
    instance = Instance()
    instance.driver = Driver(instance.driver, **{call: lambda *_: -2})  # type: ignore[assignment]
    with pytest.raises(OutOfMemory, match="the Vulkan device has no memory left"):
        VulkanDevice(instance, instance.chosen(0))
    calls = instance.driver.calls  # type: ignore[attr-defined]
    assert calls.count("vkDestroyInstance") == 1
    assert calls.count("vkDestroyDevice") == (call != "vkCreateDevice")


@pytest.mark.parametrize(
    ("call", "answer", "error", "told"),
    [
        ("vkAllocateMemory", -2, OutOfMemory, "no memory left for a buffer of 64 bytes"),
        ("vkCreateBuffer", -10, OutOfMemory, "no room for more objects"),
        ("vkQueueSubmit", -4, DeviceError, "was lost in a step"),
        ("vkWaitForFences", -4, DeviceError, "was lost in a step"),
        ("vkEndCommandBuffer", -1, OutOfMemory, "recording a step"),
        ("vkQueueSubmit", -13, DeviceError, "failed in a step with code -13"),
        ("vkCreateComputePipelines", -1000012000, ArtifactError, "refused kernel add"),
    ],
)
def test_a_driver_that_fails(
    call: str, answer: int, error: type[Exception], told: str, device: VulkanDevice
) -> None:
    real = device._driver
    device._driver = Driver(real, **{call: lambda *_: answer})  # type: ignore[assignment]
    with pytest.raises(error, match=told):
        one_step(device)
    device._driver = real


def nothing(*_: Any) -> int:
    return 0


@pytest.mark.parametrize(
    ("replaced", "told"),
    [
        ({"vkCreateInstance": lambda *_: -9}, "no Vulkan device is here: the loader was found"),
        ({"vkEnumeratePhysicalDevices": nothing}, "no driver offers one with Vulkan 1.2"),
        ({"vkGetPhysicalDeviceProperties": nothing}, "no driver offers one with Vulkan 1.2"),
        ({"vkGetPhysicalDeviceQueueFamilyProperties": nothing}, "that computes"),
    ],
)
def test_no_device(
    replaced: dict[str, Callable[..., Any]], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened().close()
    real = vulkan_api.loader()
    monkeypatch.setattr(vulkan_instance.vk, "loader", lambda: Driver(real, **replaced))
    with pytest.raises(Unavailable, match=told):
        vulkan.open_device()
    (report,) = vulkan.reports()
    assert not report.present
    assert told in report.missing


def test_a_number_that_no_device_has() -> None:
    opened().close()
    with pytest.raises(Unavailable, match="Vulkan device 99 was asked for; there are"):
        vulkan.open_device(99)
    with pytest.raises(Unavailable, match="Vulkan device 99"):
        vulkan.available_memory(99)
    assert (vulkan.available_memory(0) or 0) > 0


def test_an_old_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vulkan_api.ctypes, "CDLL", lambda name: object())
    with pytest.raises(Unavailable, match="the Vulkan of this machine is too old"):
        vulkan_api.loader()


def test_code_that_is_no_module() -> None:
    code, _ = adding_kernel("vulkan")
    (module,) = modules_of(code)
    assert entry_of(module) == ("add", {1, 4448})
    for damaged in (code[:-4], code[:3], code[:4], b"\xff" * 40, code + b"\0", b"\0" * 8):
        with pytest.raises(ArtifactError, match="are not SPIR-V"):
            list(modules_of(damaged))
    for rest in (b"", b"\0" * 4, b"\0" * 64, b"\xff" * 7, struct.pack("<2I", 2 << 16 | 17, 1)):
        with pytest.raises(ArtifactError, match="no entry point"):
            entry_of(module[:20] + rest[: len(rest) // 4 * 4])
