"""Rotary embedding and paged attention.

Queries, keys and values are [n, heads * head_dim]. The KV cache is one state tensor
[pages, layers, planes, kv_heads, page_size * slot_elements], whose two planes are keys and values;
where values are the first elements of keys there is one. Where the tokens of a step go in it
follows from their position and their sequence's pages. A cache of i8 keeps a key or value as
numbers from -127 to 127, times a scale in f16 for each token and head that lies behind the page's
numbers. Attention reads only the cache, so a step appends first. Rotary source: Su et al. 2021,
"RoFormer" (arXiv:2104.09864), half-split layout unless a rope is `interleaved`.
"""

from __future__ import annotations

from sterna.base.dtype import F16, F32, DType
from sterna.ir.compute import Compute
from sterna.ir.expr import Buffer, Expr, Unary, cast, select, wrap
from sterna.ir.graph import TensorType
from sterna.ops.op import Attrs, Kind, Op, define, expect, integer, number, static


def slot_elements(dtype: DType, head_dim: int) -> int:
    """Elements of the cache that a token's key, or value, takes in one head."""
    return head_dim + (F16.bytes // dtype.bytes if dtype.is_int else 0)


def _infer_angles(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    """([n] or [n, axes] positions, [d] frequencies) -> [n, d]."""
    positions, frequencies = types
    if len(positions.shape) == 2:
        axes = static(positions.shape[1], "angles: the axes")
        sections, pairs = _sections(attrs), static(frequencies.shape[0], "angles: the frequencies")
        expect(len(sections) == axes, "angles: each axis has a section")
        expect(sum(sections) == pairs, "angles: the sections are all the pairs")
    shape = (positions.shape[0], frequencies.shape[0])
    return (TensorType(shape, F32),)


def _sections(attrs: Attrs) -> list[int]:
    return [int(size) for size in str(attrs["sections"]).split()]


def _on_axis(positions: Buffer, sections: list[int], n: Expr, d: Expr, first: int = 0) -> Expr:
    """The position that pair d turns by: that of the axis in whose section it lies."""
    own = positions[n, wrap(first)]
    if first == len(sections) - 1:
        return own
    others = _on_axis(positions, sections, n, d, first + 1)
    return select(d < sum(sections[: first + 1]), own, others)


def _angles(function: str) -> Op:
    """cos or sin of position * frequency, times the scaling that yarn applies to both.

    A token may have a position on each of several axes; the pairs of `sections`, one behind
    another, turn by those. Source: Wang et al. 2024, "Qwen2-VL" (arXiv:2409.12191).
    """

    def compute(
        out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
    ) -> tuple[Compute, ...]:
        positions, frequencies = args

        def body(n: Expr, d: Expr) -> Expr:
            flat = len(positions.shape) == 1
            own = positions[n] if flat else _on_axis(positions, _sections(attrs), n, d)
            angle = cast(F32, own) * frequencies[d]
            return Unary(function, angle) * number(attrs, "scaling")

        return (define(out, types[0], "n d", body),)

    return Op(f"rope_{function}", Kind.INJECTIVE, _infer_angles, compute)


def _infer_rope(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    x, cosine, _ = types
    half = static(cosine.shape[1], "rope: the rotary dim")
    expect(
        static(x.shape[1], "rope: width") % integer(attrs, "head_dim") == 0,
        "rope: heads do not divide the width",
    )
    expect(2 * half <= integer(attrs, "head_dim"), "rope: more angles than dims")
    return (x,)


def rotary_pair(i: Expr, half: int, interleaved: bool) -> tuple[Expr, Expr]:
    """The two dims that angle i turns: half a rotary part apart, or neighbours."""
    return (i * 2, i * 2 + 1) if interleaved else (i, i + half)


def rotate(
    x: Buffer, angles: tuple[Buffer, Buffer], n: Expr, h: Expr, d: Expr, dim: int, interleaved: bool
) -> Expr:
    """Element d of head h after rotation: x1 cos - x2 sin, then x2 cos + x1 sin."""
    cosine, sine = angles
    half = static(cosine.shape[1], "rope: the rotary dim")
    base = h * dim
    i = (d // 2 if interleaved else d) % half  # a dim that stays is read nowhere outside
    first, second = rotary_pair(i, half, interleaved)
    low, high = cast(F32, x[n, base + first]), cast(F32, x[n, base + second])
    turned = select(
        d % 2 < 1 if interleaved else d < half,
        low * cosine[n, i] - high * sine[n, i],
        high * cosine[n, i] + low * sine[n, i],
    )
    return turned if 2 * half == dim else select(d < 2 * half, turned, cast(F32, x[n, base + d]))


def _compute_rope(
    out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
) -> tuple[Compute, ...]:
    dim = integer(attrs, "head_dim")
    x, cosine, sine = args
    interleaved = attrs.get("interleaved") is True

    def body(n: Expr, c: Expr) -> Expr:
        turned = rotate(x, (cosine, sine), n, c // dim, c % dim, dim, interleaved)
        return cast(types[0].dtype, turned)

    return (define(out, types[0], "n c", body),)


def _infer_temper(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    """(x [n, width], positions [n]) -> like x."""
    return (types[0],)


def _compute_temper(
    out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
) -> tuple[Compute, ...]:
    """x * (1 + scale * log(1 + floor((position + 1) / floor))): Llama 4's; arXiv:2501.19399."""
    x, positions = args
    floor, scale = number(attrs, "floor"), number(attrs, "scale")

    def body(n: Expr, c: Expr) -> Expr:
        stretches = Unary("floor", (cast(F32, positions[n]) + 1.0) / wrap(floor))
        grown = Unary("log", stretches + 1.0) * scale + 1.0
        return cast(types[0].dtype, cast(F32, x[n, c]) * grown)

    return (define(out, types[0], "n c", body),)


def _infer_append(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    """(k[, v], kv, positions, seq_ids, page_indptr, page_table) -> the cache, changed.

    Without v the cache has one plane.
    """
    expect(len(types) in (6, 7), "kv_append: takes k, v, the cache and four index tensors")
    cache = types[-5]
    planes = static(cache.shape[2], "kv_append: the planes")
    expect(planes == len(types) - 5, "kv_append: the cache has another number of planes")
    return (cache,)


def _infer_rope_append(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    """(q, k, v, cos, sin, kv, positions, seq_ids, page_indptr, page_table) -> (q rotated, kv)."""
    expect(len(types) == 10, "rope_append: takes q, k, v, cos, sin, the cache, four index tensors")
    return (types[0], types[5])


def _infer_attention(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    """(q, kv, reach, page_indptr, page_table, tile_start, tile_size, tile_seq[, sink]) -> like q.

    `reach` [n] is the last position that a token sees: its own, or with the attribute causal=False
    that of its sequence's last token. `sink` [heads] has the score of one more token that every
    query of a head sees and whose value is 0; with the attribute `chunk` a query sees the tokens
    of its own chunk of so many positions alone. In a cache of one plane a value is the first
    `value_dim` elements of its key.
    """
    expect(len(types) in (8, 9), "attention: takes q, the cache, six index tensors, and sinks")
    heads = static(types[0].shape[1], "attention: the width") // integer(attrs, "head_dim")
    given = static(types[8].shape[0], "attention: the sinks") if len(types) > 8 else heads
    expect(given == heads, "attention: there must be a sink for each head")
    if "value_dim" not in attrs:
        return (types[0],)
    expect(static(types[1].shape[2], "the planes") == 1, "attention: values have a plane of theirs")
    width = heads * integer(attrs, "value_dim")
    return (TensorType((types[0].shape[0], wrap(width)), types[0].dtype),)


COSINE = _angles("cos")
SINE = _angles("sin")
ROPE = Op("rope", Kind.INJECTIVE, _infer_rope, _compute_rope)
TEMPER = Op("temper", Kind.INJECTIVE, _infer_temper, _compute_temper)
KV_APPEND = Op("kv_append", Kind.OPAQUE, _infer_append, effect=True)
ROPE_APPEND = Op("rope_append", Kind.OPAQUE, _infer_rope_append, effect=True)
ATTENTION = Op("attention", Kind.OPAQUE, _infer_attention)
