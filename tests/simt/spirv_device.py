"""A Device that runs SPIR-V modules on the CPU: their words translated to C++ over simt.h.

In: an artifact's code for Vulkan. Out: a Device for `load_on` and for single kernels, with
subgroups of a size and matrices of the shapes that are asked for. Needs g++.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from simt_device import SimtDevice, compiled
from spirv_to_cpp import kernel_of

from sterna.base.artifact import Phase
from sterna.base.target import Target
from sterna.runtime.vulkan_code import Shape, modules_of


class Bound(ctypes.Structure):
    """See spirv.h."""

    _fields_ = (
        ("buffers", ctypes.POINTER(ctypes.c_void_p)),
        ("sizes", ctypes.POINTER(ctypes.c_size_t)),
        ("dims", ctypes.c_void_p),
        ("dims_bytes", ctypes.c_size_t),
    )


class SpirvDevice(SimtDevice):
    """See sterna.runtime.work_groups.Device. A push constant that is not given cannot be read."""

    name = "spirv"

    def __init__(self, lanes: int = 32, shapes: frozenset[Shape] = frozenset()) -> None:
        self.limits = replace(SimtDevice.limits, lanes=lanes)
        self.shapes = shapes

    def compile(self, code: bytes, phases: Sequence[Phase]) -> dict[str, Any]:
        lanes = self.limits.lanes
        made = [kernel_of(m, i, lanes, self.shapes) for i, m in enumerate(modules_of(code))]
        pool = max([1, *(kernel.shared_bytes for kernel in made)])
        assert pool <= self.limits.shared_bytes
        head = f'#define SPIRV_POOL {pool}\n#include "spirv.h"'
        library = compiled("\n".join([head, *(kernel.text for kernel in made)]), lanes)
        functions = {p.symbol: library[f"run_{p.symbol}"] for p in phases}
        for function in functions.values():
            function.restype, function.argtypes = ctypes.c_char_p, (ctypes.c_uint, Bound)
        return functions

    def prepare(
        self,
        function: Any,
        phase: Phase,
        buffers: Sequence[NDArray[np.uint8]],
        dims: Sequence[str],
    ) -> Any:
        function, pointers, kept = super().prepare(function, phase, buffers, dims)
        sizes = (ctypes.c_size_t * len(buffers))(*map(len, buffers))
        return function, (pointers, sizes), kept

    def run(self, launches: Sequence[tuple[Any, int, Sequence[int]]]) -> None:
        for (function, (pointers, sizes), _), groups, values in launches:
            dims = (ctypes.c_int * len(values))(*values)
            given = Bound(pointers, sizes, ctypes.addressof(dims), ctypes.sizeof(dims))
            error = function(groups, given)
            assert error is None, error.decode()


def simulated_vulkan(target: Target) -> SpirvDevice:
    """With the subgroups of a target, and the shape of its matrix unit where it has one."""
    unit = target.unit
    if unit is None:
        return SpirvDevice(target.subgroup or SimtDevice.limits.lanes)
    shape = Shape(unit.rows, unit.columns, unit.depth, "f16", "f32")
    return SpirvDevice(unit.lanes, frozenset({shape}))
