"""Kernels with Vulkan's matrices that are wrong: the simulator refuses them or shows it.

That right ones are right is `test_unit_floats`; here a module's text is changed in one place, as a
renderer or a schedule could be wrong.
"""

from __future__ import annotations

import re
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "schedule"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simt"))

from conformance import target_named
from run_kernel import RunningKernels
from schedule_groups import product_arrays
from spirv_device import SpirvDevice, simulated_vulkan
from spirv_to_cpp import kernel_of
from spirv_words import SpirvError
from test_unit_floats import FEW, product

from sterna.codegen.cstyle import GroupSource
from sterna.codegen.renderer import RenderedKernel, renderer_of
from sterna.codegen.spirv_assembly import assemble
from sterna.quantize.scheme import SCHEMES
from sterna.schedule.choose import plan_of, planned

Array = NDArray[Any]
TARGET = target_named("vulkan:matrix")
SHAPE, ROWS = (40, 96), 21
SHAPES = simulated_vulkan(TARGET).shapes

A_LOAD = r"(= OpCooperativeMatrixLoadKHR %matrix_a %\d+) %u32_0 (%u32_\d+)"
B_LOAD = r"(= OpCooperativeMatrixLoadKHR %matrix_b %\d+) %u32_1 (%u32_\d+)"
STORE = r"(OpCooperativeMatrixStoreKHR %\d+ %\d+) %u32_0 (%u32_\d+)"
BARRIER = r"OpControlBarrier (%\w+ %\w+) %u32_\d+\n"

# A pattern, what is there instead, and what a launch tells; nothing, where its bits are others.
SHOWN = {
    "the stride of a": (A_LOAD, r"\1 %u32_0 %stride", ""),
    "the stride of b": (B_LOAD, r"\1 %u32_1 %stride", ""),
    "the stride of c": (STORE, r"\1 %u32_0 %stride", "overwrites what thread"),
    "the layout of a": (A_LOAD, r"\1 %u32_1 \2", ""),
    "the layout of b": (B_LOAD, r"\1 %u32_0 \2", ""),
    "the layout of c": (STORE, r"\1 %u32_1 \2", ""),
    "a stride in the midst of 16 bytes": (A_LOAD, r"\1 %u32_0 %odd", "aligned to 16"),
    "a stride beyond the array": (A_LOAD, r"\1 %u32_0 %far", "an access to byte"),
    "sums that are not cleared": (r"OpStore %\d+ %no_sums\n", "", ""),
    "a tile too many": (
        r"(%sums_x\d+ = OpTypeArray %matrix_c) %\w+", r"\1 %one", "element 1 of 1"
    ),
    "no barrier behind what is unpacked": (BARRIER, "", "and no barrier is between"),
    "barriers of nothing": (BARRIER, r"OpControlBarrier \1 %none\n", "and no barrier is between"),
    "barriers that make nothing visible": (
        BARRIER, r"OpControlBarrier \1 %older\n", "and no barrier is between"
    ),
    "barriers of buffers alone": (
        BARRIER, r"OpControlBarrier \1 %buffers\n", "and no barrier is between"
    ),
    "threads of a subgroup that part": (
        r"(= OpSLessThan %bool_ %m_tile_\d+) %i32_\d+", r"\1 %n_l0", "at different places"
    ),
    "a place for each thread": (
        r"(%\d+ = OpIMul %i32_) %b_slice (%i32_\d+)", r"\1 %n_l0 \2", "different places of a matrix"
    ),
    "threads by their number in the group": (
        r"(%tid_ = OpCopyObject %i32_) %\d+", r"\1 %number", "at different places|different places"
    ),
    "a half for a sum": (
        r"(%no_sums = OpConstantComposite %matrix_c) %\w+", r"\1 %half", ""
    ),
}  # fmt: skip
CONSTANTS = """%stride = OpConstant %u32_ 40
%odd = OpConstant %u32_ 36
%far = OpConstant %u32_ 4096
%one = OpConstant %u32_ 1
%none = OpConstant %u32_ 0
%older = OpConstant %u32_ 328
%buffers = OpConstant %u32_ 24648
%half = OpConstant %f32_ 0x1.0p-1
"""


def rendered() -> RenderedKernel:
    group = product("q4f16_1", FEW, SHAPE)
    func = planned(group, plan_of(group, TARGET))[1]
    return RenderedKernel(func, renderer_of(TARGET).render_kernel(func, TARGET))


KERNEL = rendered()
TEXT = KERNEL.rendered.text.split("\n", 1)[1]


def replaced(text: str, old: str, new: str) -> str:
    """The first place of `old`, with constants besides that the texts above name."""
    made, count = re.subn(old, new, text, count=1)
    assert count == 1, old
    head, types, body = made.partition("%u32_ = OpTypeInt 32 0\n")
    return head + types + CONSTANTS + body


def changed(number: int, old: str, new: str) -> RenderedKernel:
    source = KERNEL.rendered
    assert isinstance(source, GroupSource)
    (phase,) = source.launches
    symbol = f"{phase.symbol}_{number}th"
    text = replaced(TEXT, old, new)
    if "%number" in new:  # as kernels without matrices number their threads
        text = text.replace("SubgroupLocalInvocationId", "LocalInvocationIndex")
        text = re.sub(
            r"(%\w+ = OpLoad %u32_ %LocalInvocationIndex\n)",
            r"\1%number = OpBitcast %i32_ %7\n",
            text,
        )
    text = f"; module {symbol}\n" + text.replace(f'"{phase.symbol}"', f'"{symbol}"')
    phase = msgspec.structs.replace(phase, symbol=symbol)
    func = replace(KERNEL.func, name=symbol)
    return RenderedKernel(func, replace(source, text=text, launches=(phase,)))


@pytest.fixture(scope="module")
def running() -> RunningKernels:
    """The kernel, and what it is changed to."""
    found = {KERNEL.func.name: KERNEL}
    for i, (old, new, _) in enumerate(SHOWN.values()):
        kernel = changed(i, old, new)
        found[kernel.func.name] = kernel
    return RunningKernels(found, TARGET, simulated_vulkan(TARGET))


def result(running: RunningKernels, name: str) -> Array:
    arrays = product_arrays(SHAPE, SCHEMES["q4f16_1"], ROWS)
    out = KERNEL.func.params[-1].name
    arrays[out] = np.zeros((ROWS, SHAPE[0]), np.float32)
    return running.run(name, arrays, {"n": ROWS})[out].view(np.uint32)


@pytest.mark.parametrize("what", SHOWN)
def test_what_is_wrong_shows(what: str, running: RunningKernels) -> None:
    right = result(running, KERNEL.func.name)
    name = f"{KERNEL.func.name}_{list(SHOWN).index(what)}th"
    _, _, told = SHOWN[what]
    if told:
        with pytest.raises(AssertionError, match=told):
            result(running, name)
    else:
        assert not np.array_equal(result(running, name), right)


# What is no module for this device, and what it is told.
REFUSED = {
    "no matrices": (r"OpCapability CooperativeMatrixKHR\n", "", "wants the capability Cooper"),
    "no extension": (r"OpExtension .*\n", "", "matrices want SPV_KHR_cooperative_matrix"),
    "no memory model": (r"OpCapability VulkanMemoryModel\n", "", "wants the capability VulkanM"),
    "the older model": (r"(OpMemoryModel Logical) Vulkan", r"\1 GLSL450", "matrices want SPV"),
    "no halves": (r"OpCapability Float16\n", "", "float16 wants the capability Float16"),
    "no small numbers": (r"OpCapability StorageBuffer16BitAccess\n", "", "uint16 wants"),
    "no subgroups": (r"OpCapability GroupNonUniform\n", "", "built-in 40 wants"),
    "an unknown capability": (r"OpCapability Shader", "OpCapability 39", "capability 39 is not"),
    "another scope": (r"(OpTypeCooperativeMatrixKHR %f16) %\w+", r"\1 %u32_2", "a subgroup's"),
    "another use": (r"(%matrix_b = Op.*) %\w+\n", r"\1 %u32_0\n", "matrix a .* times a matrix a"),
    "a for b": (r"(MulAddKHR %matrix_c) (%\d+) (%\d+)", r"\1 \3 \2", "matrix b .* times"),
    "another shape": (
        r"(%matrix_a = OpTypeCooperativeMatrixKHR %f16 %u32_3 %u32_16) %\w+", r"\1 %u32_8", "times"
    ),
    "a private load": (A_LOAD + " NonPrivatePointer", r"\1 %u32_0 \2", "by a private pointer"),
    "a private store": (r"(OpStore .*) NonPrivatePointer", r"\1", "by a private pointer"),
    "floats that may be contracted": (r"OpDecorate .* NoContraction\n", "", "may contract it"),
    "a variable that is not named": (r'(OpEntryPoint .*") %\w+', r"\1", "does not name it"),
    "a buffer that is only read": (
        r"(OpDecorate %t1) Binding", r"\1 NonWritable\n\1 Binding", "is not writable"
    ),
    "a buffer that is not bound": (r"OpDecorate %x Binding 0\n", "", "is not bound in set 0"),
    "an element of a matrix": (
        r"OpAccessChain %Function_matrix_c (%\w+ %\w+)", r"OpAccessChain %Function_f32 \1 %i32_0",
        "a part of a matrix c of 16 x 16",
    ),
    "no type": (r"(OpCooperativeMatrixLoadKHR) %matrix_a", r"\1 %f16", "is no matrix"),
    "another layout": (A_LOAD, r"\1 %u32_2 \2", "layout 2 is not simulated"),
    "a subgroup's barrier": (r"OpControlBarrier %\w+", "OpControlBarrier %u32_3", "but a group's"),
    "numbers that are no f16": (r"(OpAccessChain %Workgroup)_f16", r"\1_f32", "should be"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(what: str) -> None:
    old, new, told = REFUSED[what]
    with pytest.raises(SpirvError, match=told):
        kernel_of(assemble(replaced(TEXT, old, new)), 0, 32, SHAPES)


def test_a_device_multiplies_its_own_shapes() -> None:
    module = assemble(TEXT)
    assert kernel_of(module, 0, 32, SHAPES).shared_bytes
    with pytest.raises(SpirvError, match="the device multiplies no 16x16x16 f16 to f32"):
        kernel_of(module, 0, 32, simulated_vulkan(target_named("vulkan:matrix8")).shapes)


def test_words_that_are_no_module() -> None:
    module = assemble(TEXT)
    for wrong, told in (
        (module + struct.pack("<2I", 2 << 16 | 4460, 1), "instruction 4460 is not simulated"),
        (module[:-2], "not a number of words"),
        (module + struct.pack("<I", 9 << 16 | 62), "OpStore has not the words"),
        (b"\0\0\0\0" + module[4:], "does not begin as SPIR-V"),
        (module + struct.pack("<2I", 2 << 16 | 248, 1), "an id is given twice"),
    ):
        with pytest.raises(SpirvError, match=told):
            kernel_of(wrong, 0, 32, SHAPES)


def test_a_subgroup_is_full() -> None:
    """Half of one, whose other threads would hold elements too."""
    symbol = KERNEL.rendered.launches[0].symbol
    text = re.sub(r"LocalSize \d+", "LocalSize 80", TEXT)
    module = assemble(text)
    device = SpirvDevice(32, SHAPES)
    code = struct.pack("<I", len(module)) + module
    phase = KERNEL.rendered.launches[0]
    functions = device.compile(code, [phase])
    arrays = product_arrays(SHAPE, SCHEMES["q4f16_1"], ROWS)
    sizes = [arrays[p.name].nbytes if p.name in arrays else 8192 for p in KERNEL.func.params]
    buffers = [device.allocate(size) for size in sizes]
    launch = device.prepare(functions[symbol], phase, buffers, ["n"])
    with pytest.raises(AssertionError, match="a subgroup that is not full"):
        device.run([(launch, 1, [ROWS])])
