"""The part of Vulkan that computing needs, for ctypes: its records, and the loader with its calls.

Field names are Vulkan's own, so that its specification can be read beside them; fields that
nothing here reads are kept together. Knows no model and no kernel.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import POINTER, Structure, c_char, c_char_p, c_float, c_int32, c_size_t, c_uint8
from ctypes import c_uint32 as u32
from ctypes import c_uint64 as u64
from ctypes import c_void_p as pointer
from typing import Any

from sterna.base.errors import DeviceError, OutOfMemory, Unavailable

_NAMES = {"win32": "vulkan-1.dll", "darwin": "libvulkan.1.dylib"}
_FUNCTIONS = (
    *("vkCreateInstance", "vkDestroyInstance", "vkEnumeratePhysicalDevices"),
    *("vkGetPhysicalDeviceProperties", "vkGetPhysicalDeviceProperties2"),
    *("vkGetPhysicalDeviceFeatures2", "vkEnumerateDeviceExtensionProperties"),
    "vkGetInstanceProcAddr",
    *("vkGetPhysicalDeviceMemoryProperties", "vkGetPhysicalDeviceQueueFamilyProperties"),
    *("vkCreateDevice", "vkDestroyDevice", "vkGetDeviceQueue", "vkDeviceWaitIdle"),
    *("vkCreateBuffer", "vkDestroyBuffer", "vkGetBufferMemoryRequirements", "vkAllocateMemory"),
    *("vkFreeMemory", "vkBindBufferMemory", "vkMapMemory", "vkCreateShaderModule"),
    *("vkDestroyShaderModule", "vkCreateDescriptorSetLayout", "vkDestroyDescriptorSetLayout"),
    *("vkCreatePipelineLayout", "vkDestroyPipelineLayout", "vkCreateComputePipelines"),
    *("vkDestroyPipeline", "vkCreateDescriptorPool", "vkDestroyDescriptorPool"),
    *("vkAllocateDescriptorSets", "vkUpdateDescriptorSets", "vkCreateCommandPool"),
    *("vkDestroyCommandPool", "vkAllocateCommandBuffers", "vkBeginCommandBuffer"),
    *("vkEndCommandBuffer", "vkCmdBindPipeline", "vkCmdBindDescriptorSets", "vkCmdPushConstants"),
    *("vkCmdDispatch", "vkCmdPipelineBarrier", "vkCmdCopyBuffer", "vkQueueSubmit"),
    *("vkCreateFence", "vkDestroyFence", "vkWaitForFences", "vkResetFences"),
)
_RETURNS_NOTHING = ("vkDestroy", "vkGet", "vkCmd", "vkFree", "vkUpdate")
_NO_MEMORY = (-1, -2)  # of the host, of the device
_LOST, _TOO_MANY = -4, -10
VERSION_1_2 = 1 << 22 | 2 << 12


def loader() -> ctypes.CDLL:
    """Vulkan's loader; Unavailable where it is not installed or too old."""
    name = _NAMES.get(sys.platform, "libvulkan.so.1")
    try:
        library = ctypes.CDLL(name)
    except OSError:
        raise Unavailable(
            f"Vulkan is not on this machine: {name} is missing; install the graphics driver of the "
            "hardware's maker, or libvulkan1 with mesa-vulkan-drivers to run on the CPU"
        ) from None
    for function in _FUNCTIONS:
        found = getattr(library, function, None)
        if found is None:
            raise Unavailable(f"the Vulkan of this machine is too old: {name} has no {function}")
        found.restype = None if function.startswith(_RETURNS_NOTHING) else c_int32
    library.vkGetInstanceProcAddr.restype = pointer
    return library


def check(code: int, what: str) -> None:
    """Nothing where a call went well; otherwise what it means."""
    if code in _NO_MEMORY:
        raise OutOfMemory(f"the Vulkan device has no memory left for {what}; use a smaller context")
    if code == _TOO_MANY:
        raise OutOfMemory(f"the Vulkan driver has no room for more objects, in {what}")
    if code == _LOST:
        raise DeviceError(
            f"the Vulkan device was lost in {what}: its driver stopped it; load the model again"
        )
    if code != 0:
        raise DeviceError(f"Vulkan failed in {what} with code {code}")


def record(kind: type[Any], number: int, **fields: Any) -> Any:
    """A record that begins with its type's number, as most do."""
    made = kind(**fields)
    made.sType = number
    return made


_HEAD: list[tuple[str, Any]] = [("sType", u32), ("pNext", pointer)]


def _fields(*fields: tuple[str, Any]) -> list[tuple[str, Any]]:
    return [*_HEAD, *fields]


class ApplicationInfo(Structure):
    _fields_ = _fields(
        ("pApplicationName", c_char_p), ("applicationVersion", u32), ("pEngineName", c_char_p),
        ("engineVersion", u32), ("apiVersion", u32),
    )  # fmt: skip


class InstanceCreateInfo(Structure):
    _fields_ = _fields(
        ("flags", u32), ("pApplicationInfo", POINTER(ApplicationInfo)), ("layers", u32),
        ("pLayers", pointer), ("extensions", u32), ("pExtensions", pointer),
    )  # fmt: skip


class Limits(Structure):
    """VkPhysicalDeviceLimits."""

    _fields_ = [
        ("images", u32 * 7), ("maxStorageBufferRange", u32), ("maxPushConstantsSize", u32),
        ("maxMemoryAllocationCount", u32), ("samplers", u32), ("granularity", u64 * 2),
        ("sets", u32 * 3), ("maxPerStageDescriptorStorageBuffers", u32), ("stages", u32 * 4),
        ("set", u32 * 3), ("maxDescriptorSetStorageBuffers", u32), ("graphics", u32 * 26),
        ("maxComputeSharedMemorySize", u32), ("maxComputeWorkGroupCount", u32 * 3),
        ("maxComputeWorkGroupInvocations", u32), ("maxComputeWorkGroupSize", u32 * 3),
        ("precision", u32 * 13), ("minMemoryMapAlignment", c_size_t), ("alignments", u64 * 2),
        ("minStorageBufferOffsetAlignment", u64), ("rest", c_uint8 * 168),
    ]  # fmt: skip


class Properties(Structure):
    """VkPhysicalDeviceProperties."""

    _fields_ = [
        ("apiVersion", u32), ("driverVersion", u32), ("vendorID", u32), ("deviceID", u32),
        ("deviceType", u32), ("deviceName", c_char * 256), ("pipelineCacheUUID", c_uint8 * 16),
        ("limits", Limits), ("sparseProperties", u32 * 5), ("room", c_uint8 * 64),
    ]  # fmt: skip


class SubgroupProperties(Structure):
    """VkPhysicalDeviceSubgroupProperties."""

    _fields_ = _fields(("subgroupSize", u32), ("stages", u32), ("operations", u32), ("quads", u32))


class Properties2(Structure):
    _fields_ = _fields(("properties", Properties))


class Features11(Structure):
    """VkPhysicalDeviceVulkan11Features."""

    _fields_ = _fields(("storageBuffer16BitAccess", u32), ("rest", u32 * 11))


class Features12(Structure):
    """VkPhysicalDeviceVulkan12Features."""

    _fields_ = _fields(
        ("others", u32 * 2), ("storageBuffer8BitAccess", u32), ("atomics", u32 * 4),
        ("shaderFloat16", u32), ("indexing", u32 * 33), ("vulkanMemoryModel", u32),
        ("rest", u32 * 5),
    )  # fmt: skip


class SubgroupSizeFeatures(Structure):
    """VkPhysicalDeviceSubgroupSizeControlFeatures."""

    _fields_ = _fields(("subgroupSizeControl", u32), ("computeFullSubgroups", u32))


class SubgroupSizeProperties(Structure):
    """VkPhysicalDeviceSubgroupSizeControlProperties."""

    _fields_ = _fields(("least", u32), ("most", u32), ("subgroups", u32), ("stages", u32))


class SubgroupSize(Structure):
    """VkPipelineShaderStageRequiredSubgroupSizeCreateInfo."""

    _fields_ = _fields(("requiredSubgroupSize", u32))


class MatrixFeatures(Structure):
    """VkPhysicalDeviceCooperativeMatrixFeaturesKHR."""

    _fields_ = _fields(("cooperativeMatrix", u32), ("robustBufferAccess", u32))


class MatrixProperties(Structure):
    """VkCooperativeMatrixPropertiesKHR."""

    _fields_ = _fields(
        ("rows", u32), ("columns", u32), ("depth", u32), ("a", u32), ("b", u32), ("c", u32),
        ("result", u32), ("saturates", u32), ("scope", u32),
    )  # fmt: skip


class ExtensionProperties(Structure):
    _fields_ = [("extensionName", c_char * 256), ("specVersion", u32)]


class Features2(Structure):
    _fields_ = _fields(("features", u32 * 55))


class QueueFamily(Structure):
    _fields_ = [("queueFlags", u32), ("queueCount", u32), ("rest", u32 * 4)]


class MemoryType(Structure):
    _fields_ = [("propertyFlags", u32), ("heapIndex", u32)]


class MemoryHeap(Structure):
    _fields_ = [("size", u64), ("flags", u32)]


class MemoryProperties(Structure):
    _fields_ = [
        ("memoryTypeCount", u32), ("memoryTypes", MemoryType * 32),
        ("memoryHeapCount", u32), ("memoryHeaps", MemoryHeap * 16),
    ]  # fmt: skip


class QueueCreateInfo(Structure):
    _fields_ = _fields(
        ("flags", u32), ("queueFamilyIndex", u32), ("queueCount", u32),
        ("pQueuePriorities", POINTER(c_float)),
    )  # fmt: skip


class DeviceCreateInfo(Structure):
    _fields_ = _fields(
        ("flags", u32), ("queues", u32), ("pQueues", POINTER(QueueCreateInfo)), ("layers", u32),
        ("pLayers", pointer), ("extensions", u32), ("pExtensions", pointer),
        ("pEnabledFeatures", pointer),
    )  # fmt: skip


class BufferCreateInfo(Structure):
    _fields_ = _fields(
        ("flags", u32), ("size", u64), ("usage", u32), ("sharingMode", u32), ("families", u32),
        ("pFamilies", pointer),
    )  # fmt: skip


class MemoryRequirements(Structure):
    _fields_ = [("size", u64), ("alignment", u64), ("memoryTypeBits", u32)]


class MemoryAllocateInfo(Structure):
    _fields_ = _fields(("allocationSize", u64), ("memoryTypeIndex", u32))


class ShaderModuleCreateInfo(Structure):
    _fields_ = _fields(("flags", u32), ("codeSize", c_size_t), ("pCode", c_char_p))


class SetLayoutBinding(Structure):
    _fields_ = [
        ("binding", u32), ("descriptorType", u32), ("descriptorCount", u32), ("stageFlags", u32),
        ("pImmutableSamplers", pointer),
    ]  # fmt: skip


class SetLayoutCreateInfo(Structure):
    _fields_ = _fields(("flags", u32), ("count", u32), ("pBindings", POINTER(SetLayoutBinding)))


class PushConstantRange(Structure):
    _fields_ = [("stageFlags", u32), ("offset", u32), ("size", u32)]


class PipelineLayoutCreateInfo(Structure):
    _fields_ = _fields(
        ("flags", u32), ("sets", u32), ("pSets", POINTER(u64)), ("ranges", u32),
        ("pRanges", POINTER(PushConstantRange)),
    )  # fmt: skip


class StageCreateInfo(Structure):
    _fields_ = _fields(
        ("flags", u32), ("stage", u32), ("module", u64), ("pName", c_char_p),
        ("pSpecialization", pointer),
    )  # fmt: skip


class PipelineCreateInfo(Structure):
    _fields_ = _fields(
        ("flags", u32), ("stage", StageCreateInfo), ("layout", u64), ("base", u64),
        ("baseIndex", c_int32),
    )  # fmt: skip


class PoolSize(Structure):
    _fields_ = [("type", u32), ("descriptorCount", u32)]


class DescriptorPoolCreateInfo(Structure):
    _fields_ = _fields(
        ("flags", u32), ("maxSets", u32), ("sizes", u32), ("pSizes", POINTER(PoolSize))
    )


class SetAllocateInfo(Structure):
    _fields_ = _fields(("pool", u64), ("count", u32), ("pLayouts", POINTER(u64)))


class BufferInfo(Structure):
    _fields_ = [("buffer", u64), ("offset", u64), ("range", u64)]


class WriteSet(Structure):
    _fields_ = _fields(
        ("dstSet", u64), ("dstBinding", u32), ("element", u32), ("count", u32),
        ("descriptorType", u32), ("pImages", pointer), ("pBuffers", POINTER(BufferInfo)),
        ("pViews", pointer),
    )  # fmt: skip


class CommandPoolCreateInfo(Structure):
    _fields_ = _fields(("flags", u32), ("queueFamilyIndex", u32))


class CommandBufferAllocateInfo(Structure):
    _fields_ = _fields(("pool", u64), ("level", u32), ("count", u32))


class CommandBufferBeginInfo(Structure):
    _fields_ = _fields(("flags", u32), ("pInheritance", pointer))


class MemoryBarrier(Structure):
    _fields_ = _fields(("srcAccessMask", u32), ("dstAccessMask", u32))


class BufferCopy(Structure):
    _fields_ = [("srcOffset", u64), ("dstOffset", u64), ("size", u64)]


class SubmitInfo(Structure):
    _fields_ = _fields(
        ("waits", u32), ("pWaits", pointer), ("pStages", pointer), ("buffers", u32),
        ("pBuffers", POINTER(pointer)), ("signals", u32), ("pSignals", pointer),
    )  # fmt: skip


class FenceCreateInfo(Structure):
    _fields_ = _fields(("flags", u32))
