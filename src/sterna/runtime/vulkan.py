"""Vulkan as a device: the calls of Vulkan 1.2 that a step needs, through ctypes.

The driver is found by the system's loader, libvulkan; nothing is installed with Sterna. Kernels
come as SPIR-V, a module for each launch. A step is one submission of one command buffer, which is
recorded when the numbers of a step change and replayed while they are the same: what changes with
every token lies in buffers. Memory that the processor reads at full speed is mapped; other memory
is written and read by copies through a small buffer that is mapped.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from ctypes import byref, c_float, c_int32, c_void_p
from ctypes import c_uint32 as u32
from ctypes import c_uint64 as u64
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.base.artifact import Phase
from sterna.base.errors import ArtifactError, DeviceError, Unavailable
from sterna.runtime import vulkan_api as vk
from sterna.runtime.report import DeviceReport
from sterna.runtime.vulkan_code import MATRICES, entry_of, modules_of, shape_of
from sterna.runtime.vulkan_features import SMALL, Request
from sterna.runtime.vulkan_instance import Instance, memory_bytes, name_of, own_heap
from sterna.runtime.work_groups import Limits, loader

_STORAGE_BUFFER, _STAGE = 7, 0x20
_USAGE = 0x20 | 1 | 2  # storage, copied from and to
_LOCAL, _MAPPED, _CACHED = 1, 2 | 4, 8  # kinds of memory: the device's, coherent, read fast
_WRITTEN = 0x40 | 0x1000  # by kernels, by copies
_ANYTHING = 0x20 | 0x40 | 0x800 | 0x1000 | 0x2000
_FROM, _TO = 0x800 | 0x1000, 0x800 | 0x1000 | 0x4000  # kernels and copies; the processor besides
_LARGEST = 2**31 - 4  # bytes of a buffer that 32-bit indices reach
_SIZES_BYTES = 128  # of push constants: what every device has
_SETS_OF_A_POOL = 256
_STAGING = 1 << 22
_PATIENCE = 600 * 10**9  # nanoseconds for one step; a driver stops a hung kernel sooner
_FULL_SUBGROUPS = 2


def available_memory(index: int = 0) -> int | None:
    """See DeviceModule: all of the device's, for drivers need not tell what is taken."""
    instance = Instance()
    try:
        return memory_bytes(instance.memory(instance.chosen(index)))
    finally:
        instance.close()


def reports() -> list[DeviceReport]:
    """See DeviceModule."""
    try:
        instance = Instance()
    except Unavailable as error:
        return [DeviceReport("vulkan", False, "", str(error))]
    try:
        instance.chosen(0)
        return [
            DeviceReport(
                f"vulkan:{i}" if i else "vulkan",
                True,
                instance.told(device),
                "",
                faster=instance.has_own_memory(device),
            )
            for i, device in enumerate(instance.devices)
        ]
    except Unavailable as error:
        return [DeviceReport("vulkan", False, "", str(error))]
    finally:
        instance.close()


def open_device(index: int = 0) -> VulkanDevice:
    """The device with that number; Unavailable says what is missing."""
    instance = Instance()
    try:
        physical = instance.chosen(index)
    except Unavailable:
        instance.close()
        raise
    return VulkanDevice(instance, physical)


load = loader(open_device)


@dataclass(frozen=True, slots=True)
class _Buffer:
    """A buffer, or a part of one. `mapped`: its first byte's address, None where it has none."""

    handle: u64
    offset: int
    size: int
    mapped: int | None


@dataclass(frozen=True, slots=True)
class _Function:
    pipeline: u64
    layout: u64
    set_layout: u64


@dataclass(frozen=True, slots=True)
class _Launch:
    function: _Function
    bindings: u64  # a descriptor set


class VulkanDevice:
    """See work_groups.Device. Owns the instance, a device with one queue, and all made in it."""

    def __init__(self, instance: Instance, physical: c_void_p) -> None:
        self._instance, self._driver = instance, instance.driver
        self._made: list[tuple[str, u64]] = []
        self._memory = instance.memory(physical)
        properties = instance.properties(physical)
        self.name, found = name_of(properties), properties.limits
        self.limits = Limits(
            memory=memory_bytes(self._memory),
            buffer_bytes=min(found.maxStorageBufferRange, _LARGEST),
            group_threads=min(
                found.maxComputeWorkGroupInvocations, found.maxComputeWorkGroupSize[0]
            ),
            shared_bytes=found.maxComputeSharedMemorySize,
            buffers=min(
                found.maxPerStageDescriptorStorageBuffers, found.maxDescriptorSetStorageBuffers
            ),
            lanes=instance.lanes(physical),
        )
        self._align = int(found.minStorageBufferOffsetAlignment)
        self._most_groups = int(found.maxComputeWorkGroupCount[0])
        self._device, self._queue = c_void_p(), c_void_p()
        self._busy = False
        self._recorded: list[tuple[int, int, tuple[int, ...]]] = []
        self._layouts: dict[int, tuple[u64, u64]] = {}
        self._sets_left, self._set_pool = 0, u64()
        try:
            self._open(physical)
        except BaseException:
            self.close()
            raise

    def _open(self, physical: c_void_p) -> None:
        family = self._instance.queue_family(physical)
        assert family is not None  # such devices are not offered
        self.offer = self._instance.offer(physical)
        self._device = self._opened(physical, family)
        self._driver.vkGetDeviceQueue(self._device, u32(family), u32(0), byref(self._queue))
        self._direct = self._memory_type(_LOCAL | _MAPPED | _CACHED, own=True)
        pool = vk.record(vk.CommandPoolCreateInfo, 39, flags=2, queueFamilyIndex=family)
        self._commands = self._new("CommandPool", pool, "a command pool")
        self._step, self._copies = self._command_buffer(), self._command_buffer()
        self._fence = self._new("Fence", vk.record(vk.FenceCreateInfo, 8), "a fence")
        self._staging = None if self._direct is not None else self._staging_buffer()

    def _opened(self, physical: c_void_p, family: int) -> c_void_p:
        """The device, with what it offers."""
        asked, first = Request(self.offer), c_float(1.0)
        queue = vk.record(
            vk.QueueCreateInfo, 2, queueFamilyIndex=family, queueCount=1,
            pQueuePriorities=ctypes.pointer(first),
        )  # fmt: skip
        wanted = vk.record(
            vk.DeviceCreateInfo, 3, queues=1, pQueues=ctypes.pointer(queue), **asked.fields
        )
        device = c_void_p()
        code = self._driver.vkCreateDevice(physical, byref(wanted), None, byref(device))
        vk.check(code, f"opening {self.name}")
        return device

    def _new(self, kind: str, wanted: Any, what: str) -> u64:
        """Call vkCreate<kind> and remember to destroy what it made."""
        made = u64()
        create = getattr(self._driver, f"vkCreate{kind}")
        vk.check(create(self._device, byref(wanted), None, byref(made)), what)
        self._made.append((f"vkDestroy{kind}", made))
        return made

    def _command_buffer(self) -> c_void_p:
        wanted = vk.record(
            vk.CommandBufferAllocateInfo, 40, pool=self._commands.value, level=0, count=1
        )
        found = c_void_p()
        code = self._driver.vkAllocateCommandBuffers(self._device, byref(wanted), byref(found))
        vk.check(code, "a command buffer")
        return found

    # Memory.

    def _memory_type(self, flags: int, *, own: bool, bits: int = 0xFFFFFFFF) -> int | None:
        """The first kind of memory with all these flags, in the device's own heap if so asked."""
        heap = own_heap(self._memory)
        types = self._memory.memoryTypes[: self._memory.memoryTypeCount]
        for i, kind in enumerate(types):
            fits = kind.propertyFlags & flags == flags and bits >> i & 1
            if fits and (kind.heapIndex == heap or not own):
                return i
        return None

    def _buffer(self, size: int, kinds: Sequence[int]) -> _Buffer:
        """A buffer in the first of these kinds of memory that can hold it."""
        size = -(-size // 16) * 16
        what = f"a buffer of {size} bytes"
        wanted = vk.record(vk.BufferCreateInfo, 12, size=size, usage=_USAGE)
        handle, needs = self._new("Buffer", wanted, what), vk.MemoryRequirements()
        self._driver.vkGetBufferMemoryRequirements(self._device, handle, byref(needs))
        bits = needs.memoryTypeBits
        found = [t for k in kinds if (t := self._memory_type(k, own=False, bits=bits)) is not None]
        if not found:
            raise DeviceError(f"{self.name} has no memory of the kind that {what} needs")
        taken = vk.record(
            vk.MemoryAllocateInfo, 5, allocationSize=needs.size, memoryTypeIndex=found[0]
        )
        memory = u64()
        code = self._driver.vkAllocateMemory(self._device, byref(taken), None, byref(memory))
        vk.check(code, what)
        self._made.append(("vkFreeMemory", memory))
        code = self._driver.vkBindBufferMemory(self._device, handle, memory, u64(0))
        vk.check(code, what)
        if kinds[0] & _MAPPED != _MAPPED:
            return _Buffer(handle, 0, size, None)
        address = c_void_p()
        code = self._driver.vkMapMemory(
            self._device, memory, u64(0), u64(size), u32(0), byref(address)
        )
        vk.check(code, f"mapping {what}")
        return _Buffer(handle, 0, size, address.value)

    def _staging_buffer(self) -> _Buffer:
        return self._buffer(_STAGING, (_MAPPED | _CACHED, _MAPPED))

    def allocate(self, size: int) -> _Buffer:
        mapped = self._direct is not None
        return self._buffer(size, (_LOCAL | _MAPPED | _CACHED,) if mapped else (_LOCAL,))

    def view(self, buffer: _Buffer, offset: int, size: int) -> _Buffer:
        if offset % self._align:
            raise ArtifactError(
                f"the library places tensors at multiples it was compiled for, and {self.name} "
                f"wants multiples of {self._align} bytes; compile the model for this device"
            )
        mapped = None if buffer.mapped is None else buffer.mapped + offset
        return _Buffer(buffer.handle, buffer.offset + offset, -(-size // 4) * 4, mapped)

    def write(self, buffer: _Buffer, data: NDArray[Any], offset: int = 0) -> None:
        held = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        self._wait()
        for at, part, address in self._parts(buffer, offset, held):
            ctypes.memmove(address, part.ctypes.data, len(part))
            if buffer.mapped is None:
                self._copy(self._mapped_buffer(), 0, buffer, at, len(part))

    def read(self, buffer: _Buffer, out: NDArray[Any], offset: int = 0) -> None:
        self._wait()
        for at, part, address in self._parts(buffer, offset, out.reshape(-1).view(np.uint8)):
            if buffer.mapped is None:
                self._copy(buffer, at, self._mapped_buffer(), 0, len(part))
            ctypes.memmove(part.ctypes.data, address, len(part))

    def _mapped_buffer(self) -> _Buffer:
        """Through which memory that is not mapped is reached."""
        assert self._staging is not None
        return self._staging

    def _parts(
        self, buffer: _Buffer, offset: int, data: NDArray[np.uint8]
    ) -> Iterator[tuple[int, NDArray[np.uint8], int]]:
        """Where pieces of data belong in the buffer, and where the processor reaches them."""
        if buffer.mapped is not None:
            yield offset, data, buffer.mapped + offset
            return
        address = self._mapped_buffer().mapped or 0
        for at in range(0, len(data), _STAGING):
            yield offset + at, data[at : at + _STAGING], address

    def copy(self, buffer: _Buffer, source: int, destination: int, size: int) -> None:
        self._wait()
        self._copy(buffer, source, buffer, destination, size)

    def _copy(self, source: _Buffer, begin: int, to: _Buffer, at: int, size: int) -> None:
        region = vk.BufferCopy(source.offset + begin, to.offset + at, size)
        with_copy = self._driver.vkCmdCopyBuffer
        self._record(
            self._copies,
            lambda c: with_copy(c, source.handle, to.handle, u32(1), byref(region)),
        )
        self._submit(self._copies, "copying")
        self._wait()

    # Kernels.

    def compile(self, code: bytes, phases: Sequence[Phase]) -> dict[str, Any]:
        """See Device: the driver makes a pipeline of each module."""
        modules, multiplies = {}, set()
        for module in modules_of(code):
            symbol, asked = entry_of(module)
            modules[symbol] = module
            multiplies |= {symbol} if MATRICES in asked else set()
            has = self.offer.small
            lacks = [what for c, what in SMALL.items() if c in asked and c not in has]
            if lacks:
                raise DeviceError(
                    f"kernel {symbol} wants {' and '.join(lacks)}, which {self.name} does not "
                    "have; compile a model in f32, such as q4f32_1, for target vulkan:f32"
                )
        result = {}
        for phase in phases:
            if phase.symbol not in modules:
                raise ArtifactError(f"the library has no module {phase.symbol!r}")
            module = modules[phase.symbol]
            whole = phase.symbol in multiplies
            if whole:
                self._check_matrices(phase, module)
            result[phase.symbol] = self._function(phase, module, phase.lanes if whole else 0)
        return result

    def _check_matrices(self, phase: Phase, module: bytes) -> None:
        shape = shape_of(module)
        if lacks := self.offer.lacks(shape, phase.lanes, phase.threads):
            raise DeviceError(
                f"kernel {phase.symbol} multiplies matrices ({shape}) in subgroups of "
                f"{phase.lanes} threads, and {self.name} lacks {lacks}; compile the model for "
                "target vulkan, without 16-bit floats as activations"
            )

    def _function(self, phase: Phase, code: bytes, lanes: int) -> _Function:
        """`lanes`: threads that a subgroup must have, all of them there; 0: as the driver likes."""
        wanted = vk.record(vk.ShaderModuleCreateInfo, 16, codeSize=len(code), pCode=code)
        module = self._new("ShaderModule", wanted, phase.symbol)
        layout, set_layout = self._layout(len(phase.buffers))
        stage = vk.record(
            vk.StageCreateInfo, 18, stage=_STAGE, module=module.value, pName=phase.symbol.encode()
        )
        size = vk.record(vk.SubgroupSize, 1000225001, requiredSubgroupSize=lanes)
        if lanes:
            stage.flags, stage.pNext = _FULL_SUBGROUPS, ctypes.addressof(size)
        made = u64()
        pipeline = vk.record(vk.PipelineCreateInfo, 29, stage=stage, layout=layout.value)
        failed = self._driver.vkCreateComputePipelines(
            self._device, u64(0), u32(1), byref(pipeline), None, byref(made)
        )
        if failed:
            raise ArtifactError(
                f"the Vulkan driver of {self.name} refused kernel {phase.symbol} (code {failed})"
            )
        self._made.append(("vkDestroyPipeline", made))
        return _Function(made, layout, set_layout)

    def _layout(self, buffers: int) -> tuple[u64, u64]:
        """How launches with so many buffers are bound; the same for all of them."""
        if buffers not in self._layouts:
            bindings = (vk.SetLayoutBinding * max(1, buffers))()
            for i in range(buffers):
                bindings[i] = vk.SetLayoutBinding(i, _STORAGE_BUFFER, 1, _STAGE, None)
            wanted = vk.record(vk.SetLayoutCreateInfo, 32, count=buffers, pBindings=bindings)
            one = self._new("DescriptorSetLayout", wanted, "a layout")
            sizes = vk.PushConstantRange(_STAGE, 0, _SIZES_BYTES)
            whole = vk.record(
                vk.PipelineLayoutCreateInfo, 30, sets=1, pSets=ctypes.pointer(one), ranges=1,
                pRanges=ctypes.pointer(sizes),
            )  # fmt: skip
            self._layouts[buffers] = self._new("PipelineLayout", whole, "a layout"), one
        return self._layouts[buffers]

    def _descriptor_set(self, layout: u64) -> u64:
        if not self._sets_left:
            size = vk.PoolSize(_STORAGE_BUFFER, _SETS_OF_A_POOL * 16)
            wanted = vk.record(
                vk.DescriptorPoolCreateInfo, 33, maxSets=_SETS_OF_A_POOL, sizes=1,
                pSizes=ctypes.pointer(size),
            )  # fmt: skip
            self._set_pool = self._new("DescriptorPool", wanted, "bindings")
            self._sets_left = _SETS_OF_A_POOL
        asked = vk.record(
            vk.SetAllocateInfo, 34, pool=self._set_pool.value, count=1,
            pLayouts=ctypes.pointer(layout),
        )  # fmt: skip
        found = u64()
        code = self._driver.vkAllocateDescriptorSets(self._device, byref(asked), byref(found))
        vk.check(code, "bindings")
        self._sets_left -= 1
        return found

    def prepare(
        self, function: _Function, phase: Phase, buffers: Sequence[_Buffer], dims: Sequence[str]
    ) -> _Launch:
        if 4 * len(dims) > _SIZES_BYTES:
            raise ArtifactError(f"{phase.symbol} takes {len(dims)} sizes, which are too many")
        found = self._descriptor_set(function.set_layout)
        infos = [vk.BufferInfo(b.handle.value, b.offset, b.size) for b in buffers]
        writes = (vk.WriteSet * max(1, len(infos)))()
        for i, info in enumerate(infos):
            writes[i] = vk.record(
                vk.WriteSet, 35, dstSet=found.value, dstBinding=i, count=1,
                descriptorType=_STORAGE_BUFFER, pBuffers=ctypes.pointer(info),
            )  # fmt: skip
        update = self._driver.vkUpdateDescriptorSets
        update(self._device, u32(len(infos)), writes, u32(0), None)
        return _Launch(function, found)

    def run(self, launches: Sequence[tuple[_Launch, int, Sequence[int]]]) -> None:
        self._wait()
        wanted = [(launch.bindings.value, n, tuple(values)) for launch, n, values in launches]
        if wanted != self._recorded:
            self._recorded = []  # until the new ones are there
            self._check_groups(launches)
            self._record(self._step, *(_dispatch(self._driver, *each) for each in launches))
            self._recorded = wanted
        self._submit(self._step, "a step")

    def _check_groups(self, launches: Sequence[tuple[_Launch, int, Sequence[int]]]) -> None:
        most = max((groups for _, groups, _ in launches), default=0)
        if most > self._most_groups:
            raise DeviceError(
                f"a launch wants {most} work groups, and {self.name} has {self._most_groups}; use "
                "a smaller prefill_chunk_size"
            )

    def _record(self, commands: c_void_p, *calls: Callable[[c_void_p], None]) -> None:
        """Write calls into a command buffer, each done and seen before the next begins."""
        driver = self._driver
        begin = vk.record(vk.CommandBufferBeginInfo, 42)
        vk.check(driver.vkBeginCommandBuffer(commands, byref(begin)), "recording a step")
        barrier = vk.record(vk.MemoryBarrier, 46, srcAccessMask=_WRITTEN, dstAccessMask=_ANYTHING)
        for call in calls:
            call(commands)
            driver.vkCmdPipelineBarrier(
                commands, u32(_FROM), u32(_TO), u32(0), u32(1), byref(barrier), u32(0), None,
                u32(0), None,
            )  # fmt: skip
        vk.check(driver.vkEndCommandBuffer(commands), "recording a step")

    def _submit(self, commands: c_void_p, what: str) -> None:
        one = vk.record(vk.SubmitInfo, 4, buffers=1, pBuffers=ctypes.pointer(commands))
        code = self._driver.vkQueueSubmit(self._queue, u32(1), byref(one), self._fence)
        vk.check(code, what)
        self._busy = True

    def _wait(self) -> None:
        """Until what was submitted is done."""
        if not self._busy:
            return
        self._busy = False
        fence = byref(self._fence)
        code = self._driver.vkWaitForFences(self._device, u32(1), fence, u32(1), u64(_PATIENCE))
        vk.check(code, "a step")
        vk.check(self._driver.vkResetFences(self._device, u32(1), fence), "a step")

    def close(self) -> None:
        if self._device:
            self._driver.vkDeviceWaitIdle(self._device)
            while self._made:
                destroy, handle = self._made.pop()
                getattr(self._driver, destroy)(self._device, handle, None)
            self._driver.vkDestroyDevice(self._device, None)
            self._device = c_void_p()
        self._instance.close()


def _dispatch(
    driver: ctypes.CDLL, launch: _Launch, groups: int, values: Sequence[int]
) -> Callable[[c_void_p], None]:
    """The calls of one launch."""
    sizes = (c_int32 * len(values))(*values)

    def record(commands: c_void_p) -> None:
        function = launch.function
        driver.vkCmdBindPipeline(commands, u32(1), function.pipeline)
        driver.vkCmdBindDescriptorSets(
            commands, u32(1), function.layout, u32(0), u32(1), byref(launch.bindings), u32(0), None
        )
        if values:
            size = u32(ctypes.sizeof(sizes))
            driver.vkCmdPushConstants(commands, function.layout, u32(_STAGE), u32(0), size, sizes)
        driver.vkCmdDispatch(commands, u32(groups), u32(1), u32(1))

    return record
