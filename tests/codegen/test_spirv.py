"""SPIR-V as it is written: valid, the same words as the Khronos assembler's, and refusals."""

from __future__ import annotations

import re
import struct
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "device"))

from conformance import cases, rendered, target_named
from spirv_tools import assembled, complaint
from test_unit_floats import FEW, MANY, product

from sterna.base.dtype import BF16, BOOL, F16, F32, I8, I16, I32, I64, U8, U16, U32
from sterna.base.errors import CodegenError
from sterna.base.target import parse_target
from sterna.codegen.renderer import RenderedKernel, renderer_of
from sterna.codegen.spirv import MODULE
from sterna.codegen.spirv_assembly import assemble
from sterna.ir.expr import UNARY, Buffer, Const, Expr, Unary, Var, binary, cast, fma, select, wrap
from sterna.ir.loop import For, ForKind, PrimFunc, seq, store
from sterna.ir.parser import parse_primfunc
from sterna.ir.printer import to_text
from sterna.schedule.choose import plan_of, planned

TARGETS = ("vulkan", "vulkan:f32")


@pytest.fixture(scope="module")
def kernels() -> dict[str, dict[str, RenderedKernel]]:
    """Every kernel of the conformance matrix, for each target; with subgroups, what differs."""
    found = cases(target_named("vulkan"))
    result = {name: rendered(found, target_named(name)) for name in TARGETS}
    swapping = target_named("vulkan:subgroups")
    attention = [c for c in found if c.op == "attention"]
    return result | {swapping.spec: rendered(attention, swapping)}


def modules(kernels: dict[str, RenderedKernel]) -> list[str]:
    """The text of each module, without the line that separates them."""
    texts = (k.rendered.text.split(MODULE)[1:] for k in kernels.values())
    return [module.split("\n", 1)[1] for text in texts for module in text]


def check_valid(module: bytes, where: Path) -> None:
    assert not complaint(module, where)


def check_words(text: str, where: Path) -> None:
    """The same as the Khronos assembler's; only the generator's number differs."""
    ours, theirs = assemble(text), assembled(text, where)
    assert ours[:8] + ours[12:] == theirs[:8] + theirs[12:]


@pytest.mark.parametrize("name", TARGETS)
def test_every_module_is_valid(
    name: str, kernels: dict[str, dict[str, RenderedKernel]], tmp_path: Path
) -> None:
    texts = modules(kernels[name])
    assert len(texts) > 20
    for text in texts:
        check_valid(assemble(text), tmp_path)


def test_the_same_words_as_the_khronos_assembler(
    kernels: dict[str, dict[str, RenderedKernel]], tmp_path: Path
) -> None:
    """People and other tools may take the text for what it is."""
    for text in modules(kernels["vulkan"])[::7]:
        check_words(text, tmp_path)


def test_what_swaps_asks_for_subgroups(
    kernels: dict[str, dict[str, RenderedKernel]], tmp_path: Path
) -> None:
    texts = [text for text in modules(kernels["vulkan:subgroups"]) if "ShuffleXor" in text]
    assert len(texts) == 10  # attention: three heads in three dtypes, one and eight in one
    for text in texts:
        assert "OpCapability GroupNonUniformShuffle\n" in text
        check_valid(assemble(text), tmp_path)
    check_words(texts[0], tmp_path)


@pytest.mark.parametrize("spec", ["vulkan:matrix", "vulkan:matrix8"])
def test_matrices_are_stored_before_an_element_is_read(spec: str) -> None:
    for text in multiplying(spec):
        assert "OpMemoryModel Logical Vulkan\n" in text
        for use in ("Load", "MulAdd", "Store"):
            assert f"OpCooperativeMatrix{use}KHR" in text
        shared = re.findall(r"OpVariable %Workgroup_(\w+)", text)
        assert sorted(kind[:3] for kind in shared) == ["f16", "f16", "f32"]
        assert "OpFConvert" not in text  # whose rounding is the driver's
        assert assemble(text)


@pytest.mark.parametrize("spec", ["vulkan:matrix", "vulkan:matrix8"])
def test_modules_with_matrices_are_valid(spec: str, tmp_path: Path) -> None:
    for text in multiplying(spec):
        check_valid(assemble(text), tmp_path)
        check_words(text, tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("OpCapability CooperativeMatrixKHR\n", "", "requires one of these capabilities"),
        ('OpExtension "SPV_KHR_cooperative_matrix"\n', "", "requires extension"),
        ("MulAddKHR %matrix_c", "MulAddKHR %matrix_a", "does not match Object"),
        (
            "= OpTypeCooperativeMatrixKHR %f16 %u32_3",
            "= OpTypeCooperativeMatrixKHR %f16 %f16",
            "Scope",
        ),
    ],
)
def test_modules_with_wrong_matrices_are_not(old: str, new: str, told: str, tmp_path: Path) -> None:
    (text, _) = multiplying("vulkan:matrix8")
    assert old in text
    assert told in complaint(assemble(text.replace(old, new)), tmp_path)


def multiplying(spec: str) -> list[str]:
    """A product for few rows and for many, in SPIR-V's text."""
    target, texts = target_named(spec), []
    for most in (FEW, MANY):
        group = product("q4f16_1", most, (77, 96))
        func = planned(group, plan_of(group, target))[1]
        texts.append(renderer_of(target).render_kernel(func, target).text.split("\n", 1)[1])
    return texts


def test_elements_of_matrices_are_not_touched() -> None:
    """A kernel that reads or sets one, or whose unit tells where they lie, is refused."""
    target = target_named("vulkan:matrix8")
    group = product("q0f16", FEW, (77, 96))
    func = planned(group, plan_of(group, target))[1]
    text = to_text(func)
    clears, multiplies, copies = (part.start() for part in re.finditer(r"matrix\(", text))
    for at, kind, told in (
        (clears, "unroll(", "an element of .*_block is set"),
        (copies, "unroll(", "an element of .*_block is read"),
        (multiplies, "unroll(", "_block has no sums of products by a matrix unit"),
    ):
        changed = text[:at] + kind + text[at + len("matrix(") :]
        with pytest.raises(CodegenError, match=told):
            renderer_of(target).render_kernel(parse_primfunc(changed), target)
    for name, other, told in (
        ("= 0.0", "= 1.0", "a sum begins at zero"),
        (r"_kept\[\w+, ", "_kept[n_s2, ", "the copy does not lie as the unit has it"),
    ):
        changed = text[:clears] + re.sub(name, other, text[clears:], count=1)
        assert changed != text
        with pytest.raises(CodegenError, match=told):
            renderer_of(target).render_kernel(parse_primfunc(changed), target)
    with pytest.raises(CodegenError, match="tells of no matrix unit where its elements lie"):
        renderer_of(target).render_kernel(func, replace(target, unit=parse_target("cuda").unit))


def elementwise(name: str, value: Expr, to: Buffer, at: Var) -> PrimFunc:
    """A kernel that stores a value of x[i] and y[i] for each i."""
    body = For(at, wrap(64), store(to, (at,), value), ForKind.PARALLEL)
    return PrimFunc(name, (*PLACES.values(), to), (), body)


PLACES = {d: Buffer(f"x_{d}", d, (wrap(64),)) for d in (F32, I32, U32, I16, U16, I8, U8)}


@pytest.mark.parametrize("dtype", list(PLACES))
def test_every_operator(dtype: object, tmp_path: Path) -> None:
    at = Var("i", I32, 0, 63)
    x = PLACES[dtype][at]  # type: ignore[index]
    numbers = ["+", "-", "*", "min", "max"]
    whole = ["//", "%", "&", "|", "^", "<<", ">>"]
    compares = ["<", "<=", "==", "!="]
    found = x
    for op in numbers + (["/"] if dtype == F32 else whole):
        found = binary(op, found, PLACES[dtype][63 - at])  # type: ignore[index]
    for op in UNARY.keys() - {"not", "invert"} if dtype == F32 else ("neg", "invert", "abs"):
        found = Unary(op, found)
    for op in compares:
        found = select(binary(op, found, x), found, x)
    if dtype == F32:
        found = fma(found, x, Const(float("inf"), F32)) + Const(float("nan"), F32)
        for half in (F16, BF16):
            found = cast(F32, cast(half, found))
    both = binary("and", binary("<", x, found), binary("or", Const(True, BOOL), cast(BOOL, at)))
    found = select(Unary("not", both), found, x)
    to = Buffer("out", dtype, (wrap(64),))  # type: ignore[arg-type]
    target = parse_target("vulkan")
    kernel = elementwise("every", found, to, at)
    text = renderer_of(target).render_kernel(kernel, target).text
    check_valid(assemble(text.split("\n", 1)[1]), tmp_path)


def test_what_it_refuses() -> None:
    target, words = parse_target("vulkan"), parse_target("vulkan:f32")
    at = Var("i", I32, 0, 63)
    out, small = Buffer("out", I32, (wrap(64),)), Buffer("out", U8, (wrap(64),))
    wide = elementwise("wide", cast(I32, cast(I64, PLACES[I32][at])), out, at)
    with pytest.raises(CodegenError, match="do not convert i32 to i64"):
        renderer_of(target).render_kernel(wide, target)
    stores = elementwise("stores", PLACES[U8][at], small, at)
    with pytest.raises(CodegenError, match="stores u8, and memory has no such numbers there"):
        renderer_of(words).render_kernel(stores, words)
    unknown = PrimFunc("unknown", (), (), seq(store(out, (wrap(0),), 1)))
    with pytest.raises(CodegenError, match="out is used where it is not known"):
        renderer_of(target).render_kernel(unknown, target)


def test_lines_that_the_assembler_does_not_know() -> None:
    for line in ("OpNothing %a", "OpStore %a nowhere", "%a = OpImageSample %b"):
        with pytest.raises(CodegenError, match="that this assembler knows"):
            assemble(line)
    assert assemble("; a comment\n\n") == struct.pack("<5I", 0x07230203, 0x00010500, 0, 1, 0)
