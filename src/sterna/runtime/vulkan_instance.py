"""Which Vulkan devices there are, and what each says of itself.

Out: an Instance, with the devices on which kernels of Sterna can run. Whoever makes one closes it.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_void_p
from ctypes import c_uint32 as u32

from sterna.base.errors import Unavailable
from sterna.runtime import vulkan_api as vk
from sterna.runtime.report import check_number
from sterna.runtime.vulkan_features import Offer, offer_of

_DISCRETE = 2  # type of a device: a GPU with memory of its own
_COMPUTE = 2  # a queue that runs kernels
_LOCAL = 1  # memory of the device's own
_KERNELS, _SHUFFLE = 0x20, 0x10  # of subgroups: stages that have them, what they can do


class Instance:
    """The loader and the devices that can compute: Vulkan 1.2, with a queue for kernels."""

    def __init__(self) -> None:
        self.driver = vk.loader()
        application = vk.record(vk.ApplicationInfo, 0, apiVersion=vk.VERSION_1_2)
        wanted = vk.record(vk.InstanceCreateInfo, 1, pApplicationInfo=ctypes.pointer(application))
        self.handle = c_void_p()
        if self.driver.vkCreateInstance(byref(wanted), None, byref(self.handle)):
            raise Unavailable(
                "no Vulkan device is here: the loader was found, but no driver; install the one of "
                "the hardware's maker, or mesa-vulkan-drivers to run on the CPU"
            )
        self.devices = [d for d in self._all() if self._computes(d)]

    def _all(self) -> list[c_void_p]:
        count = u32()
        self.driver.vkEnumeratePhysicalDevices(self.handle, byref(count), None)
        found = (c_void_p * count.value)()
        if count.value:
            code = self.driver.vkEnumeratePhysicalDevices(self.handle, byref(count), found)
            vk.check(code, "listing devices")
        return [c_void_p(device) for device in found]

    def _computes(self, device: c_void_p) -> bool:
        new_enough = self.properties(device).apiVersion >= vk.VERSION_1_2
        return new_enough and self.queue_family(device) is not None

    def chosen(self, index: int) -> c_void_p:
        if not self.devices:
            raise Unavailable(
                "no Vulkan device is here: no driver offers one with Vulkan 1.2 that computes; "
                "install the one of the hardware's maker, or mesa-vulkan-drivers to run on the CPU"
            )
        check_number("Vulkan device", index, len(self.devices))
        return self.devices[index]

    def properties(self, device: c_void_p) -> vk.Properties:
        found = vk.Properties()
        self.driver.vkGetPhysicalDeviceProperties(device, byref(found))
        return found

    def lanes(self, device: c_void_p) -> int:
        """Threads of a kernel's subgroup, where they can exchange values; otherwise 0."""
        found = vk.record(vk.SubgroupProperties, 1000094000)
        asked = vk.record(vk.Properties2, 1000059001, pNext=ctypes.addressof(found))
        self.driver.vkGetPhysicalDeviceProperties2(device, byref(asked))
        able = found.stages & _KERNELS and found.operations & _SHUFFLE
        return int(found.subgroupSize) if able else 0

    def offer(self, device: c_void_p) -> Offer:
        return offer_of(self.driver, self.handle, device)

    def memory(self, device: c_void_p) -> vk.MemoryProperties:
        found = vk.MemoryProperties()
        self.driver.vkGetPhysicalDeviceMemoryProperties(device, byref(found))
        return found

    def queue_family(self, device: c_void_p) -> int | None:
        count = u32()
        ask = self.driver.vkGetPhysicalDeviceQueueFamilyProperties
        ask(device, byref(count), None)
        found = (vk.QueueFamily * count.value)()
        ask(device, byref(count), found)
        return next((i for i, f in enumerate(found) if f.queueFlags & _COMPUTE), None)

    def told(self, device: c_void_p) -> str:
        properties = self.properties(device)
        version = f"{properties.apiVersion >> 22 & 0x7F}.{properties.apiVersion >> 12 & 0x3FF}"
        size, lanes = memory_bytes(self.memory(device)) / 2**30, self.lanes(device)
        groups = f"subgroups of {lanes}, " if lanes else ""
        groups += "".join(f"matrices {shape}, " for shape in self.offer(device).sorted())
        return f"{name_of(properties)}, Vulkan {version}, {groups}{size:.1f} GiB memory"

    def has_own_memory(self, device: c_void_p) -> bool:
        return bool(self.properties(device).deviceType == _DISCRETE)

    def close(self) -> None:
        self.driver.vkDestroyInstance(self.handle, None)
        self.handle = c_void_p()  # to destroy nothing is allowed


def name_of(properties: vk.Properties) -> str:
    return str(properties.deviceName.decode(errors="replace")).strip()


def own_heap(memory: vk.MemoryProperties) -> int:
    """The number of the device's largest own heap."""
    heaps = memory.memoryHeaps[: memory.memoryHeapCount]
    return max(range(len(heaps)), key=lambda i: (heaps[i].flags & _LOCAL, heaps[i].size))


def memory_bytes(memory: vk.MemoryProperties) -> int:
    return int(memory.memoryHeaps[own_heap(memory)].size)
