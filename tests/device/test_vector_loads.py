"""Products read packed words and activations by 16 bytes, in machine code too.

In a decode step all of them. In a prompt a thread reads x so, and of a panel its share of the
words: one of 4 bits, a pair of 8 bits, and four where scale groups are long.

Counted in what compilers make, where they are here: that the source says so is not enough. Where a
kernel read a word at a time, each count would be four times as high, and of other instructions.
SPIR-V and WGSL are counted as they are written; in SPIR-V loops stand that the driver writes out.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "schedule"))

from ptxas import spills
from run_kernel import NOTHING
from schedule_groups import product_group

from sterna.base.target import parse_target
from sterna.codegen import gpu_code, spirv, wgsl
from sterna.codegen.renderer import LibraryParts, RenderedKernel, renderer_of
from sterna.codegen.toolchain import find_clang
from sterna.quantize.scheme import SCHEMES
from sterna.schedule.choose import plan_of, planned

WORDS = {"q4f16_1": 4, "q8f16_1": 8}  # of a row of the weight, in what a thread sums at once
ROWS = 2  # of x in a decode step


def vectors(rows: int = 1) -> int:
    """Loads of words, and of as much of each row of x as they multiply."""
    return sum(words + rows * 32 // 4 for words in WORDS.values())


def written(rows: int) -> range:
    """Loads in the text: one row of x has its own, of which a compiler may make one with others."""
    return range(vectors(rows), vectors(rows) + (vectors(1) if rows > 1 else 0) + 1)


PANELS = ("q4f16_1", "q8f16_1", "q4f16_0")
EACH = 4  # rows of x of a thread


def source(spec: str, names: Iterable[str] = WORDS, most_rows: int = ROWS) -> str:
    target, made = parse_target(spec), {}
    for name in names:
        group = product_group(name, (256, 1024), SCHEMES[name], most_rows, epilogue=False)
        func = planned(group, plan_of(group, target))[1]
        rendered = renderer_of(target).render_kernel(func, target)
        made[name] = RenderedKernel(func, rendered)
    return renderer_of(target).library_source(LibraryParts(NOTHING, made, {}))


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, ROWS])
@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_90a", "sm_120"])
def test_ptx_loads_vectors(architecture: str, rows: int, tmp_path: Path) -> None:
    spec = "cuda" if architecture == "sm_75" else f"cuda:{architecture}"
    ptx = gpu_code._ptx(source(spec, most_rows=rows), architecture, tmp_path).decode()
    assert len(re.findall(r"ld\.global(?:\.nc)?\.v4\.[buf]32", ptx)) in written(rows)
    assert not re.findall(r"ld\.global(?:\.nc)?\.[bu]32", ptx)
    assert ".local" not in ptx
    assert list(spills(ptx, architecture, tmp_path).values()) == [0] * len(WORDS)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_90a", "sm_120"])
def test_ptx_fills_panels_with_vectors(architecture: str, tmp_path: Path) -> None:
    spec = "cuda" if architecture == "sm_75" else f"cuda:{architecture}"
    ptx = gpu_code._ptx(source(spec, PANELS, 64), architecture, tmp_path).decode()
    loads = Counter(re.findall(r"ld\.global(?:\.nc)?\.((?:v\d\.)?)[buf]32", ptx))
    # Words of the first panel and of the next; a deep panel has no next one.
    assert loads == {"": 2, "v2.": 2, "v4.": 1 + EACH * len(PANELS)}
    # One row after another, rows in pairs, and in fours.
    stores = Counter(re.findall(r"st\.shared\.((?:v\d\.)?)[bf]32", ptx))
    assert stores == {"": 2 * 8, "v2.": 2 * 4, "v4.": 8}
    assert ".local" not in ptx
    assert list(spills(ptx, architecture, tmp_path).values()) == [0] * len(PANELS)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gfx90a", "gfx942", "gfx1030", "gfx1100", "gfx1201"])
def test_amd_code_fills_panels_with_vectors(architecture: str, tmp_path: Path) -> None:
    (tmp_path / "kernels.hip").write_text(source(f"rocm:{architecture}", PANELS, 64))
    gpu_code._code_object(find_clang(), architecture, tmp_path)
    text = (tmp_path / f"kernels-{architecture}.s").read_text()
    assert len(re.findall(r"global_load_(?:dword|b32)\b", text)) == 1
    stores = r"ds_(?:write|store)(?:2|_2addr)?(?:st64|_stride64)?_(b\d+)"
    assert Counter(re.findall(stores, text))["b128"] == 8
    assert re.findall(r"\.vgpr_spill_count: +(\d+)", text) == ["0"] * len(PANELS)
    assert re.findall(r"\.private_segment_fixed_size: +(\d+)", text) == ["0"] * len(PANELS)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, ROWS])
@pytest.mark.parametrize("architecture", ["gfx90a", "gfx942", "gfx1030", "gfx1100"])
def test_amd_code_loads_vectors(architecture: str, rows: int, tmp_path: Path) -> None:
    (tmp_path / "kernels.hip").write_text(source(f"rocm:{architecture}", most_rows=rows))
    gpu_code._code_object(find_clang(), architecture, tmp_path)
    text = (tmp_path / f"kernels-{architecture}.s").read_text()
    assert len(re.findall(r"global_load_(?:dwordx4|b128)", text)) in written(rows)
    assert re.findall(r"\.vgpr_spill_count: +(\d+)", text) == ["0"] * len(WORDS)
    assert re.findall(r"\.private_segment_fixed_size: +(\d+)", text) == ["0"] * len(WORDS)


@pytest.mark.parametrize("spec", ["vulkan", "vulkan:f32"])
def test_spirv_loads_vectors(spec: str) -> None:
    _, *modules = source(spec).split(spirv.MODULE)
    assert len(modules) == len(WORDS)
    for text in modules:
        loads = re.findall(r"OpAccessChain %StorageBuffer_(\w+) %(layer_q_weight|x) ", text)
        # One row of x has sums of its own.
        assert Counter(loads) == {("f32_v4", "x"): 2, ("u32_v4", "layer_q_weight"): 2}
        assert len(re.findall(r"OpLoad %(?:u32|f32)_v4 ", text)) == len(loads)


@pytest.mark.parametrize("spec", ["webgpu", "webgpu:f16"])
def test_wgsl_loads_vectors(spec: str) -> None:
    _, *modules = source(spec).split(wgsl.MODULE)
    for name, text in zip(WORDS, modules, strict=True):
        assert (
            len(re.findall(r"\b(?:layer_q_weight: array<vec4<u32>>|x: array<vec4<f32>>);", text))
            == 2
        )
        # All of one row of x; for more the loop over words stands.
        found = re.findall(r"\b(layer_q_weight|x)\[", text)
        codes = 32 // SCHEMES[name].bits
        assert Counter(found) == {
            "layer_q_weight": WORDS[name] + 1,
            "x": 32 // 4 + ROWS * codes // 4,
        }
