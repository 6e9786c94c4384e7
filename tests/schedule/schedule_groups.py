"""Groups to schedule, made as the compiler makes them, and arrays to run them on."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.base.dtype import F32, I32, DType
from sterna.ir.compute import Group
from sterna.ir.expr import Var
from sterna.nn.trace import Tensor, Trace
from sterna.passes.lower import lower
from sterna.quantize.pack import packed_spec, quantize
from sterna.quantize.scheme import Scheme

TILE = 64
Array = NDArray[Any]


def rows(most: int) -> Var:
    return Var("n", I32, 1, most)


def weight(trace: Trace, shape: tuple[int, int], scheme: Scheme) -> Tensor:
    parts = [trace.weight(f"layer.{k}", s, d) for k, (s, d) in packed_spec(shape, scheme).items()]
    if not scheme.is_quantized:
        return parts[0]
    return trace.emit(
        "dequantize", *parts, bits=scheme.bits, group=scheme.group, bias=scheme.bias,
        layout=scheme.layout, packing=scheme.packing, rows=shape[0], depth=shape[1],
    )  # fmt: skip


def product_group(
    name: str, shape: tuple[int, int], scheme: Scheme, most_rows: int, *, epilogue: bool = True
) -> Group:
    """t[n, N] = x[n, K] @ weight.T, plus r[n, N] where there is an epilogue."""
    trace, n = Trace(name), rows(most_rows)
    x = trace.param("x", (n, shape[1]), F32)
    y = trace.emit("matmul", x, weight(trace, shape, scheme))
    if epilogue:
        y = trace.param("r", (n, shape[0]), F32) + y
    tiles = dict.fromkeys(trace.weights, TILE) if scheme.layout == "NK" else {}
    return lower(trace.function(y), tiles).group


def product_arrays(shape: tuple[int, int], scheme: Scheme, most_rows: int) -> dict[str, Array]:
    rng = np.random.default_rng(shape[0] * 1000 + shape[1])
    full = rng.standard_normal(shape).astype(np.float32)
    packed = quantize(full, scheme)
    arrays = {k: tiled(a) if scheme.layout == "NK" else a for k, a in packed.items()}
    return {
        **{f"layer_{k}": a for k, a in arrays.items()},
        "x": rng.standard_normal((most_rows, shape[1])).astype(np.float32),
        "r": rng.standard_normal((most_rows, shape[0])).astype(np.float32),
    }


def tiled(array: Array) -> Array:
    """[N, W] -> [ceil(N / 64), W, 64]."""
    blocks = -(-array.shape[0] // TILE)
    padded = np.zeros((blocks * TILE, array.shape[1]), array.dtype)
    padded[: array.shape[0]] = array
    return np.ascontiguousarray(padded.reshape(blocks, TILE, -1).transpose(0, 2, 1))


def norm_group(name: str, width: int, most_rows: int, *, residual: bool) -> Group:
    """rms_norm of x, or of the sum x + r, which is then an output too."""
    trace, n = Trace(name), rows(most_rows)
    x = trace.param("x", (n, width), F32)
    if residual:
        x = x + trace.param("r", (n, width), F32)
    y = trace.emit("rms_norm", x, trace.weight("layer.w", (width,), F32), eps=1e-5)
    results = (x, y) if residual else (y,)
    return lower(trace.function(*results), {}).group


def take_group(name: str, shape: tuple[int, int], scheme: Scheme, most_rows: int) -> Group:
    """Rows of a packed table, as an embedding reads them."""
    trace, n = Trace(name), rows(most_rows)
    table = weight(trace, shape, scheme)
    taken = trace.emit("take", table, trace.param("ids", (n,), I32)).cast(F32)
    return lower(trace.function(taken), {}).group


def gated_group(name: str, shape: tuple[object, ...], dtype: DType = F32) -> Group:
    """silu(a) * b."""
    trace = Trace(name)
    a, b = trace.param("a", shape, dtype), trace.param("b", shape, dtype)
    return lower(trace.function(trace.emit("silu", a) * b), {}).group
