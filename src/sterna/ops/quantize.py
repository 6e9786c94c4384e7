"""Reading packed weights: dequantize is an operator like any other and fuses into its reader.

Formats and arithmetic are those of `quantize.pack`; here only the meaning of one element is
stated, in f32: (code - bias) * scale, or (code - zero) * scale for affine schemes. For symmetric
codes the value is exact in f32 when the scale is f16 or bf16.
"""

from __future__ import annotations

from sterna.base.dtype import F32, I32, U32
from sterna.ir.compute import Compute
from sterna.ir.expr import Buffer, Expr, cast, minimum, select, wrap
from sterna.ir.graph import TensorType
from sterna.ops.op import Attrs, Kind, Op, define, expect, integer, number


def _infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    expect(types[0].dtype == U32, "dequantize: codes must be packed in u32 words")
    rows, depth = integer(attrs, "rows"), integer(attrs, "depth")
    return (TensorType((wrap(rows), wrap(depth)), F32),)


def _code(words: Buffer, n: Expr, k: Expr, attrs: Attrs) -> Expr:
    """The code of weight [n, k] as u32: see Scheme.packing."""
    bits, transposed = integer(attrs, "bits"), attrs["layout"] == "KN"

    def word(w: Expr) -> Expr:
        return words[w, n] if transposed else words[n, w]

    mask = (1 << bits) - 1
    if attrs["packing"] == "word":
        per = 32 // bits
        return (word(k // per) >> cast(U32, k % per * bits)) & mask
    start = k * bits
    index, shift = start // 32, start % 32
    last = words.shape[0 if transposed else 1] - 1
    low = word(index) >> cast(U32, shift)
    high = word(minimum(index + 1, last)) << cast(U32, (wrap(32) - shift) % 32)
    return select(shift <= 32 - bits, low, low | high) & mask


def _compute(
    out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
) -> tuple[Compute, ...]:
    group, transposed = integer(attrs, "group"), attrs["layout"] == "KN"

    def per_group(buffer: Buffer, n: Expr, k: Expr) -> Expr:
        g = k // group
        return cast(F32, buffer[g, n] if transposed else buffer[n, g])

    def body(n: Expr, k: Expr) -> Expr:
        code = cast(F32, cast(I32, _code(args[0], n, k, attrs)))
        zero = per_group(args[2], n, k) if len(args) > 2 else wrap(number(attrs, "bias"))
        return (code - zero) * per_group(args[1], n, k)

    return (define(out, types[0], "n k", body),)


DEQUANTIZE = Op("dequantize", Kind.INJECTIVE, _infer, _compute)
