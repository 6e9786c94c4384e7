"""Operators that only move values: slices of the last dim, rows taken by index."""

from __future__ import annotations

from sterna.ir.compute import Compute
from sterna.ir.expr import Buffer, Expr, wrap
from sterna.ir.graph import TensorType
from sterna.ops.op import Attrs, Kind, Op, define, expect, integer, static


def _infer_slice(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    start, size = integer(attrs, "start"), integer(attrs, "size")
    width = static(types[0].shape[-1], "slice: the last dim")
    expect(start >= 0 and start + size <= width, f"slice: {start}+{size} exceeds {width}")
    return (TensorType((*types[0].shape[:-1], wrap(size)), types[0].dtype),)


def _compute_slice(
    out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
) -> tuple[Compute, ...]:
    start = integer(attrs, "start")

    def body(*index: Expr) -> Expr:
        return args[0][(*index[:-1], index[-1] + start)]

    return (define(out, types[0], " ".join("abcd"[: len(types[0].shape)]), body),)


def _infer_take(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    table, rows = types
    expect(len(table.shape) == 2 and len(rows.shape) == 1, "take: needs a [v, h] table, [n] rows")
    expect(rows.dtype.is_int, "take: rows must be integers")
    return (TensorType((rows.shape[0], table.shape[1]), table.dtype),)


def _compute_take(
    out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
) -> tuple[Compute, ...]:
    table, rows = args
    return (define(out, types[0], "n h", lambda n, h: table[rows[n], h]),)


def _infer_row(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    (table,) = types
    expect(len(table.shape) == 2, "row: needs a [v, h] table")
    rows, index = static(table.shape[0], "row: the number of rows"), integer(attrs, "index")
    expect(0 <= index < rows, f"row: there is no row {index} of {rows}")
    return (TensorType(table.shape[1:], table.dtype),)


def _compute_row(
    out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
) -> tuple[Compute, ...]:
    index = wrap(integer(attrs, "index"))
    return (define(out, types[0], "h", lambda h: args[0][index, h]),)


ROW = Op("row", Kind.INJECTIVE, _infer_row, _compute_row)
SLICE = Op("slice", Kind.INJECTIVE, _infer_slice, _compute_slice)
TAKE = Op("take", Kind.INJECTIVE, _infer_take, _compute_take)
