"""Values that neighbours hand to each other in registers: the same bits, and fewer barriers."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simt"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "device"))

from folding_kernel import ROWS, SLOTS, THREAD, away, folding
from run_kernel import RunningKernels
from simt_device import SimtDevice

from sterna.base.dtype import F32, I32
from sterna.base.target import parse_target
from sterna.codegen.renderer import RenderedKernel, renderer_of
from sterna.codegen.simt import GroupKernel, group_kernel
from sterna.ir.expr import Binary, Buffer, Var, wrap
from sterna.ir.interpret import evaluate_primfunc
from sterna.ir.loop import Alloc, For, PrimFunc, Stmt, Sync, seq, store
from sterna.ir.rewrite import visit
from sterna.kernels.build import loop, parallel


def kernel_of(func: PrimFunc, lanes: int) -> GroupKernel:
    return group_kernel(func.body, lanes=lanes)


def barriers(kernel: GroupKernel) -> int:
    return sum(isinstance(n, Sync) for n in visit(kernel.body))


@pytest.mark.parametrize(
    ("lanes", "shared"), [(0, 4), (1, 4), (2, 3), (4, 2), (8, 1), (16, 0), (64, 0)]
)
def test_what_is_within_reach_is_no_longer_shared(lanes: int, shared: int) -> None:
    kernel = kernel_of(folding("f"), lanes)
    assert len(kernel.shared) == shared
    assert barriers(kernel) == shared
    far = [e.distance for found in kernel.exchanges.values() for e in found]
    assert sorted(far) == [1, 2, 4, 8][: 4 - shared]


def test_the_bits_are_those_of_the_loop_program_with_lanes_or_without() -> None:
    given = np.random.default_rng(0).standard_normal((3, ROWS, SLOTS)).astype(np.float32)
    expected = np.zeros_like(given)
    evaluate_primfunc(folding("meant"), {"x": given, "out": expected}, {})
    target = parse_target("cuda:source")
    kernels = {}
    for lanes in (0, 4, 32):
        func = folding(f"with_{lanes}")
        row = replace(target, subgroup=lanes)
        kernels[func.name] = RenderedKernel(func, renderer_of(row).render_kernel(func, row))
    assert [k.rendered.launches[0].lanes for k in kernels.values()] == [0, 4, 16]
    running = RunningKernels(kernels, target, SimtDevice())
    for name in kernels:
        got = running.run(name, {"x": given, "out": np.zeros_like(expected)}, {})
        assert np.array_equal(got["out"].view(np.uint32), expected.view(np.uint32)), name


A = Buffer("a", F32, (wrap(SLOTS),), "shared")
B = Buffer("b", F32, (wrap(SLOTS),), "register")
FLAT = Buffer("y", F32, (wrap(64),))


def of_one(second: Stmt, *more: Stmt) -> GroupKernel:
    """A kernel that fills A by 16 threads and then does `second`."""
    fill = loop("t", SLOTS, lambda t: store(A, t, FLAT[t]), THREAD)
    body = Alloc(A, Alloc(B, seq(fill, second, *more)))
    return group_kernel(parallel("g", 4, lambda g: body), lanes=32)


def test_what_is_no_single_bit_away_stays_shared() -> None:
    for there in (lambda t: away(t, 3), lambda t: 15 - t, lambda t: Binary("|", t, wrap(1))):
        read = loop("t", SLOTS, lambda t, at=there: store(FLAT, t, A[at(t)]), THREAD)  # type: ignore[misc]
        assert A in of_one(read).shared


def test_what_a_loop_reads_and_stores_stays_shared() -> None:
    both = loop("t", SLOTS, lambda t: store(A, t, A[away(t, 1)] + 1.0), THREAD)
    assert A in of_one(both).shared


def test_other_threads_for_the_same_elements_keep_it_shared() -> None:
    half = loop("t", 8, lambda t: store(FLAT, t, A[away(t, 1)]), THREAD)
    assert A in of_one(half).shared


def test_what_the_group_reads_itself_stays_shared() -> None:
    read = loop("t", SLOTS, lambda t: store(B, t, A[away(t, 1)]), THREAD)
    alone = loop("i", SLOTS, lambda i: store(FLAT, i, A[i]))
    assert A in of_one(read, alone).shared


def test_an_index_that_only_the_turn_knows_stays_shared() -> None:
    wide = Buffer("wide", F32, (wrap(4), wrap(SLOTS)), "shared")
    t = Var("t", I32, 0, SLOTS - 1)
    fill = For(t, wrap(SLOTS), loop("i", 4, lambda i: store(wide, (i, t), FLAT[i])), THREAD)
    u = Var("u", I32, 0, SLOTS - 1)
    turns = loop("i", 4, lambda i: store(FLAT, i * SLOTS + u, wide[i, away(u, 1)]))
    body = Alloc(wide, seq(fill, For(u, wrap(SLOTS), turns, THREAD)))
    kernel = group_kernel(parallel("g", 4, lambda g: body), lanes=32)
    assert kernel.shared == (wide,)
    assert not kernel.exchanges
