"""Products with packed weights, from operators to compiled C, and how long rendering one takes."""

from __future__ import annotations

import time

import numpy as np
import pytest
from kernel_library import KernelLibrary

from sterna.base.dtype import F16, F32, U32
from sterna.base.target import host_target
from sterna.codegen.c import render
from sterna.ir.compute import Group
from sterna.ir.evaluate import evaluate_group
from sterna.ir.expr import Var, wrap
from sterna.ir.graph import Binding, Function, TensorType, Value, call
from sterna.ir.loop import PrimFunc
from sterna.passes.lower import lower
from sterna.passes.prepack import RowTile
from sterna.schedule.apply import apply
from sterna.schedule.choose import choose

TILE = 64


def packed_product(name: str, most: int, rows: int, depth: int, bits: int) -> Group:
    """y[n, rows] = x[n, depth] @ w.T for at most `most` rows n of x, w packed by 32."""
    n = Var("n", lo=1, hi=most)
    packing = "stream" if 32 % bits else "word"
    codes = Value("w.q_weight", TensorType((wrap(rows), wrap(depth * bits // 32)), U32))
    scales = Value("w.q_scale", TensorType((wrap(rows), wrap(depth // 32)), F16))
    x = Value("x", TensorType((n, wrap(depth)), F32))
    w, y = (Value("w", TensorType((wrap(rows), wrap(depth)), F32)),
            Value("y", TensorType((n, wrap(rows)), F32)))  # fmt: skip
    attrs = {"rows": rows, "depth": depth, "bits": bits, "group": 32, "layout": "NK"}
    bias = float((1 << (bits - 1)) - 1)
    unpack = Binding((w,), call("dequantize", codes, scales, **attrs, packing=packing, bias=bias))
    product = Binding((y,), call("matmul", x, w))
    func = Function(name, (x,), (codes, scales), (unpack, product), (y,), primitive=True)
    return lower(func, dict.fromkeys((codes.name, scales.name), RowTile(TILE))).group


def scheduled(group: Group) -> PrimFunc:
    return apply(group, choose(group, host_target()))


CASES = {
    f"p{bits}_{most}_{rows}": (most, rows, 96, bits)
    for bits, most, rows in ((4, 1, 128), (4, 64, 200), (3, 1, 200), (3, 64, 64), (8, 4, 70))
}


@pytest.fixture(scope="module")
def library() -> KernelLibrary:
    return KernelLibrary([scheduled(packed_product(name, *case)) for name, case in CASES.items()])


@pytest.mark.parametrize("name", CASES)
def test_products_with_packed_weights(library: KernelLibrary, name: str) -> None:
    most, rows, depth, _ = CASES[name]
    group, n = packed_product(name, *CASES[name]), min(most, 13)
    rng = np.random.default_rng(1)
    x = rng.normal(0, 1, (n, depth)).astype(np.float32)
    tiles = -(-rows // TILE)
    shapes = [(tiles, int(b.shape[1].value), TILE) for b in group.inputs[1:]]  # type: ignore[attr-defined]
    codes = rng.integers(0, 1 << 32, shapes[0], dtype=np.uint32)
    scales = rng.uniform(0.01, 0.1, shapes[1]).astype(np.float16)
    given = dict(zip((b.name for b in group.inputs), (x, codes, scales), strict=True))
    (dim,), (theirs, _) = library.funcs[name].dims, group.inputs[0].shape

    exact = evaluate_group(group, given, {theirs: n})[group.outputs[0].name]
    out = np.full((n, rows), np.nan, np.float32)
    params = library.funcs[name].params
    library.run(name, dict(zip(params, (*given.values(), out), strict=True)), {dim: n})
    assert np.abs(out - exact).max() < 1e-5 * np.abs(exact).max() * depth**0.5


def test_rendering_is_quick() -> None:
    """A 4096 x 4096 product takes less than 50 ms; the bound leaves room for slow machines."""
    func = scheduled(packed_product("big", 1, 4096, 4096, 4))
    times = []
    for _ in range(3):
        start = time.process_time()
        render(func)
        times.append(time.process_time() - start)
    assert min(times) < 0.2
