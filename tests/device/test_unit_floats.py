"""Products of floats by matrix units: a row has the same bits however many are computed with it.

The units are imitated (`tests/simt/languages.h`, `spirv.h`) and add backwards, so their bits are
not those of the operator's reference; that is near by a bound that is derived. What is equal to the
bit is what one unit makes: rows alone, in threes, and in tiles of prompts. Vulkan's matrices are
the driver's besides, where one is here that has them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "schedule"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simt"))

from compiled import Compiled, Part, convert, drawn_source, step_input, tiny
from conformance import CHAT, CONFIG
from ptxas import spills
from run_kernel import NOTHING, RunningKernels
from schedule_groups import product_arrays, rows, weight
from simt_device import SimtDevice
from spirv_device import simulated_vulkan
from test_whole_models import OPTIONS
from traffic import traffic_of

from sterna.base.artifact import Activations, CompileOptions
from sterna.base.dtype import F32
from sterna.base.errors import InvalidIR, ScheduleError, Unavailable, UsageError
from sterna.base.target import Target, parse_target
from sterna.checkpoint.mlc import read_mlc_folder
from sterna.checkpoint.model_folder import ModelFolder
from sterna.codegen import gpu_code
from sterna.codegen.renderer import LibraryParts, RenderedKernel, renderer_of
from sterna.codegen.toolchain import find_clang
from sterna.compiler import compile_model, compile_source
from sterna.ir.compute import Group
from sterna.ir.evaluate import evaluate_group
from sterna.ir.graph import IRModule
from sterna.ir.parser import parse_group
from sterna.ir.printer import to_text
from sterna.nn.trace import Trace
from sterna.ops.unit_matmul import OPERANDS
from sterna.passes.cleanup import cleanup
from sterna.passes.fuse import fuse
from sterna.passes.lower import lower
from sterna.passes.prepack import RowTile
from sterna.passes.products import products_of_floats
from sterna.passes.unit_products import unit_products
from sterna.quantize.pack import dequantize, quantize
from sterna.quantize.scheme import SCHEMES, scheme
from sterna.runtime import vulkan
from sterna.runtime.vulkan_code import Shape
from sterna.runtime.work_groups import Device, load_on
from sterna.schedule.choose import plan_of, planned
from sterna.tune.space import can_tune

Array = NDArray[Any]
COOPERATIVE = ("vulkan:matrix", "vulkan:matrix8")
UNITS = (
    "cuda", "cuda:sm_80", "cuda:sm_90a", "rocm:gfx90a", "rocm:gfx1100", "rocm:gfx1201",
    "metal:apple7",
)  # fmt: skip
# Scale groups of 32 and of 128 and none, codes of 4 and 8 bits, both layouts; by operands.
CASES = {
    "q4f16_1": "f16", "q4f16_0": "f16", "q8f16_1z": "f16", "q0f16": "f16",
    "q4bf16_1": "bf16", "q0bf16": "bf16",
}  # fmt: skip
ROWS, MOST = (1, 3, 8, 9), 65  # few at a time, and a prompt
FEW, MANY = 32, 512
STEP = 2.0**-24  # half a unit in the last place of f32


def shape_of(name: str) -> tuple[int, int]:
    return (77, 256 if name == "q4f16_0" else 96)


def product(name: str, most: int, shape: tuple[int, int]) -> Group:
    """The kernel as the passes make it, with a sum behind the product."""
    trace, n = Trace(f"{name}_{most}"), rows(most)
    x = trace.param("x", (n, shape[1]), F32)
    y = trace.emit("matmul", x, weight(trace, shape, SCHEMES[name]))
    function = trace.function(trace.param("r", (n, shape[0]), F32) + y)
    module = IRModule({function.name: function}, function.name, (n,))
    module = unit_products(module, OPERANDS[CASES[name]])
    assert products_of_floats(module) == (1, 0)
    module = fuse(cleanup(module))
    tiles = dict.fromkeys(trace.weights, RowTile(64)) if SCHEMES[name].layout == "NK" else {}
    (only,) = (lower(f, tiles).group for f in module.functions.values() if f.primitive)
    return replace(only, name=f"{name}_{most}")


GROUPS = {
    (name, most): product(name, most, shape_of(name)) for name in CASES for most in (FEW, MANY)
}


def taken(target: Target) -> list[str]:
    assert target.unit is not None
    return [name for name, operands in CASES.items() if operands in target.unit.operands]


def rendered(target: Target) -> dict[str, RenderedKernel]:
    made = {}
    for (name, most), group in GROUPS.items():
        if name in taken(target):
            plan = plan_of(group, target)
            kept = most == FEW or (target.unit is not None and target.unit.opaque)
            assert plan.rule == ("few_rows_units" if kept else "float_units")
            assert not can_tune(plan)
            func = planned(group, plan)[1]
            made[func.name] = RenderedKernel(func, renderer_of(target).render_kernel(func, target))
    return made


def rounded(x: Array, operands: str) -> Array:
    return x.astype(OPERANDS[operands].numpy).astype(np.float64)


@pytest.fixture(scope="module")
def reference() -> Reference:
    """Arguments of 65 rows, what the operator makes of them, and how far another order may be."""
    found = {}
    for name, operands in CASES.items():
        shape, group = shape_of(name), GROUPS[name, MANY]
        arrays = product_arrays(shape, SCHEMES[name], MOST)
        dims = {group.inputs[0].shape[0]: MOST}
        (out,) = evaluate_group(group, arrays, dims).values()  # type: ignore[arg-type]
        drawn = np.random.default_rng(shape[0] * 1000 + shape[1]).standard_normal(shape)
        packed = quantize(drawn.astype(np.float32), SCHEMES[name])
        full = dequantize(packed, SCHEMES[name], shape).astype(np.float64)
        x = rounded(arrays["x"], operands)
        # Each of K products and sums rounds once; so does each block's, and the epilogue.
        bound = 2 * (shape[1] + 16) * STEP * (np.abs(x) @ np.abs(full).T + np.abs(arrays["r"]))
        exact = x @ full.T + arrays["r"]
        assert (np.abs(out - exact) <= bound).all()
        found[name] = arrays, out, bound
    return found


Reference = dict[str, tuple[dict[str, Array], Array, Array]]


@pytest.mark.parametrize("spec", UNITS)
def test_rows_are_equal_however_many_there_are(spec: str, reference: Reference) -> None:
    target = replace(parse_target(spec), architectures=())
    assert target.unit is not None
    lanes = target.unit.lanes

    class Simulated(SimtDevice):
        limits = replace(SimtDevice.limits, lanes=lanes)

    check_rows(target, Simulated(), reference)


def with_matrices(target: Target) -> Iterator[Device]:
    """The simulator, and the driver that is here if it has the shape."""
    yield simulated_vulkan(target)
    unit = target.unit
    assert unit is not None
    try:
        driver = vulkan.open_device()
    except Unavailable:
        return
    shape = Shape(unit.rows, unit.columns, unit.depth, "f16", "f32")
    if not driver.offer.lacks(shape, unit.lanes, unit.lanes):
        yield driver
    driver.close()


@pytest.mark.parametrize("spec", COOPERATIVE)
def test_rows_are_equal_by_matrices_of_a_subgroup(spec: str, reference: Reference) -> None:
    target = parse_target(spec)
    for device in with_matrices(target):
        check_rows(target, device, reference)


def check_rows(target: Target, device: Device, reference: Reference) -> None:
    made = rendered(target)
    running = RunningKernels(made, target, device)
    for name in taken(target):
        _, wanted, bound = reference[name]

        def run(most: int, first: int, count: int, name: str = name) -> Array:
            func, own = made[f"{name}_{most}"].func, reference[name][0]
            part = {k: a[first : first + count] if k in "xr" else a for k, a in own.items()}
            out = func.params[-1]
            part[out.name] = np.zeros((count, shape_of(name)[0]), np.float32)
            return running.run(func.name, part, {"n": count})[out.name]

        whole = run(MANY, 0, MOST)
        assert (np.abs(whole - wanted) <= bound).all(), name
        assert (whole != wanted).any(), name  # the unit has an order of its own
        for count in ROWS:
            for first in (0, MOST - count):
                few = run(FEW, first, count)
                there = whole[first : first + count]
                assert np.array_equal(few.view(np.uint32), there.view(np.uint32)), (name, count)
        part = run(MANY, 40, 9)
        assert np.array_equal(part.view(np.uint32), whole[40:49].view(np.uint32)), name


def test_decode_reads_each_byte_of_a_weight_once() -> None:
    """Eight sequences that decode, and two work groups."""
    count, shape = 8, (64, 32)
    group = product("q4f16_1", count, shape)
    plan = plan_of(group, parse_target("cuda:sm_80"))
    assert plan.rule == "few_rows_units"
    func = planned(group, plan)[1]
    arrays = product_arrays(shape, SCHEMES["q4f16_1"], count)
    arrays[func.params[-1].name] = np.zeros((count, shape[0]), np.float32)
    traffic = traffic_of(func, arrays, dict.fromkeys(func.dims, count))
    for part in ("layer_q_weight", "layer_q_scale"):
        assert traffic.read[part] == arrays[part].nbytes
    assert traffic.read["x"] == 2 * arrays["x"].nbytes


def test_a_units_sum_prints_and_parses() -> None:
    text = to_text(GROUPS["q0f16", FEW])
    assert "unit_sum(" in text
    assert to_text(parse_group(text)) == text


def test_what_is_larger_than_f16_becomes_its_largest() -> None:
    group = GROUPS["q0f16", FEW]
    arrays = product_arrays(shape_of("q0f16"), SCHEMES["q0f16"], 1)
    arrays["x"][:] = 0
    arrays["r"][:] = 0
    arrays["x"][0, 5] = -1e6
    dims = {group.inputs[0].shape[0]: 1}
    (out,) = evaluate_group(group, arrays, dims).values()  # type: ignore[arg-type]
    assert np.isfinite(out).all()
    assert np.abs(out).max() > 65504


def test_groups_for_a_unit_are_refused_without_one() -> None:
    group, target = GROUPS["q4f16_1", FEW], parse_target("cuda:sm_80")
    with pytest.raises(ScheduleError, match="is for a matrix unit, and the target has none"):
        plan_of(group, parse_target("opencl"))
    assert target.unit is not None
    with pytest.raises(ScheduleError, match="float_units has no row for 16x8x32/32"):
        plan_of(group, replace(target, unit=replace(target.unit, depth=32)))


def test_weights_that_do_not_suit_stay() -> None:
    """Of another dtype, and in groups of 40."""
    for shape, own, operands in (
        ((8, 80), scheme("q3f16_0"), "f16"),
        ((8, 96), SCHEMES["q0f16"], "bf16"),
    ):
        trace, n = Trace("f"), rows(8)
        x = trace.param("x", (n, shape[1]), F32)
        function = trace.function(trace.emit("matmul", x, weight(trace, shape, own)))
        module = IRModule({"f": function}, "f", (n,))
        assert products_of_floats(unit_products(module, OPERANDS[operands])) == (0, 1)


def test_the_operator_refuses_what_it_cannot_mean() -> None:
    trace, n = Trace("f"), rows(8)
    x, w = trace.param("x", (n, 40), F32), trace.weight("w", (8, 40), OPERANDS["f16"])
    with pytest.raises(InvalidIR, match="groups of 40 have no blocks"):
        trace.emit("unit_matmul", x, w, layout="NK", operands="f16")
    with pytest.raises(InvalidIR, match="must be of the operands"):
        trace.emit("unit_matmul", x, w, layout="NK", operands="bf16")
    with pytest.raises(InvalidIR, match="operands are f16 or bf16"):
        trace.emit("unit_matmul", x, w, layout="NK", operands="f32")


@pytest.mark.parametrize(
    ("spec", "name", "activations", "told"),
    [
        (
            "cpu",
            "q4f16_1",
            "f16",
            "has no matrix unit or instruction for them; possible are cuda, ",
        ),
        ("vulkan:f32", "q4f16_1", "f16", "vulkan:f32 has no matrix unit"),
        ("cuda:sm_75", "q4bf16_1", "bf16", "possible are cuda:sm_80, "),
        ("cpu:x86-64-multi", "q4f16_1", "bf16", "rocm:gfx1201, cpu:x86-64-v4-bf16; or leave "),
        ("cuda:sm_80", "q4f32_1", "f16", "q4f32_1 computes in f32"),
        ("cuda:sm_80", "q0f16", "bf16", "no product of q0f16 can use them"),
    ],
)
def test_what_cannot_be_is_said(spec: str, name: str, activations: Activations, told: str) -> None:
    folder = ModelFolder(Path(), dict(CHAT), dict(CONFIG), "llama", name, name, {})
    with pytest.raises(UsageError, match=re.escape(told)):
        compile_source(folder, parse_target(spec), CompileOptions(activations=activations))


def test_a_tied_plain_head_is_the_units_too() -> None:
    """Rows of its table are stored as f32 by a kernel that only moves, which has a name as all."""
    config = {**CONFIG, "num_hidden_layers": 1, "tie_word_embeddings": True}
    folder = ModelFolder(Path(), dict(CHAT), config, "llama", "q0f16", "q0f16", {})
    options = CompileOptions(activations="f16")
    source = compile_source(folder, parse_target("cuda:sm_80"), options)
    assert source.of_floats == (5, 0)  # q, k and v; o; gate and up; down; the head
    assert all(re.fullmatch(r"[a-z]\w+", title) for title in source.table.kernels)


PROMPT = [3 + 7 * i % 61 for i in range(11)]
CUTS = ((11,), (8, 3), (1,) * 11)  # at once, in chunks, token by token


def steps(executable: Any, cut: tuple[int, ...], pages: list[int]) -> Array:
    """The logits after the prompt, cut so."""
    begin, page = 0, executable.manifest.kv_cache.page_size
    for count in cut:
        part = Part(PROMPT[begin : begin + count], begin, pages)
        logits: Array = executable.step(step_input([part], page)).copy()
        begin += count
    return logits


def greedy(executable: Any, pages: list[int], count: int) -> Array:
    """The logits after the prompt and after each of the tokens that they choose."""
    page, found = executable.manifest.kv_cache.page_size, [steps(executable, CUTS[0], pages)]
    for i in range(count):
        part = Part([int(found[-1].argmax())], len(PROMPT) + i, pages)
        found.append(executable.step(step_input([part], page)).copy())
    return np.concatenate(found)


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["cuda:sm_80", *COOPERATIVE])
def test_a_prompt_has_the_bits_of_its_tokens(spec: str, tmp_path: Path) -> None:
    shape = {**tiny.VARIANTS["llama2-gqa"], **CONFIG}
    folder = convert(drawn_source(tmp_path, shape, tiny.weights(shape)), tmp_path / "m", "q4f16_1")
    target = replace(parse_target(spec), architectures=())
    device = simulated_vulkan(target) if spec in COOPERATIVE else SimtDevice()
    library, plain = tmp_path / "library.sterna", tmp_path / "plain.so"
    options = CompileOptions(**OPTIONS, activations="f16")
    compile_model(folder, target, library, options=options, cached=False)
    ours = load_on(device, library, read_mlc_folder(folder).tensors, num_pages=4)
    whole, *others = (steps(ours, cut, [i]) for i, cut in enumerate(CUTS))
    for logits in others:
        assert np.array_equal(logits.view(np.uint32), whole.view(np.uint32))
    mine = greedy(ours, [3, 0], 8)
    ours.close()
    compile_model(
        folder,
        parse_target("cpu"),
        plain,
        options=msgspec.structs.replace(options, activations="f32"),
    )
    theirs = Compiled(folder, plain).load(num_pages=4)
    cpu = greedy(theirs, [1, 0], 8)
    assert 0 < np.abs(mine - cpu).max() < 2e-3 * np.ptp(cpu)  # f16 has eleven bits
    assert mine.argmax(-1).tolist() == cpu.argmax(-1).tolist()
    theirs.close()


def source(spec: str) -> str:
    target = parse_target(spec)
    return renderer_of(target).library_source(LibraryParts(NOTHING, rendered(target), {}))


def source_of(group: Group, spec: str) -> str:
    target = parse_target(spec)
    func = planned(group, plan_of(group, target))[1]
    made = {func.name: RenderedKernel(func, renderer_of(target).render_kernel(func, target))}
    return renderer_of(target).library_source(LibraryParts(NOTHING, made, {}))


@pytest.mark.slow
@pytest.mark.parametrize("most", [FEW, MANY])
@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_90a"])
def test_ptx_fills_what_is_multiplied_with_vectors(
    architecture: str, most: int, tmp_path: Path
) -> None:
    text = source_of(product("q4f16_1", most, (256, 1024)), f"cuda:{architecture}")
    ptx = gpu_code._ptx(text, architecture, tmp_path).decode()
    words = re.findall(r"ld\.global(?:\.nc)?\.(v\d)\.[bu]32", ptx)
    assert words.count("v2") == 1  # of two rows, all that is a thread's
    assert words.count("v4") in (2, 4)  # of x, a row each
    assert re.findall(r"st\.shared\.v4\.[bu]32", ptx)  # octets of the weight
    assert re.findall(r"st\.shared\.v4\.[bu]16", ptx)  # and fours of x
    assert not re.findall(r"st\.shared\.[bu]16", ptx)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gfx90a", "gfx1100", "gfx1201"])
def test_amd_code_fills_what_is_multiplied_with_vectors(architecture: str, tmp_path: Path) -> None:
    text = source_of(product("q4f16_1", FEW, (256, 1024)), f"rocm:{architecture}")
    (tmp_path / "kernels.hip").write_text(text)
    gpu_code._code_object(find_clang(), architecture, tmp_path)
    made = (tmp_path / f"kernels-{architecture}.s").read_text()
    assert len(re.findall(r"global_load_(?:dwordx2|b64)\b", made)) == 1
    assert len(re.findall(r"global_load_(?:dwordx4|b128)\b", made)) == 4
    assert len(re.findall(r"ds_(?:write|store)_b128\b", made)) == 2
    assert not re.findall(r"ds_(?:write|store)_b16\b", made)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_90a"])
def test_ptxas_spills_nothing(architecture: str, tmp_path: Path) -> None:
    text = gpu_code._ptx(source(f"cuda:{architecture}"), architecture, tmp_path).decode()
    count = 2 * len(taken(parse_target(f"cuda:{architecture}")))
    assert text.count(".visible .entry") == count
    assert ".local" not in text
    assert ("bf16.bf16" in text) == (architecture != "sm_75")
    assert ("wgmma.mma_async" in text) == (architecture == "sm_90a")
    assert list(spills(text, architecture, tmp_path).values()) == [0] * count


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gfx90a", "gfx942", "gfx1100", "gfx1201"])
def test_amd_code_spills_nothing(architecture: str, tmp_path: Path) -> None:
    (tmp_path / "kernels.hip").write_text(source(f"rocm:{architecture}"))
    gpu_code._code_object(find_clang(), architecture, tmp_path)
    text = (tmp_path / f"kernels-{architecture}.s").read_text()
    assert re.search(r"v_mfma_f32_16x16x16_?bf16|v_wmma_f32_16x16x16_bf16", text)
    count = 2 * len(CASES)
    assert re.findall(r"\.vgpr_spill_count: +(\d+)", text) == ["0"] * count
    assert re.findall(r"\.private_segment_fixed_size: +(\d+)", text) == ["0"] * count
