"""What four threads side by side read alike is looked up once and handed on; nothing else is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sterna.base.dtype import F32, I32
from sterna.base.target import parse_target
from sterna.codegen.quads import QUAD
from sterna.codegen.renderer import renderer_of
from sterna.codegen.wgsl import HANDS_ON
from sterna.ir.expr import Buffer, Expr, Var, wrap
from sterna.ir.loop import Alloc, For, ForKind, If, Let, PrimFunc, Stmt, seq, store

TARGET = parse_target("webgpu:barrier-free-subgroups")
N = Var("n", I32, 1)
ITEM, TURN = Var("i", I32, 0), Var("k", I32, 0)
X, Y = Buffer("x", F32, (wrap(64), wrap(8))), Buffer("y", F32, (wrap(64),))
ENDS = Buffer("ends", I32, (wrap(64),))


def summed(row: Expr) -> Stmt:
    """y[i] = the sum of four neighbours in a row of x."""
    total: Expr = wrap(0.0)
    for column in range(4):
        total = total + X[row, column]
    return store(Y, (ITEM,), total)


def handed_on(body: Stmt, items: Expr | int) -> bool:
    """Whether the kernel hands on what it reads of x; what it counts on is told then."""
    loop = For(ITEM, wrap(items), body, ForKind.PARALLEL)
    func = PrimFunc("f", (X, ENDS, Y), (N,), loop)
    source = renderer_of(TARGET).render_kernel(func, TARGET)
    hands = HANDS_ON in source.text
    assert source.launches[0].lanes == (QUAD if hands else 0)
    assert ("x: array<f32, 512>" if hands else "x: array<vec4<f32>, 128>") in source.text
    return hands


def in_turns(end: Expr | int) -> Stmt:
    return For(TURN, wrap(end), summed(TURN))


def of_a_let(value: Expr) -> Stmt:
    row = Var("row", I32, 0)
    return Let(row, value, summed(row))


@pytest.mark.parametrize(
    "body",
    [
        lambda: summed(wrap(3)),
        lambda: in_turns(5),
        lambda: in_turns(N),
        lambda: in_turns(ENDS[0]),
        lambda: If(wrap(2) < N, summed(wrap(1))),
        lambda: If(ITEM < 8, summed(wrap(1))),
        lambda: of_a_let(ENDS[1]),
    ],
    ids=["one row", "turns", "as many as there are", "as one number says", "if there are", "quads",
         "a row that one number says"],
)  # fmt: skip
def test_what_a_quad_reads_alike_is_handed_on(body: Callable[[], Stmt]) -> None:
    assert handed_on(body(), 24)


@pytest.mark.parametrize(
    "body",
    [
        lambda: summed(ITEM),
        lambda: summed(ITEM // 4),
        lambda: of_a_let(ITEM + 1),
        lambda: of_a_let(ENDS[ITEM]),
        lambda: in_turns(ITEM),
        lambda: in_turns(ENDS[ITEM]),
        lambda: If(ITEM < 9, summed(wrap(1))),
        lambda: If(ITEM < N, summed(wrap(1))),
        lambda: If(wrap(3) < ITEM, summed(wrap(1))),
        lambda: seq(summed(wrap(1)), If(ITEM < 2, summed(wrap(1)))),
        lambda: If(Y[ITEM] < 1.0, summed(wrap(1))),
    ],
    ids=["rows of their own", "one row for four, which is not looked for", "the next row",
         "a row that each looks up", "as often as a number tells", "as each looks up",
         "a part of a quad", "an end that is not known", "above", "one of two loads", "by its own"],
)  # fmt: skip
def test_what_may_differ_is_looked_up_by_each(body: Callable[[], Stmt]) -> None:
    assert not handed_on(body(), 24)


@pytest.mark.parametrize("items", [1, 22, N])
def test_quads_that_may_lack_a_thread_hand_nothing_on(items: Expr | int) -> None:
    assert not handed_on(summed(wrap(3)), items)


def test_what_is_kept_may_differ() -> None:
    """A branch by what a thread has in registers."""
    own = Buffer("own", F32, (wrap(1),), "register")
    body = seq(store(own, (0,), wrap(1.0)), If(own[0] < 2.0, summed(wrap(1))))
    assert not handed_on(Alloc(own, body), 24)
