"""Paged flash attention for targets with work groups: a group for some queries and a kv head.

The same sums in the same order as in `attention`, so the same bits: scores token by token, their
maxima and sums by slots of a page and then across, values token by token, pieces in order. What
differs is who computes what (`attention_shared`).
"""

from __future__ import annotations

from collections.abc import Callable

from sterna.base.dtype import F32
from sterna.ir.expr import Buffer, Expr, Var, cast, exp, maximum, minimum, wrap
from sterna.ir.loop import Alloc, If, PrimFunc, Stmt, seq, store
from sterna.kernels.attention_rows import Queries
from sterna.kernels.attention_shared import GroupMemory
from sterna.kernels.attention_spec import AttentionSpec, reaches
from sterna.kernels.build import let, loop, parallel, threads
from sterna.kernels.kv_cache import LAYER

_MOST_ROWS = 8  # times the registers of a score, or of a piece's result and of all pieces'


def group_queries(s: AttentionSpec, tile: int, shared_bytes: int) -> int:
    """Queries of a tile that a group takes together: each key and value is read once for them.

    As many as shared memory holds beside each other, and registers: a power of two that divides
    the tile. One where the heads of a kv head, or a long piece's scores, fill a group already.
    """
    fitting = shared_bytes // GroupMemory.row_bytes(s)
    most = min(_MOST_ROWS, fitting) // s.group
    return next((n for n in (32, 16, 8, 4, 2) if n <= most and tile % n == 0), 1)


def attention_tiles_groups(
    name: str, s: AttentionSpec, dims: tuple[Var, ...], tile: int, queries: int
) -> PrimFunc:
    """A group for each (tile, some `queries` of it, kv head): all pieces in order."""
    tiles, kv_heads, parts = s.tile_start.shape[0], s.cache.kv_heads, tile // queries

    def group(w: Var) -> Stmt:
        head, part, t = w % kv_heads, w // kv_heads % parts, w // (kv_heads * parts)
        first = part * queries

        def some(q: Queries) -> Stmt:
            memory = GroupMemory.of(s, queries)
            reached = minimum(q.last // s.piece + 1, s.pieces)

            def piece(c: Var) -> Stmt:
                run = seq(memory.piece(q, c), memory.merge(q, c))
                return If(reaches(s, q.position, q.last, c), run) if s.limited else run

            return memory.scoped(
                seq(memory.start(q), loop("piece", reached, piece), memory.finish(q))
            )

        def counted(size: Var) -> Stmt:
            if queries == 1:
                run = _at_queries(s, t, first, head, wrap(1), some)
            else:
                run = let(
                    "queries",
                    minimum(size - first, queries),
                    lambda count: _at_queries(s, t, first, head, count, some),
                    lo=1,
                )
            return If(first < size, run)

        return let("size", s.tile_size[t], counted)

    body = parallel("group", tiles * parts * kv_heads, group)
    return PrimFunc(name, s.params, (*dims, LAYER), body)


def attention_split_groups(
    name: str, s: AttentionSpec, dims: tuple[Var, ...], partial: Buffer
) -> PrimFunc:
    """A group for each piece of a query, then one for each head that merges them in order.

    `partial` [n, heads, pieces, out_dim + 2] holds o, m and l of each piece; tiles hold one token.
    """
    kv_heads = s.cache.kv_heads

    def work(w: Var) -> Stmt:
        c, head, t = w % s.pieces, w // s.pieces % kv_heads, w // (s.pieces * kv_heads)

        def query(q: Queries) -> Stmt:
            memory = GroupMemory.of(s, 1)
            run = seq(memory.start(q), memory.piece(q, c), memory.save(q, c, partial))
            return If(reaches(s, q.position, q.position, c), memory.scoped(run))

        return _at_queries(s, t, wrap(0), head, wrap(1), query)

    def join(w: Var) -> Stmt:
        n, h = w // s.heads, w % s.heads
        return let("position", s.positions[n], lambda p: _merge_pieces(s, partial, n, h, p))

    return PrimFunc(
        name,
        (*s.params, partial),
        (*dims, LAYER),
        seq(
            parallel("group", s.tile_start.shape[0] * kv_heads * s.pieces, work),
            parallel("row", s.q.shape[0] * s.heads, join),
        ),
    )


def _at_queries(
    s: AttentionSpec,
    t: Expr,
    first: Expr,
    head: Expr,
    count: Expr,
    body: Callable[[Queries], Stmt],
) -> Stmt:
    """body(`count` queries of tile t, from number `first` on)."""

    def at(n: Var) -> Stmt:
        def placed(position: Var) -> Stmt:
            pages = s.page_indptr[s.tile_seq[t]]
            return let(
                "pages", pages, lambda p: body(Queries(n, count, position, p, head, s.causal))
            )

        return let("position", s.positions[n], placed, lo=0)

    return let("n", s.tile_start[t] + first, at, lo=0)


def _merge_pieces(s: AttentionSpec, partial: Buffer, n: Expr, h: Expr, position: Var) -> Stmt:
    """Each thread merges one channel; all of them make the same m and l on the way."""
    state = Buffer("state", F32, (wrap(3),), "register")  # m, l, o

    def channel(d: Var) -> Stmt:
        def one(c: Var) -> Stmt:
            at = (n, h, c)

            def scaled(new: Var, old: Var, fresh: Var) -> Stmt:
                total = state[1] * old + partial[(*at, s.out_dim + 1)] * fresh
                return seq(
                    store(state, 1, total),
                    store(state, 2, state[2] * old + partial[(*at, d)] * fresh),
                    store(state, 0, new),
                )

            run = let(
                "new",
                maximum(state[0], partial[(*at, s.out_dim)]),
                lambda new: let(
                    "old",
                    exp(state[0] - new),
                    lambda old: let(
                        "fresh",
                        exp(partial[(*at, s.out_dim)] - new),
                        lambda fresh: scaled(new, old, fresh),
                    ),
                ),
            )
            return If(reaches(s, position, position, c), run)

        reached = minimum(position // s.piece + 1, s.pieces)
        m, total = s.head_sink(h)
        start = seq(store(state, 0, m), store(state, 1, total), store(state, 2, 0.0))
        result = cast(s.out.dtype, state[2] / state[1])
        done = store(s.out, (n, h * s.out_dim + d), result)
        return Alloc(state, seq(start, loop("piece", reached, one), done))

    return threads("d", s.out_dim, channel)
