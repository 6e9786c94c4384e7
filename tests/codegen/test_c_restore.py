"""Products with weights that other programs packed: the operator's meaning, and its compiled C."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_library import KernelLibrary

from sterna.base.artifact import Param
from sterna.base.dtype import BF16, F16, F32, I32, DType
from sterna.base.target import host_target
from sterna.ir.compute import Group
from sterna.ir.evaluate import evaluate_group
from sterna.ir.expr import Var, wrap
from sterna.ir.graph import Function
from sterna.ir.loop import PrimFunc
from sterna.nn.trace import Trace
from sterna.passes.lower import lower
from sterna.passes.prepack import row_tile
from sterna.quantize.apply import PackedWeight
from sterna.quantize.ggml_blocks import GGML_SCHEMES
from sterna.quantize.pack import dequantize, packed_spec
from sterna.quantize.scheme import Scheme
from sterna.quantize.stored_schemes import (
    FP4,
    NF4,
    indexed_grid,
    offset_grid,
    small_float,
    table,
)
from sterna.runtime.memory import pack, packed_shape
from sterna.schedule.apply import apply
from sterna.schedule.choose import choose

ROWS, DEPTH = 70, 512

SCHEMES = {
    **{name: row for name, row in GGML_SCHEMES.items() if not row.is_plain_grid},
    "gptq act-order": indexed_grid(4, 128, F16, F16),
    "mlx": offset_grid(4, 64, F16, BF16),
    "fp8": small_float(8, 4, 128, BF16, F32),
    "nf4": table("nf4", NF4, 64, F16, F32),
    "fp4": table("fp4", FP4, 64, F16, F32),
}
CASES = {f"r{i}_{most}": (most, name) for i, name in enumerate(SCHEMES) for most in (1, 13)}
STREAMS = (1, 4)


def random_parts(scheme: Scheme, seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    parts = {}
    for name, (shape, dtype) in packed_spec((ROWS, DEPTH), scheme).items():
        if name == "q_weight":
            parts[name] = rng.integers(0, 1 << 32, shape, dtype=np.uint32)
        elif name == "q_group":
            parts[name] = rng.permutation(np.arange(shape[0]) // scheme.group).astype(np.int32)
        elif dtype.is_float:
            parts[name] = rng.uniform(0.01, 0.1, shape).astype(dtype.numpy)
        else:
            parts[name] = rng.integers(0, 60, shape).astype(dtype.numpy)
    if scheme.exponent == 4:  # what E4M3 keeps for NaN is no number
        parts["q_weight"] &= np.uint32(0xF7F7F7F7)
    return parts


def product(name: str, most: int, scheme: Scheme, streams: int) -> Group:
    """y[n, ROWS] = x[n, DEPTH] @ w.T for at most `most` rows n of x, words in `streams`."""
    trace = Trace(name)
    n = Var("n", I32, 1, most)
    x = trace.param("x", (n, wrap(DEPTH)), F32)
    weight = PackedWeight((ROWS, DEPTH), "linear", scheme)
    for part, child in weight.children():
        child.path = f"w.{part}"  # type: ignore[union-attr]
    done = trace.function(trace.emit("matmul", x, weight.read(trace)))
    func = Function(done.name, done.params, done.weights, done.bindings, done.results, True)
    tiles = {w.name: row_tile(w.dtype, streams) for w in done.weights if len(w.shape) == 2}
    return lower(func, tiles).group


def tiled(array: np.ndarray, dtype: DType, streams: int) -> np.ndarray:
    """A part of a weight as it lies in memory."""
    laid = row_tile(dtype, streams)
    param = Param("w", dtype.name, array.shape, laid.rows, laid.streams)
    out = np.zeros(packed_shape(param), array.dtype)
    pack(array, param, out)
    return out


def scheduled(group: Group) -> PrimFunc:
    return apply(group, choose(group, host_target()))


@pytest.fixture(scope="module")
def library() -> KernelLibrary:
    groups = [
        product(f"{name}_{streams}", most, SCHEMES[key], streams)
        for name, (most, key) in CASES.items()
        for streams in STREAMS
    ]
    return KernelLibrary([scheduled(group) for group in groups])


@pytest.mark.parametrize("key", SCHEMES)
def test_the_operator_means_what_restoring_gives(key: str) -> None:
    scheme = SCHEMES[key]
    trace = Trace("f")
    weight = PackedWeight((ROWS, DEPTH), "linear", scheme)
    for part, child in weight.children():
        child.path = f"w.{part}"  # type: ignore[union-attr]
    out = trace.emit("cast", weight.read(trace), dtype="f32")
    done = trace.function(out)
    group = lower(Function("f", (), done.weights, done.bindings, done.results, True), {}).group
    parts = random_parts(scheme)
    found = evaluate_group(group, dict(zip((b.name for b in group.inputs), parts.values())), {})
    wanted = dequantize(parts, scheme, (ROWS, DEPTH))
    np.testing.assert_array_equal(found[group.outputs[0].name], wanted)
    assert np.abs(wanted).max() > 0


@pytest.mark.parametrize("name", CASES)
def test_compiled_products(library: KernelLibrary, name: str) -> None:
    most, key = CASES[name]
    scheme, n = SCHEMES[key], min(most, 13)
    parts = random_parts(scheme)
    x = np.random.default_rng(2).normal(0, 1, (n, DEPTH)).astype(np.float32)
    weight = dequantize(parts, scheme, (ROWS, DEPTH)).astype(np.float64)
    exact = x.astype(np.float64) @ weight.T
    spec, outs = packed_spec((ROWS, DEPTH), scheme), []
    for streams in STREAMS:
        func = library.funcs[f"{name}_{streams}"]
        out = np.full((n, ROWS), np.nan, np.float32)
        given = (tiled(part, spec[k][1], streams) for k, part in parts.items())
        library.run(
            func.name, dict(zip(func.params, (x, *given, out), strict=True)), {func.dims[0]: n}
        )
        assert np.abs(out - exact).max() < 1e-6 * (np.abs(x) @ np.abs(weight).T).max()
        outs.append(out.view(np.uint32))
    assert np.array_equal(*outs)
