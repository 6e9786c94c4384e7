"""The Vulkan device on lavapipe, or any driver that is here, and drivers that fail."""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "device"))

from adding_kernel import adding_kernel, multiplying_kernel

from sterna.base.artifact import Phase
from sterna.base.errors import ArtifactError, DeviceError, OutOfMemory, Unavailable
from sterna.runtime import vulkan, vulkan_api, vulkan_instance
from sterna.runtime.vulkan import VulkanDevice
from sterna.runtime.vulkan_code import Shape, entry_of, modules_of, shape_of
from sterna.runtime.vulkan_features import Offer, Request, offer_of
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
    device.offer = replace(device.offer, small=frozenset())
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
    with pytest.raises(Unavailable, match="Vulkan device 99 was asked for, and"):
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


SHAPE = Shape(16, 16, 16, "f16", "f32")
SIZES, MATRICES = b"VK_EXT_subgroup_size_control", b"VK_KHR_cooperative_matrix"


class Offering:
    """The calls by which a device says what it has; it has all that matrices need but `without`."""

    def __init__(self, without: str = "") -> None:
        self.without = without
        kind = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_void_p] * 3)
        self.shapes = kind(self.shapes_call)

    def extensions(self, device: Any, layer: Any, count: Any, found: Any) -> int:
        names = [n for n in (SIZES, MATRICES) if n.decode() != self.without]
        count._obj.value = len(names)
        for i, name in enumerate(names if found is not None else []):
            found[i].extensionName = name
        return 0

    def records(self, first: Any) -> dict[int, int]:
        """The address of each record of a chain, by its type."""
        found, at = dict[int, int](), first._obj.pNext
        while at:
            head = vulkan_api.SubgroupSize.from_address(at)
            found[head.sType], at = at, head.pNext
        return found

    def features(self, device: Any, first: Any) -> None:
        chain = self.records(first)
        vulkan_api.Features11.from_address(chain[49]).storageBuffer16BitAccess = 1
        of12 = vulkan_api.Features12.from_address(chain[51])
        of12.storageBuffer8BitAccess = 1
        of12.shaderFloat16 = self.without != "arithmetic in f16"
        of12.vulkanMemoryModel = self.without != "the Vulkan memory model"
        if 1000506000 in chain:
            vulkan_api.MatrixFeatures.from_address(chain[1000506000]).cooperativeMatrix = 1
        if 1000225002 in chain:
            sizes = vulkan_api.SubgroupSizeFeatures.from_address(chain[1000225002])
            sizes.subgroupSizeControl, sizes.computeFullSubgroups = 1, self.without != "full"

    def properties(self, device: Any, first: Any) -> None:
        sizes = vulkan_api.SubgroupSizeProperties.from_address(self.records(first)[1000225000])
        sizes.least, sizes.most, sizes.subgroups, sizes.stages = 32, 64, 8, 0x20

    def shapes_call(self, device: int, count: int, found: int | None) -> int:
        """Three shapes: one that is known, one of whole numbers, one of whole work groups."""
        ctypes.c_uint32.from_address(count).value = 3
        if found:
            kinds = ((0, 0, 1, 1, 3), (3, 3, 5, 5, 3), (0, 0, 1, 1, 2))
            records = (vulkan_api.MatrixProperties * 3).from_address(found)
            for i, (record, kind) in enumerate(zip(records, kinds, strict=True)):
                assert record.sType == 1000506001
                record.rows = record.columns = record.depth = 16 << i
                record.a, record.b, record.c, record.result, record.scope = kind
        return 0

    def address(self, instance: Any, name: bytes) -> int | None:
        assert name == b"vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR"
        return ctypes.cast(self.shapes, ctypes.c_void_p).value

    def offer(self) -> Offer:
        driver = Driver(
            None, vkEnumerateDeviceExtensionProperties=self.extensions,
            vkGetPhysicalDeviceFeatures2=self.features, vkGetInstanceProcAddr=self.address,
            vkGetPhysicalDeviceProperties2=self.properties,
        )  # fmt: skip
        return offer_of(driver, ctypes.c_void_p(), ctypes.c_void_p())  # type: ignore[arg-type]


def test_what_a_device_offers_of_matrices() -> None:
    offer = Offering().offer()
    assert offer == Offer(frozenset({4433, 4448}), (), frozenset({SHAPE}), (32, 64), 8)
    assert offer.lacks(SHAPE, 32, 256) == ""
    small = replace(SHAPE, rows=8)
    assert offer.lacks(small, 32, 256) == "that shape (it has 16x16x16 f16 to f32)"
    assert offer.lacks(SHAPE, 16, 128) == "subgroups of that size (they have 32 to 64 threads)"
    assert offer.lacks(SHAPE, 32, 288) == "groups of so many subgroups (it has 8 at most)"
    none = replace(offer, shapes=frozenset())
    assert none.lacks(SHAPE, 32, 32) == "that shape (it has none)"
    assert Request(offer).fields["extensions"] == 2


@pytest.mark.parametrize(
    ("without", "told"),
    [
        (MATRICES.decode(), "VK_KHR_cooperative_matrix"),
        (SIZES.decode(), "VK_EXT_subgroup_size_control for kernels"),
        ("full", "VK_EXT_subgroup_size_control for kernels"),
        ("arithmetic in f16", "arithmetic in f16"),
        ("the Vulkan memory model", "the Vulkan memory model"),
    ],
)
def test_what_matrices_need_and_a_device_lacks(without: str, told: str) -> None:
    offer = Offering(without).offer()
    assert offer.missing == (told,)
    assert offer.lacks(SHAPE, 32, 256) == told
    assert Request(offer).fields["extensions"] == 0


def test_kernels_of_matrices_are_refused_where_they_cannot_run(device: VulkanDevice) -> None:
    code, phase = multiplying_kernel()
    (module,) = modules_of(code)
    assert shape_of(module) == SHAPE
    for offer, told in (
        (Offering(MATRICES.decode()).offer(), "lacks VK_KHR_cooperative_matrix; compile"),
        (replace(Offering().offer(), shapes=frozenset()), r"lacks that shape \(it has none\)"),
    ):
        device.offer = offer
        with pytest.raises(DeviceError, match=told) as error:
            device.compile(code, [phase])
        assert "multiplies matrices (16x16x16 f16 to f32) in subgroups of 32" in str(error.value)


def test_a_module_that_says_of_matrices_what_it_has_not() -> None:
    code, _ = multiplying_kernel()
    (module,) = modules_of(code)
    words = np.frombuffer(module, "<u4").copy()
    types = np.flatnonzero(words == 7 << 16 | 4456)
    assert len(types) == 3
    for at in types:
        for broken in (words[:at], np.append(words[:at], np.uint32(7 << 16 | 4456))):
            with pytest.raises(ArtifactError, match="has no matrices: compile the model again"):
                shape_of(broken.tobytes())
    words[types[0] + 2] = 77  # a type of elements that is none
    assert shape_of(words.tobytes()) != SHAPE
