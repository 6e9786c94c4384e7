"""The product of low rank that adapters add: as its formula says, and nothing to rows without."""

from __future__ import annotations

import numpy as np
import pytest

from sterna.base.dtype import F16, F32, I32
from sterna.base.errors import InvalidIR
from sterna.ir.evaluate import evaluate_compute
from sterna.ir.expr import Buffer, wrap
from sterna.ir.graph import TensorType
from sterna.ops import op

OP = op("add_low_rank")
ROWS, COUNT = 5, 3
IDS = np.array([-1, 2, 0, 2, -1], np.int32)


def kinds(depth: int, width: int, rank: int) -> dict[str, TensorType]:
    def kind(dtype, *shape):
        return TensorType(tuple(map(wrap, shape)), dtype)

    return {
        "base": kind(F32, ROWS, width),
        "x": kind(F32, ROWS, depth),
        "ids": kind(I32, ROWS),
        "a": kind(F16, COUNT * rank, depth),
        "b": kind(F16, COUNT * rank, width),
    }


def run(arrays: dict[str, np.ndarray], types: dict[str, TensorType], rank: int) -> np.ndarray:
    buffers = {name: Buffer(name, t.dtype, t.shape) for name, t in types.items()}
    known = {buffers[name]: array for name, array in arrays.items()}
    attrs = {"rank": rank}
    out = OP.infer(tuple(types.values()), attrs)
    for compute in OP.compute("y", tuple(buffers.values()), out, attrs):
        known[compute.out] = evaluate_compute(compute, known, {})
    return known[compute.out]


@pytest.mark.parametrize(("depth", "width", "rank"), [(32, 48, 4), (7, 5, 3), (16, 1, 1)])
def test_the_formula(depth: int, width: int, rank: int) -> None:
    rng = np.random.default_rng(depth)
    types = kinds(depth, width, rank)
    arrays = {
        name: rng.standard_normal([int(d.value) for d in t.shape]).astype(t.dtype.numpy)
        for name, t in types.items()
    } | {"ids": IDS}
    found = run(arrays, types, rank)
    a, b = (arrays[n].astype(np.float64).reshape(COUNT, rank, -1) for n in "ab")
    for row, adapter in enumerate(IDS):
        own = arrays["base"][row]
        if adapter < 0:
            assert found[row].tobytes() == own.tobytes()
        else:
            wanted = own + (arrays["x"][row] @ a[adapter].T) @ b[adapter]
            np.testing.assert_allclose(found[row], wanted, atol=1e-4)


def test_what_does_not_fit_is_refused() -> None:
    types = kinds(8, 8, 4)
    for name, other in [("a", kinds(9, 8, 4)["a"]), ("b", kinds(8, 9, 4)["b"])]:
        with pytest.raises(InvalidIR):
            OP.infer(tuple({**types, name: other}.values()), {"rank": 4})
    with pytest.raises(InvalidIR):
        OP.infer(tuple(types.values()), {"rank": 5})
