"""Matrix product of floats of 16 bits, as a matrix unit makes it.

    unit_matmul   x [n, K] rounded to f16 or bf16, times a weight of that dtype or packed codes

Codes of 8 bits or fewer, less their zero, are exact in either dtype, so nothing of a weight is
rounded. Depth is cut into blocks, each within one scale group: a block's products are summed in
f32 by the unit, from zero, and the blocks' sums times their scales are added up in order. In which
order a unit adds inside of a block is its own (`UNIT_SUM`). Blocks are the weight's, not the
target's or a schedule's: a row comes out the same however many are computed with it.
"""

from __future__ import annotations

from sterna.base.dtype import BF16, F16, F32, I32, U32, DType
from sterna.ir.compute import SUM, UNIT_SUM, Compute, axis
from sterna.ir.expr import Buffer, Expr, cast, maximum, minimum, wrap
from sterna.ir.graph import TensorType
from sterna.ops.op import Attrs, Kind, Op, expect, integer, static
from sterna.ops.quantize import code, of_row

OPERANDS = {"f16": F16, "bf16": BF16}
_STEP, _MOST = 16, 64  # the depth of units divides a block
_LARGEST = 65504.0  # in f16; what is larger becomes this, not infinity


def block_of(group: int) -> int | None:
    """Products that are summed at once where a scale holds for `group`; None where none suit."""
    fitting = (b for b in range(_MOST, 0, -_STEP) if group % b == 0)
    return next(fitting, None)


def _types(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    x, weight = types[:2]
    depth = static(x.shape[1], "unit_matmul: the inner dim")
    expect(attrs["operands"] in OPERANDS, "unit_matmul: operands are f16 or bf16")
    operands, group = OPERANDS[str(attrs["operands"])], depth
    if len(types) == 2:
        rows = static(weight.shape[0], "unit_matmul: the weight's rows")
        same = static(weight.shape[1], "unit_matmul: the weight's inner dim") == depth
        expect(weight.dtype == operands, "unit_matmul: a plain weight must be of the operands")
    else:
        expect(weight.dtype == U32, "unit_matmul: codes must be packed in u32 words")
        expect(integer(attrs, "bits") <= 8, "unit_matmul: codes have 8 bits at most")
        rows, group = integer(attrs, "rows"), integer(attrs, "group")
        same = integer(attrs, "depth") == depth and depth % group == 0
    expect(same, "unit_matmul: inner dims differ, or groups do not fill them")
    expect(block_of(group) is not None, f"unit_matmul: groups of {group} have no blocks")
    return (TensorType((x.shape[0], wrap(rows)), x.dtype),)


def _compute(
    out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
) -> tuple[Compute, ...]:
    """block[m, n, b] = the unit's sum over the k of block b of x16[m, k] * weight16[n, k];

    acc[m, n] = sum over b, in order, of block * scale.
    """
    x, columns, dtype = args[0], types[0].shape[1], OPERANDS[str(attrs["operands"])]
    rows, depth = x.shape[0], static(x.shape[1], "unit_matmul: the inner dim")
    packed = len(args) > 2
    group = integer(attrs, "group") if packed else depth
    size = block_of(group) or depth

    m, k = axis("m", rows), axis("k", depth)
    left = Buffer(f"{out}.x", dtype, (rows, k.extent))
    narrowed = Compute(left, (m, k), _narrowed(x[m.var, k.var], dtype))
    n, k = axis("n", columns), axis("k", depth)
    right = Buffer(f"{out}.weight", dtype, (columns, k.extent))
    weight = _codes(args, n.var, k.var, attrs, dtype) if packed else args[1][n.var, k.var]
    staged = Compute(right, (n, k), weight)

    m, n, b, i = axis("m", rows), axis("n", columns), axis("b", depth // size), axis("i", size)
    at = b.var * size + i.var
    block = Buffer(f"{out}.block", F32, (rows, columns, b.extent))
    product = cast(F32, left[m.var, at]) * cast(F32, right[n.var, at])
    summed = Compute(block, (m, n, b), product, over=(i,), combine=UNIT_SUM)
    m, n, b = axis("m", rows), axis("n", columns), axis("b", depth // size)
    each: Expr = block[m.var, n.var, b.var]
    if packed:
        each = each * cast(F32, of_row(args[2], n.var, b.var * size // group, attrs))
    acc = Buffer(f"{out}.acc", F32, (rows, columns))
    total = Compute(acc, (m, n), each, over=(b,), combine=SUM)
    m, n = axis("m", rows), axis("n", columns)
    result = Buffer(out, types[0].dtype, types[0].shape)
    last = Compute(result, (m, n), cast(types[0].dtype, acc[m.var, n.var]))
    return (narrowed, staged, summed, total, last)


def _narrowed(value: Expr, dtype: DType) -> Expr:
    """An activation in 16 bits."""
    wide = cast(F32, value)
    return cast(dtype, minimum(maximum(wide, -_LARGEST), _LARGEST) if dtype == F16 else wide)


def _codes(args: tuple[Buffer, ...], n: Expr, k: Expr, attrs: Attrs, dtype: DType) -> Expr:
    """code - zero, a whole number of nine bits at most."""
    zero: Expr | int = integer(attrs, "bias")
    if len(args) > 3:
        zero = cast(I32, cast(F32, of_row(args[3], n, k // integer(attrs, "group"), attrs)))
    return cast(dtype, cast(F32, cast(I32, code(args[1], n, k, attrs)) - zero))


UNIT_MATMUL = Op("unit_matmul", Kind.REDUCE, _types, _compute)
