"""Products by matrix units: the same bits as without, and the makers' tools take their code.

The units themselves are imitated (`tests/simt/languages.h`), fragments lying as the makers' manuals
say, and adding in another order than the loop program's.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "codegen"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "schedule"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simt"))

from kernel_arrays import Arrays, arguments
from kernel_library import KernelLibrary
from ptxas import spills, spills_told
from run_kernel import NOTHING, RunningKernels
from simt_device import SimtDevice
from test_quantized_products import kernels
from test_toolchains import compiled_by_nvrtc

from sterna.base.target import MatrixUnit, Target, parse_target
from sterna.codegen import gpu_code
from sterna.codegen.renderer import LibraryParts, RenderedKernel, renderer_of
from sterna.codegen.toolchain import find_clang
from sterna.ir.compute import Group
from sterna.ir.loop import For, ForKind, PrimFunc, Stmt
from sterna.ir.rewrite import rewrite
from sterna.schedule.choose import plan_of, planned
from sterna.tune.space import can_tune

UNITS = (
    "cuda", "cuda:sm_80", "cuda:sm_90a", "rocm:gfx90a", "rocm:gfx1100", "rocm:gfx1201",
    "metal:apple7",
)  # fmt: skip
# Digits of 16 bits and of 8, one scale for 32 codes and for 128, codes up to 15 and up to 255.
SCHEMES = ("q4f16_1", "q4f16_1 i8", "q4f16_0", "q8f16_1z")
SHAPES = {name: (80, 256 if name == "q4f16_0" else 96) for name in SCHEMES}
TOKENS = (1, 3, 65)
MOST = 512


@pytest.fixture(scope="module")
def groups() -> dict[str, Group]:
    found = {}
    for i, name in enumerate(SCHEMES):
        group = kernels(name, MOST, SHAPES[name])["product"]
        found[name] = replace(group, name=f"product_{i}")
    return found


def scheduled(group: Group, target: Target, rule: str) -> PrimFunc:
    plan = plan_of(group, target)
    assert plan.rule == rule
    return planned(group, plan)[1]


@pytest.fixture(scope="module")
def expected(groups: dict[str, Group]) -> dict[tuple[str, int], tuple[Arrays, Arrays]]:
    """Arguments and results of the schedule without units, its loops run on this CPU."""
    plain = parse_target("cuda:source")
    funcs = {name: scheduled(g, plain, "matmul_groups") for name, g in groups.items()}
    library = KernelLibrary(list(funcs.values()))
    found = {}
    for name, func in funcs.items():
        for tokens in TOKENS:
            arrays, dims = arguments(func, tokens, single=False)
            rng = np.random.default_rng(tokens)
            shape = arrays["x_codes"].shape
            arrays["x_codes"] = rng.integers(-(1 << 31), 1 << 31, shape).astype(np.int32)
            if name.endswith("i8"):  # -128 is no code
                codes = rng.integers(-127, 128, (*shape, 4)).astype(np.int8)
                arrays["x_codes"] = codes.view(np.int32)[..., 0]
            after = {p: arrays[p.name].copy() for p in func.params}
            library.run(func.name, after, dims)
            found[name, tokens] = arrays, {p.name: array for p, array in after.items()}
    return found


def rendered(groups: dict[str, Group], target: Target) -> dict[str, RenderedKernel]:
    funcs = [scheduled(g, target, "matmul_units") for g in groups.values()]
    return {f.name: RenderedKernel(f, renderer_of(target).render_kernel(f, target)) for f in funcs}


@pytest.mark.parametrize("spec", UNITS)
def test_units_change_no_bit(
    spec: str,
    groups: dict[str, Group],
    expected: dict[tuple[str, int], tuple[Arrays, Arrays]],
) -> None:
    target = replace(parse_target(spec), architectures=())  # the source, for the simulator
    assert target.unit is not None
    lanes = target.unit.lanes

    class Simulated(SimtDevice):
        limits = replace(SimtDevice.limits, lanes=lanes)

    made = rendered(groups, target)
    running = RunningKernels(made, target, Simulated())
    for name, group in groups.items():
        (phase,) = made[group.name].rendered.launches
        assert phase.lanes == min(lanes, target.subgroup)
        # Some subgroups share what is unpacked, whatever the scheme.
        assert phase.threads > target.subgroup
        for tokens in TOKENS:
            before, after = expected[name, tokens]
            got = running.run(group.name, before, {"n": tokens})
            for p, array in after.items():
                assert np.array_equal(got[p].view(np.uint8), array.view(np.uint8)), (name, p)


def plain(func: PrimFunc) -> PrimFunc:
    """`func` with matrix loops as the loops that they mean."""

    def loops(stmt: Stmt) -> Stmt:
        if isinstance(stmt, For) and stmt.kind is ForKind.MATRIX:
            return replace(stmt, kind=ForKind.UNROLL)
        return stmt

    return replace(func, body=rewrite(func.body, stmt_rule=loops))


def test_the_loop_program_means_the_same(
    groups: dict[str, Group], expected: dict[tuple[str, int], tuple[Arrays, Arrays]]
) -> None:
    """What the unit's schedule says, with every loop run as a loop on this CPU."""
    target = parse_target("cuda:sm_80")
    func = plain(scheduled(groups["q4f16_1 i8"], target, "matmul_units"))
    before, after = expected["q4f16_1 i8", 3]
    arrays = {p: before[p.name].copy() for p in func.params}
    KernelLibrary([func]).run(func.name, arrays, dict.fromkeys(func.dims, 3))
    for p, array in arrays.items():
        assert np.array_equal(array.view(np.uint8), after[p.name].view(np.uint8))


def units_in(code: str) -> int:
    nvidia = r"mma\.sync\.aligned\.m16n8k|wgmma\.mma_async\.sync\.aligned\.m64n"
    amd = r"v_mfma_f32_16x16x16|v_wmma_f32_16x16x16"
    return len(re.findall(f"{nvidia}|{amd}", code))


def source(groups: dict[str, Group], spec: str) -> str:
    target = parse_target(spec)
    parts = LibraryParts(NOTHING, rendered(groups, target), {})
    return renderer_of(target).library_source(parts)


@pytest.fixture(scope="module", params=["sm_75", "sm_80", "sm_90a", "sm_120"])
def ptx(
    request: pytest.FixtureRequest,
    groups: dict[str, Group],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, str]:
    """An architecture, and the PTX for it."""
    architecture, folder = request.param, tmp_path_factory.mktemp(request.param)
    made = gpu_code._ptx(source(groups, f"cuda:{architecture}"), architecture, folder)
    return architecture, made.decode()


@pytest.mark.slow
def test_ptx_multiplies_with_the_unit(ptx: tuple[str, str]) -> None:
    assert units_in(ptx[1]) > 0
    assert ("wgmma" in ptx[1], "mma.sync" in ptx[1]) == (ptx[0] == "sm_90a", ptx[0] != "sm_90a")
    assert ".local" not in ptx[1]


@pytest.mark.slow
def test_ptxas_spills_nothing(
    ptx: tuple[str, str], groups: dict[str, Group], tmp_path: Path
) -> None:
    architecture, text = ptx
    assert list(spills(text, architecture, tmp_path).values()) == [0] * len(groups)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gfx90a", "gfx942", "gfx1100", "gfx1201"])
def test_amd_code_spills_nothing(
    architecture: str, groups: dict[str, Group], tmp_path: Path
) -> None:
    (tmp_path / "kernels.hip").write_text(source(groups, f"rocm:{architecture}"))
    code = gpu_code._code_object(find_clang(), architecture, tmp_path)
    assert code[:4] == b"\x7fELF"
    text = (tmp_path / f"kernels-{architecture}.s").read_text()
    assert units_in(text) > 0
    assert re.findall(r"\.vgpr_spill_count: +(\d+)", text) == ["0"] * len(groups)
    assert re.findall(r"\.private_segment_fixed_size: +(\d+)", text) == ["0"] * len(groups)


@pytest.mark.slow
def test_nvrtc_takes_them(groups: dict[str, Group]) -> None:
    ptx, log = compiled_by_nvrtc(source(groups, "cuda:sm_80"), "sm_80")
    assert units_in(ptx) > 0
    assert not any(spills_told(ptx, log).values())


def test_without_a_unit_nothing_changes(groups: dict[str, Group]) -> None:
    for spec in ("cuda:source", "rocm", "rocm:gfx1030", "metal", "opencl", "vulkan"):
        assert plan_of(groups["q4f16_1"], parse_target(spec)).rule == "matmul_groups"


@pytest.mark.parametrize("spec", UNITS)
def test_few_rows_are_no_work_for_a_unit(spec: str) -> None:
    few = kernels("q4f16_1", 2)["product"]
    assert plan_of(few, parse_target(spec)).rule == "matvec_groups"


@pytest.mark.parametrize("spec", UNITS)
def test_tuning_leaves_them_alone(spec: str, groups: dict[str, Group]) -> None:
    """Tuned plans are stored as numbers, and the unit is none."""
    assert not can_tune(plan_of(groups["q4f16_1"], parse_target(spec)))


def rows_of_bits(unit: MatrixUnit) -> Iterator[tuple[int, int]]:
    """Row and column of every element that every thread keeps."""
    for lane in range(unit.lanes):
        for own in range(unit.kept):
            numbers = {"l": lane, "s": own}
            yield tuple(  # type: ignore[misc]
                sum((numbers[bit[0]] >> int(bit[1:]) & 1) << i for i, bit in enumerate(reversed(b)))
                for b in (unit.row_bits.split(), unit.column_bits.split())
            )


@pytest.mark.parametrize("spec", UNITS)
def test_each_element_has_one_thread(spec: str) -> None:
    unit = parse_target(spec).unit
    assert unit is not None
    for each in {unit, unit.fitted(24, 48), unit.fitted(512, 512)}:
        assert set(rows_of_bits(each)) == {
            (m, n) for m in range(each.rows) for n in range(each.columns)
        }
