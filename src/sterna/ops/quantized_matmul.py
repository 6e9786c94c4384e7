"""Matrix product with packed weights in integers: activations become codes too, of 16 or 8 bits.

    dynamic_quantize   x [n, K] -> codes, and for each group of K a scale and the sum of its codes
    quantized_matmul   codes of x times codes of a weight, summed exactly within a group

Inside a group every product and sum is an exact integer, so any order of it gives the same bits;
across groups the sum runs in f32 and in order. An i32 holds two 16-bit codes or four 8-bit ones,
and `dot2` or `dot4` multiplies and adds two such i32: what pmaddwd or i32x4.dot_i16x8 do in one
step, and pmaddubsw with another.

Which codes lie together is chosen so that they fall out of packed words by a shift and a mask:
with `span` codes to a word and `parts` of them in an i32, code j goes with code j + span / parts.
"""

from __future__ import annotations

from collections.abc import Callable
from math import gcd

from sterna.base.dtype import F32, I32, U32
from sterna.ir.compute import MAX, SUM, Combine, Compute, axis
from sterna.ir.expr import Buffer, Expr, Unary, cast, dot2, dot4, select, wrap
from sterna.ir.graph import TensorType
from sterna.ops.op import Attrs, Kind, Op, expect, integer, result_names, static
from sterna.ops.quantize import codes_beside, of_row

PARTS = {16: 2, 8: 4}  # codes in an i32, by their bits
_SMALLEST = 1.0e-30  # a group whose largest activation is below counts as zero
_LANES = 8  # partial results of a group side by side


def _quantize_types(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    group, span, parts = (integer(attrs, name) for name in ("group", "span", "parts"))
    depth = static(x.shape[1], "dynamic_quantize: the last dim")
    expect(depth % group == 0, "dynamic_quantize: the group does not divide the last dim")
    expect(parts in PARTS.values(), f"dynamic_quantize: {parts} codes do not fill an i32")
    fits = group % span == 0 and span % parts == 0
    expect(fits, "dynamic_quantize: the span does not fit the group")
    codes = TensorType((x.shape[0], wrap(depth // span), wrap(span // parts)), I32)
    groups = (x.shape[0], wrap(depth // group))
    return (codes, TensorType(groups, F32), TensorType(groups, I32))


def _quantize(
    out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
) -> tuple[Compute, ...]:
    """scale = max |x| / 32767 (or 127) of a group; code = x / scale, to the nearest integer.

    The results are codes side by side, scales and sums. `kept`: x, which is read twice, is a stage
    of its own and not computed by each reader.
    """
    (x,) = args
    kept: tuple[Compute, ...] = ()
    if attrs.get("kept"):
        n, k = (axis(name, extent) for name, extent in zip("nk", x.shape, strict=True))
        kept = (Compute(Buffer(f"{out}.x", x.dtype, x.shape), (n, k), x[n.var, k.var]),)
        x = kept[0].out
    group, parts = integer(attrs, "group"), integer(attrs, "parts")
    step, width = integer(attrs, "span") // parts, 32 // parts
    largest = (1 << (width - 1)) - 1
    rows, depth = x.shape[0], static(x.shape[1], "dynamic_quantize: the last dim")
    beside, scale, total = (
        Buffer(name, t.dtype, t.shape) for name, t in zip(result_names(out, 3), types, strict=True)
    )
    inverse = Buffer(f"{out}.inverse", F32, scale.shape)
    code = Buffer(f"{out}.code", I32, (rows, wrap(depth)))
    n, g = axis("n", rows), axis("g", depth // group)
    peak = Buffer(f"{out}.peak", F32, scale.shape)
    peaks = _by_group(peak, group, MAX, lambda n, k: Unary("abs", cast(F32, x[n, k])))
    scaled = Compute(scale, (n, g), peak[n.var, g.var] * (1.0 / largest))
    n, g = axis("n", rows), axis("g", depth // group)
    some = wrap(_SMALLEST) < peak[n.var, g.var]
    inverted = Compute(
        inverse, (n, g), select(some, wrap(float(largest)) / peak[n.var, g.var], 0.0)
    )
    n, k = axis("n", rows), axis("k", depth)
    nearest = Unary("floor", cast(F32, x[n.var, k.var]) * inverse[n.var, k.var // group] + 0.5)
    coded = Compute(code, (n, k), cast(I32, nearest))
    n, w, j = axis("n", rows), axis("w", depth // step // parts), axis("j", step)
    first = w.var * (parts * step) + j.var
    joined = code[n.var, first] & ((1 << width) - 1)
    for i in range(1, parts):
        part = code[n.var, first + i * step]
        last = i == parts - 1  # what is above it falls out of the i32
        joined = joined | ((part if last else part & ((1 << width) - 1)) << (i * width))
    laid = Compute(beside, (n, w, j), joined)
    added = Buffer(f"{out}.sum", I32, total.shape)
    sums = _by_group(added, group, SUM, lambda n, k: code[n, k])
    n, g = axis("n", rows), axis("g", depth // group)
    summed = Compute(total, (n, g), added[n.var, g.var])
    return (*kept, *peaks, scaled, inverted, coded, *sums, summed, laid)


def _by_group(
    out: Buffer, group: int, combine: Combine, value: Callable[[Expr, Expr], Expr]
) -> tuple[Compute, Compute]:
    """out[n, g] = combine of value(n, k) over the k of a group, by way of partial results."""
    rows, groups = out.shape
    lanes = gcd(group, _LANES)
    part = Buffer(f"{out.name}.part", out.dtype, (rows, groups, wrap(lanes)))
    n, g, lane, j = axis("n", rows), axis("g", groups), axis("l", lanes), axis("j", group // lanes)
    each = value(n.var, g.var * group + j.var * lanes + lane.var)
    first = Compute(part, (n, g, lane), each, over=(j,), combine=combine)
    n, g, lane = axis("n", rows), axis("g", groups), axis("l", lanes)
    body = part[n.var, g.var, lane.var]
    return first, Compute(out, (n, g), body, over=(lane,), combine=combine)


def _matmul_types(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    x, _, _, words = types[:4]
    expect(words.dtype == U32, "quantized_matmul: codes must be packed in u32 words")
    rows, depth = integer(attrs, "rows"), integer(attrs, "depth")
    held = static(x.shape[1], "codes") * static(x.shape[2], "codes") * integer(attrs, "parts")
    expect(held == depth, "quantized_matmul: inner dims differ")
    return (TensorType((x.shape[0], wrap(rows)), F32),)


def _matmul(
    out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
) -> tuple[Compute, ...]:
    """group[m, n, g] = sum over the i32 p of group g of dot2(x[m, p], weight[p, n]), exact;

    acc[m, n] = sum over g of (group - zero * sum of x) * (scale of x * scale of the weight).
    Arguments: codes, scales and sums of x; codes, scales and maybe zero points of the weight.
    """
    x, x_scale, x_sum, words, scale = args[:5]
    rows, columns, groups = x.shape[0], types[0].shape[1], x_scale.shape[1]
    parts, step = integer(attrs, "parts"), static(x.shape[2], "codes")
    size, dot = integer(attrs, "group") // parts, dot2 if parts == 2 else dot4

    p, n = axis("p", integer(attrs, "depth") // parts), axis("n", columns)
    weight = Buffer(f"{out}.weight", I32, (p.extent, columns))
    staged = Compute(weight, (p, n), cast(I32, codes_beside(words, n.var, p.var, attrs, parts)))
    m, n, g, i = axis("m", rows), axis("n", columns), axis("g", groups), axis("i", size)
    at = g.var * size + i.var
    exact = Buffer(f"{out}.group", I32, (rows, columns, groups))
    product = dot(x[m.var, at // step, at % step], weight[at, n.var])
    first = Compute(exact, (m, n, g), product, over=(i,), combine=SUM)
    m, n, g = axis("m", rows), axis("n", columns), axis("g", groups)
    bias: Expr = wrap(integer(attrs, "bias"))
    zero = cast(I32, of_row(args[5], n.var, g.var, attrs)) if len(args) > 5 else bias
    sum_ = exact[m.var, n.var, g.var] - zero * x_sum[m.var, g.var]
    both = x_scale[m.var, g.var] * cast(F32, of_row(scale, n.var, g.var, attrs))
    acc = Buffer(f"{out}.acc", F32, (rows, columns))
    second = Compute(acc, (m, n), cast(F32, sum_) * both, over=(g,), combine=SUM)
    m, n = axis("m", rows), axis("n", columns)
    result = Compute(Buffer(out, F32, types[0].shape), (m, n), acc[m.var, n.var])
    return (staged, first, second, result)


DYNAMIC_QUANTIZE = Op("dynamic_quantize", Kind.REDUCE, _quantize_types, _quantize)
QUANTIZED_MATMUL = Op("quantized_matmul", Kind.REDUCE, _matmul_types, _matmul)
