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


def pair_span(attrs: Attrs) -> int:
    """Codes after which `code_pair` starts again: those of a word, or 2 where they cross words."""
    return 32 // integer(attrs, "bits") if attrs["packing"] == "word" else 2


def code_pair(words: Buffer, n: Expr, p: Expr, attrs: Attrs) -> Expr:
    """Two codes of weight row n in the halves of a u32.

    With h = pair_span / 2, pair p holds codes j and j + h of its span, j = p % h.
    """
    bits, half = integer(attrs, "bits"), pair_span(attrs) // 2
    mask = (1 << bits) - 1
    if attrs["packing"] == "word":
        word, shift = _word(words, n, p // half, attrs), p % half * bits
        if half * bits == 16:
            return (word >> cast(U32, shift)) & (mask | mask << 16)
        low, high = word >> cast(U32, shift), word >> cast(U32, shift + half * bits)
        return (low & mask) | ((high & mask) << 16)
    return code(words, n, p * 2, attrs) | (code(words, n, p * 2 + 1, attrs) << 16)


def _word(words: Buffer, n: Expr, w: Expr, attrs: Attrs) -> Expr:
    return words[w, n] if attrs["layout"] == "KN" else words[n, w]


def code(words: Buffer, n: Expr, k: Expr, attrs: Attrs) -> Expr:
    """The code of weight [n, k] as u32: see Scheme.packing."""
    bits = integer(attrs, "bits")
    mask = (1 << bits) - 1
    if attrs["packing"] == "word":
        per = 32 // bits
        return (_word(words, n, k // per, attrs) >> cast(U32, k % per * bits)) & mask
    start = k * bits
    index, shift = start // 32, start % 32
    last = words.shape[0 if attrs["layout"] == "KN" else 1] - 1
    low = _word(words, n, index, attrs) >> cast(U32, shift)
    high = _word(words, n, minimum(index + 1, last), attrs) << cast(U32, (wrap(32) - shift) % 32)
    return select(shift <= 32 - bits, low, low | high) & mask


def _compute(
    out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
) -> tuple[Compute, ...]:
    group, transposed = integer(attrs, "group"), attrs["layout"] == "KN"

    def per_group(buffer: Buffer, n: Expr, k: Expr) -> Expr:
        g = k // group
        return cast(F32, buffer[g, n] if transposed else buffer[n, g])

    def body(n: Expr, k: Expr) -> Expr:
        value = cast(F32, cast(I32, code(args[0], n, k, attrs)))
        zero = per_group(args[2], n, k) if len(args) > 2 else wrap(number(attrs, "bias"))
        return (value - zero) * per_group(args[1], n, k)

    return (define(out, types[0], "n k", body),)


DEQUANTIZE = Op("dequantize", Kind.INJECTIVE, _infer, _compute)
