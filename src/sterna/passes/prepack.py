"""Choose how weights lie in memory: rows interleaved so that a SIMD register holds one column.

A matmul reads its weight a column of `ROW_TILE` output rows at a time; in the exchange format
a row is contiguous. The layout is named here and made when a library is loaded; it is never
visible in a model folder. Weights stored with rows last (KN) are columns already.

Packed words may lie in several streams, each with an equal part of every tile's rows. Hardware
looks ahead in each stream that it sees: a thread that reads one long stream gets less of memory
than one that reads several side by side. Scales and floats have one. The module is not changed: the
result maps a weight's name to its layout, for `lower` to read by and for the manifest to carry.
"""

from __future__ import annotations

from dataclasses import dataclass

from sterna.base.dtype import U32, DType
from sterna.ir.graph import Binding, Call, Function, IRModule, Value
from sterna.ops.restore import UNPACKING
from sterna.passes.fuse import PRODUCTS

ROW_TILE = 32


@dataclass(frozen=True, slots=True)
class RowTile:
    """`rows` of a weight [N, W] are interleaved, an equal part of them in each of `streams`.

    In memory it is [streams, ceil(N / rows), W, rows / streams]; without the first where it is 1.
    """

    rows: int = ROW_TILE
    streams: int = 1


def row_tile(dtype: DType, streams: int) -> RowTile:
    """How a weight of a dtype lies where packed words have so many streams."""
    return RowTile(streams=streams if dtype == U32 else 1)


def prepack(module: IRModule, streams: int = 1) -> dict[str, RowTile]:
    """Row tile of every weight that a matmul reads row by row; packed words in `streams`."""
    tiles: dict[str, RowTile] = {}
    for function in module.functions.values():
        made = {o: b for b in function.bindings for o in b.outs}
        for binding in function.bindings:
            for weight in _row_major(function, made, binding.call):
                tiles[weight.name] = row_tile(weight.dtype, streams)
    return tiles


def _row_major(function: Function, made: dict[Value, Binding], call: Call) -> list[Value]:
    """The weights that a call reads by columns of several rows, and that are stored rows first."""
    if call.op == "matmul":
        return _parts(function, made, call.args[1])
    if call.op in PRODUCTS and call.attr("layout") == "NK":
        return [a for a in call.args if a in function.weights]
    return []


def _parts(function: Function, made: dict[Value, Binding], value: Value) -> list[Value]:
    """The stored tensors, rows first, that a matmul's weight argument is read from."""
    if value in function.weights:
        return [value]
    binding = made.get(value)
    if binding is None:
        return []
    call = binding.call
    if call.op in UNPACKING and call.attr("layout") == "NK":
        return [a for a in call.args if a in function.weights and len(a.shape) == 2]
    return _parts(function, made, call.args[0]) if call.op == "cast" else []
