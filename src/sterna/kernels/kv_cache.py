"""Writing a step's keys and values into the paged cache, with rotary embedding on the way.

Cache layout, one page of one layer and kv head: keys as [head_dim, page_size], so that the
scores of a page's tokens are one vector; values as [page_size, head_dim]. The pages of a
sequence need not be neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd

from sterna.base.dtype import F32, DType
from sterna.ir.expr import Buffer, Expr, Load, Var, cast, const_value, wrap
from sterna.ir.loop import PrimFunc, Stmt, Store, seq, store
from sterna.kernels.build import let, loop, parallel, vector
from sterna.ops.attention import rotary_pair

LAYER = Var("layer", lo=0)  # which layer of the cache a kernel works on; a launch argument
_LANES = 16


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """Where tokens lie in the state tensor [pages, layers, 2, kv_heads, page_size * head_dim]."""

    buffer: Buffer
    page_size: int
    head_dim: int

    @property
    def kv_heads(self) -> int:
        return int(const_value(self.buffer.shape[3]) or 0)

    @staticmethod
    def of(
        name: str,
        dtype: DType,
        pages: Expr,
        layers: Expr,
        kv_heads: int,
        page_size: int,
        head_dim: int,
    ) -> CacheLayout:
        """The layout of a state tensor made here."""
        shape = (pages, layers, wrap(2), wrap(kv_heads), wrap(page_size * head_dim))
        return CacheLayout(Buffer(name, dtype, shape), page_size, head_dim)

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """What kernels take as parameters."""
        return (self.buffer,)

    def scaled_key(self, page: Expr, head: Expr, t: Expr, product: Expr) -> Expr:
        """A product with the stored key in slot t, as a product with the key."""
        return product

    @property
    def line(self) -> int:
        """Neighbouring elements that a cache line of the processor holds."""
        return 64 // self.buffer.dtype.bytes

    def key(self, page: Expr, head: Expr, d: Expr, t: Expr) -> Load:
        """Element d of the key in slot t of a page."""
        return self.buffer[page, LAYER, 0, head, d * self.page_size + t]

    def value(self, page: Expr, head: Expr, t: Expr, d: Expr) -> Load:
        """Element d of the value in slot t of a page."""
        return self.buffer[page, LAYER, 1, head, t * self.head_dim + d]


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
    name: str, k: Buffer, v: Buffer, cache: CacheLayout, index: StepIndex, dims: tuple[Var, ...]
) -> PrimFunc:
    """cache[slot of token n] = k[n], v[n], for every token. k, v: [n, kv_heads * head_dim]."""
    dim = cache.head_dim

    def token(n: Var, page: Expr, slot: Expr) -> Stmt:
        def key(h: Var) -> Stmt:
            return loop(
                "d", dim, lambda d: _put(cache.key(page, h, d, slot), cast(F32, k[n, h * dim + d]))
            )

        return seq(loop("h", cache.kv_heads, key), _put_values(n, v, cache, page, slot))

    body = parallel("n", k.shape[0], lambda n: _at_slot(n, index, cache.page_size, token))
    return PrimFunc(name, (k, v, cache.buffer, *index.buffers), (*dims, LAYER), body)


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
            def put(d: Expr, x: Expr) -> Stmt:
                return _put(cache.key(page, h, d, slot), x)

            return _rotate(_Turn(n, k, angles, h * dim, dim, interleaved), put, 1)

        return seq(
            loop("h", heads, query),
            loop("h", cache.kv_heads, key),
            _put_values(n, v, cache, page, slot),
        )

    body = parallel("n", q.shape[0], lambda n: _at_slot(n, index, cache.page_size, token))
    params = (q, k, v, *angles, cache.buffer, *index.buffers, out)
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


def _put(place: Load, value: Expr) -> Store:
    return Store(place.buffer, place.index, cast(place.buffer.dtype, value))


def _put_values(n: Var, v: Buffer, cache: CacheLayout, page: Expr, slot: Expr) -> Stmt:
    dim = cache.head_dim
    lanes = gcd(dim, _LANES)

    def element(h: Var, o: Var, i: Var) -> Stmt:
        d = o * lanes + i
        return _put(cache.value(page, h, slot, d), cast(F32, v[n, h * dim + d]))

    return loop(
        "h",
        cache.kv_heads,
        lambda h: loop("o", dim // lanes, lambda o: vector("i", lanes, lambda i: element(h, o, i))),
    )


@dataclass(frozen=True, slots=True)
class _Turn:
    """One head of row n, from channel `base` on, and how it is rotated."""

    n: Var
    x: Buffer
    angles: tuple[Buffer, Buffer]
    base: Expr
    dim: int
    interleaved: bool


def _rotate(turn: _Turn, put: Callable[[Expr, Expr], Stmt], lanes: int) -> Stmt:
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
