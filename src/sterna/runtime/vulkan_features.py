"""What a Vulkan device offers beyond what every one does, and asking for it when it is opened.

In: a driver and one of its devices. Out: an Offer: numbers of less than 32 bits in memory, and the
matrices that subgroups of a known size multiply (VK_KHR_cooperative_matrix with
VK_EXT_subgroup_size_control). Says in words what a kernel wants and the device lacks.
"""

from __future__ import annotations

import ctypes
from collections.abc import Set
from ctypes import byref, c_void_p
from ctypes import c_uint32 as u32
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sterna.runtime import vulkan_api as vk
from sterna.runtime.vulkan_code import Shape

_MATRICES, _SIZES = b"VK_KHR_cooperative_matrix", b"VK_EXT_subgroup_size_control"
_SHAPES_CALL = b"vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR"
_SUBGROUP, _KERNELS = 3, 0x20  # a scope, a stage
_COMPONENTS = {0: "f16", 1: "f32"}  # that kernels use of VkComponentTypeKHR
SMALL = {4433: "16-bit storage", 4448: "8-bit storage"}  # what modules may ask for


@dataclass(frozen=True, slots=True)
class Offer:
    """`small`: capabilities of SPIR-V. `missing`: what matrices need that is not here.

    `lanes`: the least and most threads of a subgroup that a kernel may ask for, `subgroups` of them
    in a work group at most.
    """

    small: frozenset[int]
    missing: tuple[str, ...]
    shapes: frozenset[Shape] = frozenset()
    lanes: tuple[int, int] = (0, 0)
    subgroups: int = 0

    def lacks(self, shape: Shape, lanes: int, threads: int) -> str:
        """What is not here of what a kernel needs that multiplies such matrices; "" if nothing."""
        lacking = list(self.missing)
        if not lacking and shape not in self.shapes:
            lacking.append(f"that shape (it has {', '.join(map(str, self.sorted())) or 'none'})")
        least, most = self.lanes
        if not self.missing and not least <= lanes <= most:
            lacking.append(f"subgroups of that size (they have {least} to {most} threads)")
        elif not self.missing and threads > lanes * self.subgroups:
            lacking.append(f"groups of so many subgroups (it has {self.subgroups} at most)")
        return " and ".join(lacking)

    def sorted(self) -> list[Shape]:
        return sorted(self.shapes)


class _Features:
    """The records in which a device says what it has, and is asked for it, as a chain."""

    def __init__(self, extensions: Set[bytes]) -> None:
        self.of11 = vk.record(vk.Features11, 49)
        self.of12 = vk.record(vk.Features12, 51)
        self.matrices = vk.record(vk.MatrixFeatures, 1000506000)
        self.sizes = vk.record(vk.SubgroupSizeFeatures, 1000225002)
        self.first = vk.record(vk.Features2, 1000059000)
        chain = [self.first, self.of11, self.of12]
        chain += [self.matrices] if _MATRICES in extensions else []
        chain += [self.sizes] if _SIZES in extensions else []
        for record, following in pairwise(chain):
            record.pNext = ctypes.addressof(following)


class Request:
    """What a device is opened with: all that is used of what it offers. Owns its records."""

    def __init__(self, offer: Offer) -> None:
        names = () if offer.missing else (_MATRICES, _SIZES)
        self._features = _Features(set(names))
        of11, of12 = self._features.of11, self._features.of12
        of11.storageBuffer16BitAccess, of12.storageBuffer8BitAccess = (
            code in offer.small for code in SMALL
        )
        if names:
            of12.shaderFloat16 = of12.vulkanMemoryModel = 1
            self._features.matrices.cooperativeMatrix = 1
            self._features.sizes.subgroupSizeControl = 1
            self._features.sizes.computeFullSubgroups = 1
        self._names = (ctypes.c_char_p * len(names))(*names)

    @property
    def fields(self) -> dict[str, Any]:
        """Of VkDeviceCreateInfo."""
        return {
            "pNext": ctypes.addressof(self._features.first),
            "extensions": len(self._names),
            "pExtensions": ctypes.addressof(self._names),
        }


def offer_of(driver: ctypes.CDLL, instance: c_void_p, device: c_void_p) -> Offer:
    """Ask a device."""
    names = _extensions(driver, device)
    found = _Features(names)
    driver.vkGetPhysicalDeviceFeatures2(device, byref(found.first))
    has = (found.of11.storageBuffer16BitAccess, found.of12.storageBuffer8BitAccess)
    small = frozenset(code for code, here in zip(SMALL, has, strict=True) if here)
    limits = vk.record(vk.SubgroupSizeProperties, 1000225000)
    if _SIZES in names:
        asked = vk.record(vk.Properties2, 1000059001, pNext=ctypes.addressof(limits))
        driver.vkGetPhysicalDeviceProperties2(device, byref(asked))
    sizes = found.sizes.subgroupSizeControl and found.sizes.computeFullSubgroups
    needs = {
        "VK_KHR_cooperative_matrix": found.matrices.cooperativeMatrix,
        "VK_EXT_subgroup_size_control for kernels": sizes and limits.stages & _KERNELS,
        "arithmetic in f16": found.of12.shaderFloat16,
        "the Vulkan memory model": found.of12.vulkanMemoryModel,
    }
    missing = tuple(what for what, here in needs.items() if not here)
    if missing:
        return Offer(small, missing)
    return Offer(
        small, (), _shapes(driver, instance, device), (limits.least, limits.most), limits.subgroups
    )


def _extensions(driver: ctypes.CDLL, device: c_void_p) -> set[bytes]:
    count = u32()
    vk.check(
        driver.vkEnumerateDeviceExtensionProperties(device, None, byref(count), None), "extensions"
    )
    found = (vk.ExtensionProperties * count.value)()
    code = driver.vkEnumerateDeviceExtensionProperties(device, None, byref(count), found)
    vk.check(code, "extensions")
    return {each.extensionName for each in found}


def _shapes(driver: ctypes.CDLL, instance: c_void_p, device: c_void_p) -> frozenset[Shape]:
    """Of matrices that subgroups multiply and sums are f32 of."""
    address = driver.vkGetInstanceProcAddr(instance, _SHAPES_CALL)
    if not address:
        return frozenset()
    kind = ctypes.CFUNCTYPE(ctypes.c_int32, c_void_p, c_void_p, c_void_p)
    ask, count = kind(address), u32()
    vk.check(ask(device, ctypes.addressof(count), None), "matrices")
    found = (vk.MatrixProperties * count.value)()
    for each in found:
        each.sType = 1000506001
    vk.check(ask(device, ctypes.addressof(count), ctypes.addressof(found)), "matrices")
    return frozenset(
        Shape(m.rows, m.columns, m.depth, _COMPONENTS[m.a], _COMPONENTS[m.c])
        for m in found
        if m.scope == _SUBGROUP and m.a == m.b and m.c == m.result and not m.saturates
        if m.a in _COMPONENTS and m.c in _COMPONENTS
    )
