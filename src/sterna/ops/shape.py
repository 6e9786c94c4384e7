"""Operators that only move values: slices of the last dim, rows taken, replaced or joined."""

from __future__ import annotations

from math import prod

from sterna.ir.compute import Compute
from sterna.ir.expr import Buffer, Expr, cast, select, wrap
from sterna.ir.graph import TensorType
from sterna.ir.simplify import simplify
from sterna.ops.op import Attrs, Kind, Op, define, expect, integer, same_dim, static


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


def _infer_flatten(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    rows, *rest = (static(d, "flatten: a dim") for d in types[0].shape)
    return (TensorType((wrap(rows), wrap(prod(rest))), types[0].dtype),)


def _compute_flatten(
    out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
) -> tuple[Compute, ...]:
    """[n, a, b, ...] -> [n, a * b * ...]."""
    sizes = [static(d, "flatten: a dim") for d in args[0].shape[1:]]

    def body(n: Expr, k: Expr) -> Expr:
        steps = [prod(sizes[i + 1 :]) for i in range(len(sizes))]
        return args[0][(n, *(k // step % size for step, size in zip(steps, sizes)))]

    return (define(out, types[0], "n k", body),)


def _infer_join(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    (x,), count = types, integer(attrs, "count")
    width = static(x.shape[1], "join_rows: the width")
    return (TensorType((simplify(x.shape[0] // count), wrap(width * count)), x.dtype),)


def _compute_join(
    out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
) -> tuple[Compute, ...]:
    """[n * count, h] -> [n, count * h]: each `count` rows become one."""
    (x,), count = args, integer(attrs, "count")
    width = static(x.shape[1], "join_rows: the width")

    def body(n: Expr, c: Expr) -> Expr:
        return x[n * count + c // width, c % width]

    return (define(out, types[0], "n c", body),)


def _infer_lead(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    x, row = types
    expect(len(x.shape) == 2 and len(row.shape) == 1, "lead: needs [n, h] and a row [h]")
    expect(same_dim(x.shape[1], row.shape[0]), "lead: the row is of another width")
    return (x,)


def _compute_lead(
    out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
) -> tuple[Compute, ...]:
    """x with its first row replaced."""
    x, row = args

    def body(n: Expr, h: Expr) -> Expr:
        return select(n < 1, cast(types[0].dtype, row[h]), x[n, h])

    return (define(out, types[0], "n h", body),)


def _infer_replace(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    x, other, where = types
    alike = len(x.shape) == 2 and all(map(same_dim, x.shape, other.shape))
    expect(alike and x.dtype == other.dtype, "replace_rows: needs two [n, h] of one dtype")
    expect(where.dtype.is_int and same_dim(where.shape[0], x.shape[0]), "replace_rows: where")
    return (x,)


def _compute_replace(
    out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
) -> tuple[Compute, ...]:
    """Rows of the second tensor where the third is not 0, else of the first."""
    x, other, where = args
    return (define(out, types[0], "n h", lambda n, h: select(
        wrap(0) < where[n], other[n, h], x[n, h])),)  # fmt: skip


FLATTEN = Op("flatten", Kind.INJECTIVE, _infer_flatten, _compute_flatten)
JOIN_ROWS = Op("join_rows", Kind.INJECTIVE, _infer_join, _compute_join)
LEAD = Op("lead", Kind.INJECTIVE, _infer_lead, _compute_lead)
REPLACE_ROWS = Op("replace_rows", Kind.INJECTIVE, _infer_replace, _compute_replace)
ROW = Op("row", Kind.INJECTIVE, _infer_row, _compute_row)
SLICE = Op("slice", Kind.INJECTIVE, _infer_slice, _compute_slice)
TAKE = Op("take", Kind.INJECTIVE, _infer_take, _compute_take)
