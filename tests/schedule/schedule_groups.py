"""Groups to schedule, made as the compiler makes them, and arrays to run them on."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.base.artifact import Param
from sterna.base.dtype import F32, I32, U32, DType
from sterna.ir.compute import Group
from sterna.ir.expr import Var
from sterna.nn.trace import Tensor, Trace
from sterna.passes.lower import lower
from sterna.passes.prepack import RowTile
from sterna.quantize.pack import packed_spec, quantize
from sterna.quantize.scheme import Scheme
from sterna.runtime.memory import pack, packed_shape

TILE = 64
TILES = RowTile(TILE)
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


def layout(dtype: DType, scheme: Scheme, tile: RowTile) -> RowTile:
    """How a part of a weight lies in memory: as it is, or in the tile; words alone in streams."""
    if scheme.layout == "KN":
        return RowTile(0)
    return tile if dtype == U32 else RowTile(tile.rows)


def layouts(trace: Trace, scheme: Scheme, tile: RowTile = TILES) -> dict[str, RowTile]:
    """The layout of each weight that has one, by its name."""
    found = {name: layout(w.dtype, scheme, tile) for name, w in trace.weights.items()}
    return {name: one for name, one in found.items() if one.rows}


def product_group(
    name: str,
    shape: tuple[int, int],
    scheme: Scheme,
    most_rows: int,
    *,
    epilogue: bool = True,
    tile: RowTile = TILES,
) -> Group:
    """t[n, N] = x[n, K] @ weight.T, plus r[n, N] where there is an epilogue."""
    trace, n = Trace(name), rows(most_rows)
    x = trace.param("x", (n, shape[1]), F32)
    y = trace.emit("matmul", x, weight(trace, shape, scheme))
    if epilogue:
        y = trace.param("r", (n, shape[0]), F32) + y
    return lower(trace.function(y), layouts(trace, scheme, tile)).group


def product_arrays(
    shape: tuple[int, int], scheme: Scheme, most_rows: int, tile: RowTile = TILES
) -> dict[str, Array]:
    rng = np.random.default_rng(shape[0] * 1000 + shape[1])
    full = rng.standard_normal(shape).astype(np.float32)
    packed = quantize(full, scheme)
    kinds = {k: dtype for k, (_, dtype) in packed_spec(shape, scheme).items()}
    lie = {k: layout(kinds[k], scheme, tile) for k in packed}
    return {
        **{f"layer_{k}": in_memory(a, kinds[k], lie[k]) for k, a in packed.items()},
        "x": rng.standard_normal((most_rows, shape[1])).astype(np.float32),
        "r": rng.standard_normal((most_rows, shape[0])).astype(np.float32),
    }


def in_memory(array: Array, dtype: DType, tile: RowTile) -> Array:
    """A part of a weight as kernels read it."""
    param = Param("w", dtype.name, array.shape, tile.rows, tile.streams)
    out = np.zeros(packed_shape(param), array.dtype)
    pack(array, param, out)
    return out


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
