"""Where each access is dear: four neighbours are one, if all four are wanted and are there."""

from __future__ import annotations

import re

import pytest

from sterna.base.dtype import F16, F32, I32, DType
from sterna.base.target import parse_target
from sterna.codegen.renderer import renderer_of
from sterna.ir.expr import Buffer, Cast, Expr, Var, wrap
from sterna.ir.loop import For, ForKind, PrimFunc, store

TARGET = parse_target("webgpu:barrier-free")
N = Var("n", I32, 1)
AT = Var("i", I32, 0)


def rendered(width: int, columns: list[int | Expr], *, stores: bool = False) -> str:
    """The text of y[i] = the sum of these columns of x[i]."""
    x, y = Buffer("x", F32, (N, wrap(width))), Buffer("y", F32, (N, wrap(width)))
    total: Expr = wrap(0.0)
    for column in columns:
        total = total + x[AT, column]
    body = For(AT, N, store(x if stores else y, (AT, 0), total), ForKind.PARALLEL)
    func = PrimFunc("f", (x, y), (N,), body)
    return renderer_of(TARGET).render_kernel(func, TARGET).text


def test_four_neighbours_are_one_access() -> None:
    text = rendered(8, [4, 5, 6, 7, 0])
    assert "x: array<vec4<f32>>" in text
    assert len(re.findall(r"= x\[", text)) == 2
    assert "y: array<f32>" in text


@pytest.mark.parametrize(
    ("width", "columns"),
    [(7, [0, 1, 2, 3]), (8, [0, 1, 2]), (8, [0, 1, 2, AT % 8])],
    ids=["rows that end within four", "one is not wanted", "one is somewhere"],
)
def test_others_are_read_one_by_one(width: int, columns: list[int | Expr]) -> None:
    assert "x: array<f32>" in rendered(width, columns)


def test_what_is_stored_to_is_no_array_of_fours() -> None:
    assert "x: array<f32>" in rendered(8, [0, 1, 2, 3], stores=True)


@pytest.mark.parametrize(("dtype", "kind"), [(F32, "vec4<f32>, 6"), (F16, "u32, 12")])
def test_an_array_of_known_length_says_it(dtype: DType, kind: str) -> None:
    w, y = Buffer("w", dtype, (wrap(3), wrap(8))), Buffer("y", F32, (N, wrap(1)))
    total: Expr = wrap(0.0)
    for column in range(4):
        total = total + Cast(F32, w[0, column])
    func = PrimFunc("f", (w, y), (N,), For(AT, N, store(y, (AT, 0), total), ForKind.PARALLEL))
    text = renderer_of(TARGET).render_kernel(func, TARGET).text
    assert f"w: array<{kind}>" in text
    assert "y: array<f32>" in text, "how many rows there are is not known"


@pytest.mark.parametrize("many", [5, 0, N], ids=str)
def test_a_loop_asks_behind_a_turn_whether_there_is_another(many: int | Expr) -> None:
    """Or its body would run once more for nobody. One that may have no turn is asked before."""
    x, k = Buffer("x", F32, (wrap(64), wrap(64))), Var("k", I32, 0)
    turns = For(k, wrap(many), store(x, (AT, k), wrap(1.0)))
    func = PrimFunc("f", (x,), (N,), For(AT, wrap(64), turns, ForKind.PARALLEL))
    text = renderer_of(TARGET).render_kernel(func, TARGET).text
    assert "for (" not in text
    if many == 0:
        assert "loop" not in text
        return
    assert f"continuing {{ k++; break if !(k < {'n' if many is N else many}); }}" in text
    assert ("if (0 < n) { var k" in text) is (many is N)
