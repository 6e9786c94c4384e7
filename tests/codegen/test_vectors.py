"""Which loops are one load of a vector, and what becomes of the others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sterna.base.dtype import F16, F32, U32, DType
from sterna.base.errors import CodegenError
from sterna.base.target import parse_target
from sterna.codegen.renderer import renderer_of
from sterna.codegen.vectors import vector_copy
from sterna.ir.expr import Buffer, Cast, Expr, Load, Var, wrap
from sterna.ir.loop import Alloc, For, ForKind, PrimFunc, Stmt, Store, seq
from sterna.ir.simplify import Simplifier

LANE, ROW = Var("lane", lo=0, hi=3), Var("row", lo=0, hi=7)
KINDS = frozenset({(U32, 4), (F16, 4)})


def copy_of(source: Buffer, *index: Expr, lanes: int = 4, dtype: DType | None = None) -> For:
    own = Buffer("own", dtype or source.dtype, (wrap(4),), "register")
    return For(LANE, wrap(lanes), Store(own, (LANE,), Load(source, index)), ForKind.VECTOR)


WORDS = Buffer("words", U32, (wrap(8), wrap(16)))
ODD = Buffer("odd", U32, (wrap(8), wrap(6)))
FLOATS = Buffer("floats", F32, (wrap(8), wrap(16)))
HALVES = Buffer("halves", F16, (wrap(8), wrap(16)))


@pytest.mark.parametrize(
    ("loop", "there"),
    [
        (copy_of(WORDS, ROW, LANE + 8), True),
        (copy_of(HALVES, ROW, LANE), True),
        (copy_of(ODD, ROW * 2, LANE), True),  # every other row begins with a vector
        (copy_of(ODD, ROW, LANE), False),
        (copy_of(WORDS, ROW, LANE + 2), False),
        (copy_of(WORDS, ROW, LANE * 2), False),
        (copy_of(WORDS, LANE, ROW), False),
        (copy_of(WORDS, ROW, LANE // 2), False),
        (copy_of(WORDS, ROW, LANE, lanes=2), False),
        (copy_of(FLOATS, ROW, LANE), False),  # no kind that the language has
    ],
)
def test_whole_vectors_of_neighbours(loop: For, there: bool) -> None:
    assert (vector_copy(loop, KINDS, Simplifier()) is not None) is there


def kernel(source: Buffer, first: Expr, beside: Expr | None = None) -> PrimFunc:
    """Copies four elements of a row and stores their last, and adds one that is read by itself."""
    own = Buffer("own", source.dtype, (wrap(4),), "register")
    out = Buffer("out", F32 if source is HALVES else source.dtype, (wrap(8),))
    read = For(LANE, wrap(4), Store(own, (LANE,), source[ROW, first + LANE]), ForKind.VECTOR)
    value = own[3] if beside is None else own[3] + source[ROW, beside]
    body: Stmt = Alloc(own, seq(read, Store(out, (ROW,), Cast(out.dtype, value))))
    return PrimFunc("copy", (source, out), (), For(ROW, wrap(8), body, ForKind.THREAD))


TYPED = [
    ("vulkan", "OpLoad %u32_v4 "),
    ("vulkan:f32", "OpLoad %u32_v4 "),
    ("webgpu", ": array<vec4<u32>>;"),
    ("webgpu:f16", ": array<vec4<u32>>;"),
]


@pytest.mark.parametrize(
    ("spec", "vector"),
    [
        ("cuda:source", "load_u32x4(&own[0], &words["),
        ("rocm:source", "load_u32x4(&own[0], &words["),
        ("metal", "load_u32x4(&own[0], &words["),
        ("opencl", "load_u32x4(&own[0], &words["),
        *TYPED,
    ],
)
def test_a_vector_is_one_load_where_it_can_be(spec: str, vector: str) -> None:
    target = parse_target(spec)
    render = renderer_of(target).render_kernel
    assert vector in render(kernel(WORDS, wrap(4)), target).text
    assert vector not in render(kernel(WORDS, wrap(3)), target).text


@pytest.mark.parametrize(("spec", "vector"), TYPED)
def test_where_elements_have_one_type_they_are_all_vectors_or_none(spec: str, vector: str) -> None:
    target = parse_target(spec)
    text = renderer_of(target).render_kernel(kernel(WORDS, wrap(4), beside=wrap(1)), target).text
    assert vector not in text


@pytest.mark.parametrize(("spec", "vector"), TYPED)
def test_parts_are_of_whole_vectors(spec: str, vector: str) -> None:
    target, func = parse_target(spec), kernel(WORDS, wrap(4))
    render = renderer_of(target).render_kernel
    assert render(func, replace(target, most_buffer_bytes=128)).text.count(vector) == 4
    with pytest.raises(CodegenError, match="would cut vectors of words"):
        render(func, replace(target, most_buffer_bytes=120))


@pytest.mark.parametrize(
    ("spec", "vector", "there"),
    [
        ("vulkan", "OpLoad %u16_v4 ", True),
        ("vulkan:f32", "_v4 ", False),
        ("webgpu:f16", ": array<vec4<f16>>;", True),
        ("webgpu", "vec4<", False),
    ],
)
def test_small_numbers_are_vectors_where_memory_has_them(
    spec: str, vector: str, there: bool
) -> None:
    target = parse_target(spec)
    text = renderer_of(target).render_kernel(kernel(HALVES, wrap(4)), target).text
    assert (vector in text) is there
