"""Reading packed weights: dequantize is an operator like any other and fuses into its reader.

Formats and arithmetic are those of `quantize.pack`; here only the meaning of one element is
stated, in f32: (code - bias) * scale, or (code - zero) * scale for affine schemes. For symmetric
codes the value is exact in f32 when the scale is f16 or bf16.
"""

from __future__ import annotations

from collections.abc import Sequence

from sterna.base.dtype import F32, I32, U32
from sterna.ir.compute import Compute
from sterna.ir.expr import Buffer, Expr, cast, minimum, select, wrap
from sterna.ir.graph import TensorType
from sterna.ops.op import Attrs, Kind, Op, define, expect, integer, number


def _infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    expect(types[0].dtype == U32, "dequantize: codes must be packed in u32 words")
    rows, depth = integer(attrs, "rows"), integer(attrs, "depth")
    return (TensorType((wrap(rows), wrap(depth)), F32),)


def code_span(attrs: Attrs, parts: int) -> int:
    """Codes after which `codes_beside` starts again: a word's; `parts` where they cross words."""
    return 32 // integer(attrs, "bits") if attrs["packing"] == "word" else parts


def codes_beside(words: Buffer, n: Expr, p: Expr, attrs: Attrs, parts: int) -> Expr:
    """`parts` codes of weight row n side by side in a u32.

    With h = span / parts, number p holds codes j, j + h, j + 2h... of its span, j = p % h.
    """
    bits, width, step = integer(attrs, "bits"), 32 // parts, code_span(attrs, parts) // parts
    mask = (1 << bits) - 1
    if attrs["packing"] != "word":
        return _joined([code(words, n, p * parts + i, attrs) for i in range(parts)])
    word, shift = of_row(words, n, p // step, attrs), p % step * bits
    if step * bits == width:
        return (word >> cast(U32, shift)) & sum(mask << i * width for i in range(parts))
    moved = (word >> cast(U32, shift + i * step * bits) for i in range(parts))
    return _joined([part & mask for part in moved])


def _joined(parts: Sequence[Expr]) -> Expr:
    """Numbers below 2**(32 / parts) in one u32, the first lowest."""
    joined = parts[0]
    for i, part in enumerate(parts[1:], 1):
        joined = joined | (part << (i * 32 // len(parts)))
    return joined


def of_row(part: Buffer, n: Expr, at: Expr, attrs: Attrs) -> Expr:
    """What weight row n has at a place: a word, or a group's scale or zero point."""
    return part[at, n] if attrs["layout"] == "KN" else part[n, at]


def code(words: Buffer, n: Expr, k: Expr, attrs: Attrs) -> Expr:
    """The code of weight [n, k] as u32: see Scheme.packing."""
    bits = integer(attrs, "bits")
    mask = (1 << bits) - 1
    if attrs["packing"] == "word":
        per = 32 // bits
        return (of_row(words, n, k // per, attrs) >> cast(U32, k % per * bits)) & mask
    start = k * bits
    index, shift = start // 32, start % 32
    last = words.shape[0 if attrs["layout"] == "KN" else 1] - 1
    low = of_row(words, n, index, attrs) >> cast(U32, shift)
    high = of_row(words, n, minimum(index + 1, last), attrs) << cast(U32, (wrap(32) - shift) % 32)
    return select(shift <= 32 - bits, low, low | high) & mask


def _compute(
    out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
) -> tuple[Compute, ...]:
    group = integer(attrs, "group")

    def per_group(buffer: Buffer, n: Expr, k: Expr) -> Expr:
        return cast(F32, of_row(buffer, n, k // group, attrs))

    def body(n: Expr, k: Expr) -> Expr:
        value = cast(F32, cast(I32, code(args[0], n, k, attrs)))
        zero = per_group(args[2], n, k) if len(args) > 2 else wrap(number(attrs, "bias"))
        return (value - zero) * per_group(args[1], n, k)

    return (define(out, types[0], "n k", body),)


DEQUANTIZE = Op("dequantize", Kind.INJECTIVE, _infer, _compute)
