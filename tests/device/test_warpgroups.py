"""wgmma: products of all its sizes have the same bits, and a wrong descriptor has others.

The simulator reads operands where a descriptor says, as the PTX ISA has it (`tests/simt`), whatever
the kernel wrote where. What is wrong here has to show there.
"""

from __future__ import annotations

import re
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

from run_kernel import RunningKernels
from schedule_groups import product_arrays
from simt_device import SimtDevice
from test_unit_floats import product

from sterna.base.dtype import F16
from sterna.base.errors import CodegenError
from sterna.base.target import parse_target
from sterna.codegen.cstyle import GroupSource
from sterna.codegen.octets import in_octets, octet_shape
from sterna.codegen.renderer import RenderedKernel, renderer_of
from sterna.codegen.warpgroup import OCTETS
from sterna.ir.compute import Group
from sterna.ir.expr import Buffer, Var, const_value, wrap
from sterna.ir.rewrite import substitute
from sterna.ir.simplify import simplify
from sterna.quantize.scheme import SCHEMES
from sterna.schedule.choose import plan_of, planned

Array = NDArray[Any]
TARGET = replace(parse_target("cuda:sm_90a"), architectures=())
SHAPE, ROWS = (72, 64), 7
SIZES = {7: 8, 16: 16, 24: 8, 32: 32, 512: 128}  # by the most rows: those of an instruction


# What the PTX ISA asks for, and the same text without it.
WRONG = {
    "the next eight rows": ("(u64)8 << 32", "(u64)9 << 32"),
    "the next octet of k": ("column << 16 |", "(column - 1) << 16 |"),
    "both": ("column << 16 | (u64)8 << 32", "column << 32 | (u64)8 << 16"),
    "a swizzle": ("(u64)8 << 32", "(u64)8 << 32 | (u64)1 << 62"),
    "the address": ("& 0x3ffffu) >> 4", "+ 16 & 0x3ffffu) >> 4"),
    "the next step": ("weight + i * 16", "weight + i * 8"),
    "the operand": ("a[i] = octets_at(weight", "a[i] = octets_at(x"),
    "what a thread keeps": ("c0 = c[0]; c1 = c[1];", "c0 = c[1]; c1 = c[0];"),
    "publishing": ("publish_shared(); ", ""),
}


class Warpgroups(SimtDevice):
    """Threads of a warpgroup act together."""

    limits = replace(SimtDevice.limits, lanes=128)


def made(group: Group) -> RenderedKernel:
    func = planned(group, plan_of(group, TARGET))[1]
    return RenderedKernel(func, renderer_of(TARGET).render_kernel(func, TARGET))


def changed(kernel: RenderedKernel, i: int, old: str, new: str) -> RenderedKernel:
    """A kernel and its own functions under other names, with some of the text replaced."""
    rendered = kernel.rendered
    assert isinstance(rendered, GroupSource)
    (phase,) = rendered.launches
    text = OCTETS.partition("#endif\n")[2] + rendered.text
    assert old in text
    text = text.replace(old, new)
    for name in ("octets_at", "multiply_8x64x32", phase.symbol):
        text = text.replace(name, f"{name}_{i}th")
    phase = msgspec.structs.replace(phase, symbol=f"{phase.symbol}_{i}th")
    func = replace(kernel.func, name=phase.symbol)
    return RenderedKernel(func, replace(rendered, text=text, launches=(phase,)))


@pytest.fixture(scope="module")
def kernels() -> dict[str, RenderedKernel]:
    found = [made(product("q4f16_1", most, SHAPE)) for most in SIZES]
    found += [changed(found[0], i, *texts) for i, texts in enumerate(WRONG.values())]
    return {kernel.func.name: kernel for kernel in found}


@pytest.fixture(scope="module")
def results(kernels: dict[str, RenderedKernel]) -> list[Array]:
    """What each kernel makes of the same rows."""
    running = RunningKernels(kernels, TARGET, Warpgroups())
    arrays = product_arrays(SHAPE, SCHEMES["q4f16_1"], ROWS)
    found = []
    for title, kernel in kernels.items():
        out = kernel.func.params[-1].name
        given = {**arrays, out: np.zeros((ROWS, SHAPE[0]), np.float32)}
        found.append(running.run(title, given, {"n": ROWS})[out].view(np.uint32))
    return found


def test_sizes_of_the_instruction_give_the_same_bits(
    kernels: dict[str, RenderedKernel], results: list[Array]
) -> None:
    for kernel, rows, found in zip(kernels.values(), SIZES.values(), results, strict=False):
        sizes = re.findall(r" multiply_(\d+)x64x32\(\w+\[", kernel.rendered.text)
        assert set(sizes) == {str(rows)}
        assert np.isfinite(found.view(np.float32)).all()
        assert np.array_equal(found, results[0])


def test_what_is_wrong_shows(results: list[Array]) -> None:
    for what, found in zip(WRONG, results[len(SIZES) :], strict=True):
        assert not np.array_equal(found, results[0]), what


def test_eight_rows_of_an_octet_are_128_bytes_together() -> None:
    shared = Buffer("x", F16, (wrap(16), wrap(32)), "shared")
    _, column, last = (int(const_value(simplify(d)) or 0) for d in octet_shape(shared))
    row, k = Var("row"), Var("k")
    places = {}
    for r in range(16):
        for i in range(32):
            index = (substitute(e, {row: wrap(r), k: wrap(i)}) for e in in_octets((row, k)))
            octet, line, own = (int(const_value(simplify(e)) or 0) for e in index)
            places[r, i] = (octet * column + line) * last + own
    assert len(set(places.values())) == 16 * 32
    for r in range(8):
        assert [places[r, i] for i in range(8)] == list(range(r * 8, r * 8 + 8))
    assert places[8, 0] == 64
    assert places[0, 8] % 64 != 0  # in other banks


@pytest.mark.parametrize("shape", [(16, 20), (2, 16, 32)])
def test_rows_that_are_not_made_of_octets_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(CodegenError, match="not made of 8 elements"):
        octet_shape(Buffer("x", F16, tuple(wrap(d) for d in shape), "shared"))


def test_a_unit_has_the_size_of_its_tile() -> None:
    unit = TARGET.unit
    assert unit is not None
    for (rows, depth), size in {
        (8, 16): (8, 16), (24, 48): (8, 48), (48, 96): (16, 96), (128, 64): (128, 64),
        (512, 256): (128, 128), (64, 72): (64, 16), (9, 160): (8, 80),
    }.items():  # fmt: skip
        fitted = unit.fitted(rows, depth)
        assert (fitted.rows, fitted.depth, fitted.lanes) == (*size, 128)
        assert fitted.kept == fitted.rows * 64 // 128
        assert unit.fitted(fitted.rows, fitted.depth) == fitted
    other = parse_target("cuda:sm_80").unit
    assert other is not None
    assert other.fitted(128, 64) is other
