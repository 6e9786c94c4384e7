"""What loops a matrix unit does; whatever else is said to be for it is refused, not guessed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from sterna.base.dtype import F16, F32, I32
from sterna.base.errors import CodegenError
from sterna.base.target import Target, parse_target
from sterna.codegen.cuda import Cuda
from sterna.codegen.fragments import has_matrix
from sterna.codegen.renderer import renderer_of
from sterna.codegen.simt import group_kernel
from sterna.ir.expr import Buffer, Expr, Var, cast, fma, wrap
from sterna.ir.loop import Alloc, ForKind, PrimFunc, Stmt, seq, store
from sterna.ir.parser import parse_primfunc
from sterna.ir.printer import to_text
from sterna.kernels.build import loop, parallel

THREAD, MATRIX, SERIAL = ForKind.THREAD, ForKind.MATRIX, ForKind.SERIAL
CUDA = parse_target("cuda:sm_80")
OUT = Buffer("out", F32, (wrap(16), wrap(8)))
A, B = (Buffer(n, F16, (wrap(s), wrap(24)), "shared") for n, s in (("a", 16), ("b", 8)))
C = Buffer("c", F32, (wrap(16), wrap(8)), "register")
Leaf = Callable[[Expr, Expr, Expr], Stmt]


def product(m: Expr, n: Expr, k: Expr, a: Buffer = A, b: Buffer = B) -> Stmt:
    """c[m, n] += a[m, k] * b[n, k]."""
    return store(C, (m, n), fma(cast(F32, a[m, k]), cast(F32, b[n, k]), C[m, n]))


def kernel(
    leaf: Leaf = product, *, rows: int = 8, columns: int = 4, depth: int = 16,
    far: int = 8, spread: int = 2, a: Buffer = A,
) -> PrimFunc:  # fmt: skip
    """A kernel of one subgroup whose threads keep four elements of c, as mma.m16n8k16 has them."""

    def tile(row: Expr, column: Expr) -> Stmt:
        def own(s1: Expr, s0: Expr) -> Stmt:
            m, n = s1 * far + row, column * spread + s0
            return loop("k", depth, lambda k: leaf(m, n, k))

        return loop("s1", 2, lambda s1: loop("s0", 2, lambda s0: own(s1, s0)), MATRIX)

    def each(body: Callable[[Expr, Expr], Stmt]) -> Stmt:
        return loop("l4", rows, lambda r: loop("l1", columns, lambda c: body(r, c), THREAD), THREAD)

    one = wrap(1.0) if a.dtype == F32 else cast(F16, wrap(1.0))
    half = cast(F16, wrap(1.0))
    fill = loop("t", 8, lambda t: seq(store(a, (t, 0), one), store(B, (t, 0), half)), THREAD)
    keep = each(lambda r, c: store(OUT, (r, c * 2), C[r, c * 2]))
    body: Stmt = seq(fill, each(tile), keep)
    for buffer in (C, B, a):
        body = Alloc(buffer, body)
    return PrimFunc("tile", (OUT,), (), parallel("g", 1, lambda g: body))


def rendered(func: PrimFunc, target: Target = CUDA) -> str:
    return renderer_of(target).render_kernel(func, target).text


def test_the_units_own_product() -> None:
    func = kernel()
    assert has_matrix(func.body)
    text = rendered(func)
    assert "multiply_16x8x16(c[0], c[1], c[2], c[3], &a_[0], 24, &b[0], 24);" in text
    assert "in matrix(2):" in to_text(func)
    assert to_text(parse_primfunc(to_text(func))) == to_text(func)


def plus(m: Expr, n: Expr, k: Expr) -> Stmt:
    return store(C, (m, n), cast(F32, A[m, k]) + C[m, n])


def turned(m: Expr, n: Expr, k: Expr) -> Stmt:
    return store(C, (m, n), fma(cast(F32, A[m, k]), cast(F32, B[k // 2, n]), C[m, n]))


def elsewhere(m: Expr, n: Expr, k: Expr) -> Stmt:
    return store(C, (m, n), fma(cast(F32, A[m, k]), cast(F32, B[n, k]), C[m, 0]))


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"leaf": plus}, "not c \\+= a \\* b"),
        ({"leaf": elsewhere}, "not c \\+= a \\* b"),
        ({"leaf": turned}, "b does not lie as the unit has it"),
        ({"depth": 8}, "sums of 16 products"),
        ({"far": 4}, "does not lie as the unit has it"),
        ({"spread": 1}, "does not lie as the unit has it"),
        ({"rows": 4, "columns": 8}, "threads keep other elements|not lie as the unit"),
        ({"rows": 2}, "whole subgroups|32 threads are a subgroup"),
    ],
)
def test_other_loops_are_refused(wrong: dict[str, object], why: str) -> None:
    with pytest.raises(CodegenError, match=why):
        rendered(kernel(**wrong))  # type: ignore[arg-type]


def test_a_target_without_a_unit_has_no_such_loops() -> None:
    for target in (replace(CUDA, unit=None), parse_target("opencl"), parse_target("vulkan")):
        with pytest.raises(CodegenError, match="a matrix unit that the target has"):
            rendered(kernel(), target)


def test_the_layout_of_another_unit_is_refused() -> None:
    other = replace(CUDA, unit=parse_target("rocm:gfx1100").unit)
    with pytest.raises(CodegenError, match="no product of the target's matrix unit"):
        rendered(kernel(), other)


def test_operands_in_floats_are_refused() -> None:
    own = Buffer("a", F32, A.shape, "shared")

    def floats(m: Expr, n: Expr, k: Expr) -> Stmt:
        return store(C, (m, n), fma(own[m, k], own[n, k], C[m, n]))

    with pytest.raises(CodegenError, match="of a and b in 16 bits that the group shares"):
        rendered(kernel(floats, a=own))


@pytest.mark.parametrize(("lo", "hi"), [(0, 255), (-128, 127), (-1024, -1), (0, 1023)])
def test_small_whole_numbers_become_halves_by_one_subtraction(lo: int, hi: int) -> None:
    """To the bit what two conversions give; the arithmetic of f16_from_whole in numpy."""
    x = Var("x", I32, lo, hi)
    style = Cuda(group_kernel(store(OUT, (0, 0), 0.0)), names={x: "x"})
    text = style.text(cast(F16, cast(F32, x)))
    found = re.fullmatch(r"f16_from_whole\((.*), (\d+)\)", text)
    assert found, text
    whole = np.arange(lo, hi + 1)
    above = np.uint16(0x6400) | (whole - lo).astype(np.uint16)
    made = above.view(np.float16) - np.uint16(int(found[2])).view(np.float16)
    assert np.array_equal(made.view(np.uint16), whole.astype(np.float16).view(np.uint16))
    assert found[1] == ("x" if lo == 0 else f"(x + {-lo})")


def test_larger_whole_numbers_are_converted() -> None:
    x = Var("x", I32, 0, 1024)
    style = Cuda(group_kernel(store(OUT, (0, 0), 0.0)), names={x: "x"})
    assert style.text(cast(F16, cast(F32, x))) == "f16_from_f32(((f32)x))"
