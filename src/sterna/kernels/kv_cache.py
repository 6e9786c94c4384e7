"""Writing a step's keys and values into the paged cache, with rotary embedding on the way.

Cache layout, one page of one layer and kv head: keys as [head_dim, page_size], so that the
scores of a page's tokens are one vector; values as [page_size, head_dim]. The pages of a
sequence need not be neighbours. In 8 bits each key and value has a scale of its own, so what is
written never depends on what is written beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd

from sterna.base.dtype import F16, F32
from sterna.ir.expr import (
    Buffer,
    Expr,
    Load,
    Unary,
    Var,
    cast,
    const_value,
    maximum,
    minimum,
    select,
    wrap,
)
from sterna.ir.loop import Alloc, PrimFunc, Stmt, Store, seq, store
from sterna.kernels.build import let, loop, parallel, vector
from sterna.ops.attention import rotary_pair, slot_elements

LAYER = Var("layer", lo=0)  # which layer of the cache a kernel works on; a launch argument
_LANES = 16
_STEPS = 127.0  # of a number of 8 bits, to either side of 0

_Put = Callable[[Expr, Expr], Stmt]  # of a channel and its element


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """Where tokens lie in the state tensor [pages, layers, planes, kv_heads, page_size * slot].

    `buffer` holds keys and values in two planes, or in one where values are a part of the keys.
    Readers may see a head that is stored once as several, `sharing` of them. With numbers of 8 bits
    `scales` is the same memory seen as f16: behind the numbers of a page's keys, or values, follows
    a scale for each slot.
    """

    buffer: Buffer
    page_size: int
    head_dim: int
    scales: Buffer | None = None
    sharing: int = 1

    @staticmethod
    def over(buffer: Buffer, page_size: int, head_dim: int, sharing: int = 1) -> CacheLayout:
        """The layout of a state tensor, by its dtype."""
        if buffer.dtype.is_float:
            return CacheLayout(buffer, page_size, head_dim, None, sharing)
        *outer, _ = buffer.shape
        halves = page_size * slot_elements(buffer.dtype, head_dim) // F16.bytes
        scales = Buffer(f"{buffer.name}_scales", F16, (*outer, wrap(halves)))
        return CacheLayout(buffer, page_size, head_dim, scales, sharing)

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """What kernels take as parameters."""
        return (self.buffer,) if self.scales is None else (self.buffer, self.scales)

    @property
    def views(self) -> tuple[tuple[Buffer, Buffer], ...]:
        """Parameters that are another one's memory: (view, whole)."""
        return () if self.scales is None else ((self.scales, self.buffer),)

    @property
    def kv_heads(self) -> int:
        return int(const_value(self.buffer.shape[3]) or 0) * self.sharing

    @property
    def joined(self) -> bool:
        """Whether values are the first elements of keys."""
        return const_value(self.buffer.shape[2]) == 1

    def stored(self, head: Expr) -> Expr:
        """The head in the cache that a reader's head is."""
        return head if self.sharing == 1 else head // self.sharing

    @property
    def line(self) -> int:
        """Neighbouring elements that a cache line of the processor holds."""
        return 64 // self.buffer.dtype.bytes

    def key(self, page: Expr, head: Expr, d: Expr, t: Expr) -> Load:
        """Element d of the key in slot t of a page."""
        return self.buffer[page, LAYER, 0, self.stored(head), d * self.page_size + t]

    def value(self, page: Expr, head: Expr, t: Expr, d: Expr) -> Load:
        """Element d of the value in slot t of a page."""
        if self.joined:
            return self.key(page, head, d, t)
        return self.buffer[page, LAYER, 1, self.stored(head), t * self.head_dim + d]

    def scale(self, page: Expr, which: int, head: Expr, t: Expr) -> Load:
        """What the key (0) or value (1) in slot t is multiplied by."""
        assert self.scales is not None, "a cache of floats has no scales"
        first = self.page_size * self.head_dim // F16.bytes
        plane = 0 if self.joined else which
        return self.scales[page, LAYER, plane, self.stored(head), t + first]


@dataclass(frozen=True, slots=True)
class StepIndex:
    """The index tensors of a step that say where a token goes."""

    positions: Buffer
    seq_ids: Buffer
    page_indptr: Buffer
    page_table: Buffer

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        return (self.positions, self.seq_ids, self.page_indptr, self.page_table)


def kv_append(
    name: str,
    rows: tuple[Buffer, ...],
    cache: CacheLayout,
    index: StepIndex,
    dims: tuple[Var, ...],
) -> PrimFunc:
    """cache[slot of token n] = k[n], v[n], for every token. `rows`: k and v, or both in one.

    Each is [n, kv_heads * head_dim].
    """
    dim = cache.head_dim

    def token(n: Var, page: Expr, slot: Expr) -> Stmt:
        def one(x: Buffer, which: int, h: Var) -> Stmt:
            return _Slot(cache, page, which, h, slot).fill(
                lambda put, lanes: copied(x, h, put, lanes)
            )

        def copied(x: Buffer, h: Var, put: _Put, lanes: int) -> Stmt:
            return _channels(dim, lanes, lambda d: put(d, cast(F32, x[n, h * dim + d])))

        def all_heads(x: Buffer, which: int) -> Stmt:
            return loop("h", cache.kv_heads, lambda h: one(x, which, h))

        return seq(*(all_heads(x, which) for which, x in enumerate(rows)))

    body = parallel("n", rows[0].shape[0], lambda n: _at_slot(n, index, cache.page_size, token))
    return PrimFunc(name, (*rows, *cache.buffers, *index.buffers), (*dims, LAYER), body)


def rope_append(
    name: str,
    qkv: tuple[Buffer, Buffer, Buffer],
    angles: tuple[Buffer, Buffer],
    out: Buffer,
    cache: CacheLayout,
    index: StepIndex,
    dims: tuple[Var, ...],
    *,
    interleaved: bool = False,
) -> PrimFunc:
    """out = q rotated; cache[slot of token n] = k rotated, v. Rotation as ops.attention.rotate."""
    q, k, v = qkv
    dim = cache.head_dim
    heads = int(const_value(q.shape[1]) or 0) // dim

    def token(n: Var, page: Expr, slot: Expr) -> Stmt:
        def query(h: Var) -> Stmt:
            def put(d: Expr, x: Expr) -> Stmt:
                return store(out, (n, h * dim + d), x)

            return _rotate(_Turn(n, q, angles, h * dim, dim, interleaved), put, _LANES)

        def key(h: Var) -> Stmt:
            turn = _Turn(n, k, angles, h * dim, dim, interleaved)
            return _Slot(cache, page, 0, h, slot).fill(lambda put, lanes: _rotate(turn, put, lanes))

        def value(h: Var) -> Stmt:
            def copied(put: _Put, lanes: int) -> Stmt:
                return _channels(dim, lanes, lambda d: put(d, cast(F32, v[n, h * dim + d])))

            return _Slot(cache, page, 1, h, slot).fill(copied)

        return seq(
            loop("h", heads, query),
            loop("h", cache.kv_heads, key),
            loop("h", cache.kv_heads, value),
        )

    body = parallel("n", q.shape[0], lambda n: _at_slot(n, index, cache.page_size, token))
    params = (q, k, v, *angles, *cache.buffers, *index.buffers, out)
    return PrimFunc(name, params, (*dims, LAYER), body)


def _at_slot(
    n: Var, index: StepIndex, page_size: int, body: Callable[[Var, Expr, Expr], Stmt]
) -> Stmt:
    """body(n, page, slot in page) for token n."""
    position = index.positions[n]
    entry = index.page_indptr[index.seq_ids[n]] + position // page_size
    return let(
        "slot",
        position % page_size,
        lambda slot: let("page", index.page_table[entry], lambda page: body(n, page, slot)),
    )


def _channels(dim: int, lanes: int, body: Callable[[Expr], Stmt]) -> Stmt:
    """body(d) for every channel of a head, in vectors of `lanes` where they divide it."""
    lanes = gcd(dim, lanes)
    return loop("o", dim // lanes, lambda o: vector("i", lanes, lambda i: body(o * lanes + i)))


@dataclass(frozen=True, slots=True)
class _Slot:
    """Where one key (0) or value (1) of a head goes."""

    cache: CacheLayout
    page: Expr
    which: int
    head: Expr
    slot: Expr

    def fill(self, write: Callable[[_Put, int], Stmt]) -> Stmt:
        """Store what `write(put, lanes)` puts, element by element."""
        if self.cache.scales is None:
            return write(self.put, _LANES if self.which else 1)  # elements of a key lie apart
        dim = self.cache.head_dim
        row = Buffer("row", F32, (wrap(dim),), "local")
        filled = write(lambda d, x: store(row, d, x), _LANES)
        return Alloc(row, seq(filled, _largest(row, dim, lambda most: self.quantize(row, most))))

    def put(self, d: Expr, x: Expr) -> Store:
        cache = self.cache
        place = (
            cache.value(self.page, self.head, self.slot, d)
            if self.which
            else cache.key(self.page, self.head, d, self.slot)
        )
        return Store(place.buffer, place.index, cast(place.buffer.dtype, x))

    def quantize(self, row: Buffer, most: Expr) -> Stmt:
        """Numbers to the nearest of 255 steps; the scale is what its f16 can hold."""
        place = self.cache.scale(self.page, self.which, self.head, self.slot)

        def scaled(scale: Var) -> Stmt:
            inverse = select(wrap(0.0) < scale, wrap(1.0) / scale, 0.0)
            return seq(
                Store(place.buffer, place.index, cast(F16, scale)), let("inverse", inverse, rounded)
            )

        def rounded(inverse: Var) -> Stmt:
            def one(d: Expr) -> Stmt:
                steps = minimum(maximum(row[d] * inverse, -_STEPS), _STEPS)
                return self.put(d, Unary("floor", steps + 0.5))

            return _channels(self.cache.head_dim, _LANES if self.which else 1, one)

        return let("scale", cast(F32, cast(F16, most / _STEPS)), scaled)


def _largest(row: Buffer, dim: int, body: Callable[[Expr], Stmt]) -> Stmt:
    """body(largest magnitude of a row)."""
    lanes = gcd(dim, _LANES)
    most = Buffer("most", F32, (wrap(lanes),), "local")

    def take(o: Var) -> Stmt:
        def one(i: Var) -> Stmt:
            return store(most, i, maximum(most[i], Unary("abs", row[o * lanes + i])))

        return vector("i", lanes, one)

    clear = vector("i", lanes, lambda i: store(most, i, 0.0))
    gather = loop("i", lanes, lambda i: store(most, 0, maximum(most[0], most[i])))
    return Alloc(most, seq(clear, loop("o", dim // lanes, take), gather, body(most[0])))


@dataclass(frozen=True, slots=True)
class _Turn:
    """One head of row n, from channel `base` on, and how it is rotated."""

    n: Var
    x: Buffer
    angles: tuple[Buffer, Buffer]
    base: Expr
    dim: int
    interleaved: bool


def _rotate(turn: _Turn, put: _Put, lanes: int) -> Stmt:
    """put(d, rotated element d) for one head. Neighbours are no vector: they go one by one."""
    (cosine, sine), n, x, base, dim = turn.angles, turn.n, turn.x, turn.base, turn.dim
    half = int(const_value(cosine.shape[1]) or 0)
    lanes = 1 if turn.interleaved else gcd(half, lanes)

    def pair(i: Expr) -> Stmt:
        first, second = rotary_pair(i, half, turn.interleaved)
        low, high = cast(F32, x[n, base + first]), cast(F32, x[n, base + second])
        return seq(
            put(first, low * cosine[n, i] - high * sine[n, i]),
            put(second, high * cosine[n, i] + low * sine[n, i]),
        )

    turned = loop("o", half // lanes, lambda o: vector("i", lanes, lambda i: pair(o * lanes + i)))
    if 2 * half == dim:
        return turned
    rest = loop(
        "d", dim - 2 * half, lambda d: put(d + 2 * half, cast(F32, x[n, base + 2 * half + d]))
    )
    return seq(turned, rest)
