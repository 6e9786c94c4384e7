"""Matrix product of floats of 16 bits by twos, on CPUs that multiply and add pairs of bf16.

    bf16_pairs    x [n, K] -> pairs of its numbers, rounded to bf16, in an i32 each
    bf16_matmul   such pairs times a weight of bf16 or packed codes

Codes of 8 bits or fewer, less their zero, are exact in bf16, so nothing of a weight is rounded. The
products of a scale group, or of a whole row where there are no scales, are summed in f32 pair after
pair, from zero, as the instruction does (`UNIT_SUM`), and the groups' sums times their scales are
added up in order: a row comes out the same however many are computed with it.

Which numbers are a pair is chosen like in `quantized_matmul`: of `span` numbers j goes with
j + span / 2, which is how two codes fall out of a packed word.
"""

from __future__ import annotations

from sterna.base.dtype import BF16, F32, I32, U32
from sterna.ir.compute import SUM, UNIT_SUM, Compute, axis
from sterna.ir.expr import Buffer, Expr, Intrin, cast, wrap
from sterna.ir.graph import TensorType
from sterna.ops.op import Attrs, Kind, Op, expect, integer, static
from sterna.ops.quantize import codes_beside, of_row

_TWO = 2
_NIBBLE = 4  # bits


def _pair(low: Expr, high: Expr) -> Expr:
    return Intrin("pair_bf16", (cast(F32, low), cast(F32, high)))


def _pairs_types(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    depth, span = static(x.shape[1], "bf16_pairs: the last dim"), integer(attrs, "span")
    expect(span % _TWO == 0 and depth % span == 0, "bf16_pairs: the span does not fit the last dim")
    return (TensorType((x.shape[0], wrap(depth // span), wrap(span // _TWO)), I32),)


def _pairs(
    out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
) -> tuple[Compute, ...]:
    """pairs[n, w, j] = x[n, w * span + j] and x[n, w * span + span / 2 + j], in bf16."""
    (x,), step = args, integer(attrs, "span") // _TWO
    n, w, j = (axis(name, e) for name, e in zip("nwj", types[0].shape, strict=True))
    first = w.var * (_TWO * step) + j.var
    body = _pair(x[n.var, first], x[n.var, first + step])
    return (Compute(Buffer(out, I32, types[0].shape), (n, w, j), body),)


def _matmul_types(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    x, weight = types[:2]
    held = static(x.shape[1], "pairs") * static(x.shape[2], "pairs") * _TWO
    if len(types) == _TWO:
        expect(weight.dtype == BF16, "bf16_matmul: a plain weight must be bf16")
        rows, depth = (static(e, "bf16_matmul: the weight") for e in weight.shape)
    else:
        expect(weight.dtype == U32, "bf16_matmul: codes must be packed in u32 words")
        expect(integer(attrs, "bits") <= 8, "bf16_matmul: codes have 8 bits at most")
        rows, depth = integer(attrs, "rows"), integer(attrs, "depth")
        expect(depth % integer(attrs, "group") == 0, "bf16_matmul: groups do not fill a row")
    expect(held == depth, "bf16_matmul: inner dims differ")
    return (TensorType((x.shape[0], wrap(rows)), F32),)


def _matmul(
    out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
) -> tuple[Compute, ...]:
    """group[m, n, g] = the unit's sum over the pairs p of group g of x[m, p] * weight[p, n];

    acc[m, n] = sum over g, in order, of group * scale. A plain weight has one group, and no scale.
    Arguments: pairs of x; the weight, or its codes, scales and maybe zero points.
    """
    x, words = args[:2]
    rows, columns, step = x.shape[0], types[0].shape[1], static(x.shape[2], "pairs")
    pairs = static(x.shape[1], "pairs") * step
    packed = len(args) > _TWO
    size = integer(attrs, "group") // _TWO if packed else pairs

    p, n = axis("p", pairs), axis("n", columns)
    weight = Buffer(f"{out}.weight", I32, (p.extent, columns))
    value = _codes(args, n.var, p.var, size, attrs) if packed else _pair(
        words[n.var, p.var * _TWO], words[n.var, p.var * _TWO + 1]
    )  # fmt: skip
    staged = Compute(weight, (p, n), value)

    def product(m: Expr, n: Expr, at: Expr) -> Expr:
        return Intrin("dot2_bf16", (x[m, at // step, at % step], weight[at, n]))

    acc = Buffer(f"{out}.acc", F32, (rows, columns))
    sums: tuple[Compute, ...]
    if packed:
        m, n = axis("m", rows), axis("n", columns)
        g, i = axis("g", pairs // size), axis("i", size)
        block = Buffer(f"{out}.group", F32, (rows, columns, g.extent))
        body = product(m.var, n.var, g.var * size + i.var)
        first = Compute(block, (m, n, g), body, over=(i,), combine=UNIT_SUM)
        m, n, g = axis("m", rows), axis("n", columns), axis("g", pairs // size)
        each = block[m.var, n.var, g.var] * cast(F32, of_row(args[2], n.var, g.var, attrs))
        sums = (first, Compute(acc, (m, n), each, over=(g,), combine=SUM))
    else:
        m, n, i = axis("m", rows), axis("n", columns), axis("i", pairs)
        body = product(m.var, n.var, i.var)
        sums = (Compute(acc, (m, n), body, over=(i,), combine=UNIT_SUM),)
    m, n = axis("m", rows), axis("n", columns)
    result = Compute(Buffer(out, F32, types[0].shape), (m, n), acc[m.var, n.var])
    return (staged, *sums, result)


def _codes(args: tuple[Buffer, ...], n: Expr, p: Expr, size: int, attrs: Attrs) -> Expr:
    """Two codes less their zero."""
    both = cast(I32, codes_beside(args[1], n, p, attrs, _TWO))
    zero: Expr = wrap(integer(attrs, "bias"), I32)
    if len(args) > 3:
        zero = cast(I32, of_row(args[3], n, p // size, attrs))
    few = integer(attrs, "bits") <= _NIBBLE
    return Intrin("nibbles_bf16" if few else "codes_bf16", (both, zero))


BF16_PAIRS = Op("bf16_pairs", Kind.INJECTIVE, _pairs_types, _pairs)
BF16_MATMUL = Op("bf16_matmul", Kind.REDUCE, _matmul_types, _matmul)
