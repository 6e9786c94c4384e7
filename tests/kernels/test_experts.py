"""Experts one after another give the bits of each product by itself, whoever chose what."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_library import Array, KernelLibrary

from sterna.base.dtype import F16, F32, I32
from sterna.base.target import host_target
from sterna.ir.compute import Group
from sterna.ir.expr import Buffer, Var, wrap
from sterna.ir.graph import TensorType
from sterna.ir.loop import PrimFunc
from sterna.kernels.experts import ExpertSpec, grouped_experts
from sterna.ops import op
from sterna.schedule.apply import apply
from sterna.schedule.choose import choose

EXPERTS, SLOTS = 5, 2
N = Var("n", I32, 1, 64)
# (depth, size of an expert, whether each slot has an input of its own, whether there is a bias)
CASES = [(64, 24, False, True), (48, 20, True, False), (40, 7, False, False)]
CHOICES = {
    "one token": [[3, 1]],
    "all alike": [[2, 4]] * 7,
    "one that nobody chose": [[0, 1], [3, 0], [1, 3], [4, 1], [0, 4]],
    "many": [[(3 * i) % 5, (3 * i + 1 + i % 3) % 5] for i in range(41)],
}


def buffers(case: tuple[int, int, bool, bool]) -> tuple[list[Buffer], Buffer]:
    depth, size, apart, bias = case
    rows = wrap(EXPERTS * size)
    given = [
        Buffer("x", F32, (N, wrap(depth * SLOTS if apart else depth))),
        Buffer("index", I32, (N, wrap(SLOTS))),
        Buffer("weight", F16, (rows, wrap(depth))),
        *([Buffer("bias", F16, (rows,))] if bias else []),
    ]
    return given, Buffer("out", F32, (N, wrap(SLOTS * size)))


def alone(name: str, case: tuple[int, int, bool, bool]) -> PrimFunc:
    """The operator's own rule, each product by itself."""
    given, out = buffers(case)
    rule = op("expert_matmul").compute
    assert rule is not None
    types = (TensorType(out.shape, out.dtype),)
    computes = rule("out", tuple(given), types, {"experts": EXPERTS})
    group = Group(name, tuple(given), (computes[-1].out,), computes)
    return apply(group, choose(group, host_target()))


def grouped(name: str, case: tuple[int, int, bool, bool]) -> PrimFunc:
    given, out = buffers(case)
    spec = ExpertSpec(EXPERTS, *given[:3], given[3] if case[3] else None, out)
    order, starts = Buffer("order", I32, (spec.pairs,)), Buffer("starts", I32, (wrap(5), wrap(2)))
    return grouped_experts(name, spec, (N,), order, starts)


@pytest.fixture(scope="module")
def library() -> KernelLibrary:
    both = [(alone(f"alone_{i}", c), grouped(f"grouped_{i}", c)) for i, c in enumerate(CASES)]
    return KernelLibrary([func for pair in both for func in pair])


def run(
    library: KernelLibrary, name: str, index: Array, case: tuple[int, int, bool, bool]
) -> Array:
    rng, arrays = np.random.default_rng(2), {}
    for p in library.funcs[name].params:
        shape = tuple(len(index) * SLOTS if p.name == "order" else
                      len(index) if d is N else int(d.value) for d in p.shape)  # type: ignore[attr-defined]  # fmt: skip
        drawn = rng.standard_normal(shape) if p.dtype.is_float else np.zeros(shape)
        arrays[p] = drawn.astype(p.dtype.numpy)
    by_name = {p.name: array for p, array in arrays.items()}
    by_name["index"][...] = index
    by_name["out"][...] = np.nan
    library.run(name, arrays, {N: len(index)})
    return by_name["out"]


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("which", range(len(CASES)))
def test_the_same_bits(library: KernelLibrary, which: int, choice: str) -> None:
    index = np.array(CHOICES[choice], np.int32)
    wanted = run(library, f"alone_{which}", index, CASES[which])
    found = run(library, f"grouped_{which}", index, CASES[which])
    assert np.isfinite(wanted).all()
    assert found.tobytes() == wanted.tobytes()
