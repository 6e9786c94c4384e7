"""Paged flash attention: softmax(q k^T) v over cached pages, never more than a piece at a time.

The cached tokens of a sequence are cut into pieces of fixed length. For each piece and query the
kernel makes the largest score m, the sum l of exp(score - m), and o = sum of exp(score - m) * v;
pieces are merged in order by the online-softmax rule. Which query attends to which piece, and
the order of every sum, follow from positions alone: so one token at a time, a chunked prompt and
a whole prompt give the same bits, and pieces may run on different threads.

Sources: Milakov and Gimelshein 2018, "Online normalizer calculation for softmax"
(arXiv:1805.02867); Dao et al. 2022, "FlashAttention" (arXiv:2205.14135); Dao et al. 2023,
"Flash-Decoding"; Kwon et al. 2023, "PagedAttention" (arXiv:2309.06180).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import gcd

from sterna.base.dtype import F32
from sterna.ir.expr import (
    Buffer,
    Expr,
    ExprLike,
    Var,
    cast,
    equals,
    exp,
    maximum,
    minimum,
    wrap,
)
from sterna.ir.loop import Alloc, If, PrimFunc, Stmt, seq, store
from sterna.kernels.attention_rows import Queries, Rows
from sterna.kernels.attention_scores import Scores
from sterna.kernels.attention_spec import LANES, AttentionSpec, reaches
from sterna.kernels.attention_values import Values
from sterna.kernels.build import let, loop, parallel, vector
from sterna.kernels.kv_cache import LAYER

__all__ = ["AttentionSpec", "attention_split", "attention_tiles"]


def attention_tiles(name: str, s: AttentionSpec, dims: tuple[Var, ...], tile: int) -> PrimFunc:
    """One work item for each (query tile, kv head): pieces in order, all rows for each."""
    tiles = s.tile_start.shape[0]

    def item(w: Var) -> Stmt:
        t, head = w // s.cache.kv_heads, w % s.cache.kv_heads

        def with_tile(q: Queries) -> Stmt:
            alone = replace(q, count=wrap(1))  # as when many sequences decode
            return If(equals(q.count, 1), _tile(s, alone, 1), _tile(s, q, tile))

        return _queries(s, t, head, with_tile)

    return PrimFunc(
        name, s.params, (*dims, LAYER), parallel("item", tiles * s.cache.kv_heads, item)
    )


def _tile(s: AttentionSpec, q: Queries, most: int) -> Stmt:
    """The queries of a tile, at most so many, with memory of their own."""
    rows = Rows.of(s, most)
    state = _State.allocate(s, rows.rows)
    used = rows.blocks(q) * rows.block

    def piece(c: Var) -> Stmt:
        run = _piece(rows, q, c, state.take, state.add)
        return If(reaches(s, q.position, q.last, c), run) if s.limited else run

    body = seq(
        rows.load(q),
        loop("r", used, lambda r: state.reset(r, q.head * s.group + r % s.group)),
        loop("piece", minimum(q.last // s.piece + 1, s.pieces), piece),
        loop("r", q.count * s.group, lambda r: _write_row(s, state, q, r)),
    )
    return state.scoped(rows.scoped(body))


def attention_split(
    name: str, s: AttentionSpec, dims: tuple[Var, ...], partial: Buffer
) -> PrimFunc:
    """Pieces of one query on different threads, then a merge in order; for few queries.

    `partial` [n, heads, pieces, out_dim + 2] holds o, m and l of each piece. Tiles must hold one
    token each.
    """
    rows = Rows.of(s, 1)
    state = _State.allocate(s, 1)

    def item(w: Var) -> Stmt:
        c, rest = w % s.pieces, w // s.pieces
        head, t = rest % s.cache.kv_heads, rest // s.cache.kv_heads

        def with_query(q: Queries) -> Stmt:
            def at(r: Expr) -> tuple[Expr, Expr, Expr]:
                return q.start, head * s.group + minimum(r, s.group - 1), c

            def soft(r: Expr, m: Expr, total: Expr) -> Stmt:
                return seq(
                    store(partial, (*at(r), s.out_dim), m),
                    store(partial, (*at(r), s.out_dim + 1), total),
                )

            def keep(r: Expr, d: Expr, o: Expr) -> Stmt:
                return store(partial, (*at(r), d), o)

            run = seq(rows.load(q), _piece(rows, q, c, soft, keep))
            return If(reaches(s, q.position, q.position, c), run)

        return rows.scoped(_queries(s, t, head, with_query, one=True))

    def merge(w: Var) -> Stmt:
        n, h = w // s.heads, w % s.heads

        def one(c: Var, position: Var) -> Stmt:
            at = (n, h, c)
            taken = seq(
                state.take(0, partial[(*at, s.out_dim)], partial[(*at, s.out_dim + 1)]),
                _channels(s, lambda d: state.add(0, d, partial[(*at, d)])),
            )
            return If(reaches(s, position, position, c), taken)

        def pieces(position: Var) -> Stmt:
            reached = minimum(position // s.piece + 1, s.pieces)
            return seq(
                state.reset(0, h),
                loop("piece", reached, lambda c: one(c, position)),
                _channels(s, lambda d: _put(s, n, h * s.out_dim + d, state.result(0, d))),
            )

        return state.scoped(let("position", s.positions[n], pieces))

    work = parallel("item", s.tile_start.shape[0] * s.cache.kv_heads * s.pieces, item)
    join = parallel("row", s.q.shape[0] * s.heads, merge)
    return PrimFunc(name, (*s.params, partial), (*dims, LAYER), seq(work, join))


def _piece(
    rows: Rows,
    q: Queries,
    c: Expr,
    soft: Callable[[Expr, Expr, Expr], Stmt],
    keep: Callable[[Expr, Expr, Expr], Stmt],
) -> Stmt:
    """All rows against piece c.

    `soft(r, m, l)` takes what a row made of its scores, `keep(r, d, o)` an element of its output,
    both only for rows that see a token of the piece.
    """

    def with_count(count: Var) -> Stmt:
        scores, values = Scores(rows, q, c, count), Values(rows, q, c, count)
        return seq(scores.all_scores(), scores.soften(soft), values.weigh(keep))

    return let(
        "count", minimum(q.last + 1 - c * rows.spec.piece, rows.spec.piece), with_count, lo=1
    )


def _queries(
    s: AttentionSpec, t: Expr, head: Expr, body: Callable[[Queries], Stmt], *, one: bool = False
) -> Stmt:
    """body(the queries of tile t); `one`: the caller vouches that it holds one."""

    def with_start(start: Var) -> Stmt:
        def with_count(count: Expr) -> Stmt:
            def with_position(position: Var) -> Stmt:
                pages = s.page_indptr[s.tile_seq[t]]
                return let(
                    "pages",
                    pages,
                    lambda p: body(Queries(start, count, position, p, head, s.causal)),
                )

            return let("position", s.positions[start], with_position, lo=0)

        return with_count(wrap(1)) if one else let("count", s.tile_size[t], with_count, lo=1)

    return let("start", s.tile_start[t], with_start)


def _channels(s: AttentionSpec, body: Callable[[Expr], Stmt]) -> Stmt:
    """body(d) for every channel of a head's result, in vectors."""
    lanes = gcd(s.out_dim, LANES)

    def some(o: Var) -> Stmt:
        return vector("d", lanes, lambda d: body(o * lanes + d))

    return loop("o", s.out_dim // lanes, some)


def _put(s: AttentionSpec, n: Expr, channel: Expr, value: Expr) -> Stmt:
    return store(s.out, (n, channel), cast(s.out.dtype, value))


def _write_row(s: AttentionSpec, state: _State, q: Queries, r: Var) -> Stmt:
    base = (q.head * s.group + r % s.group) * s.out_dim
    n = q.start + r // s.group
    return _channels(s, lambda d: _put(s, n, base + d, state.result(r, d)))


@dataclass(frozen=True, slots=True)
class _State:
    """Running m, l, o of rows, merged piece by piece: both sides scaled to the larger maximum."""

    spec: AttentionSpec
    m: Buffer  # [rows]
    total: Buffer  # [rows] sums of exp(score - m)
    old: Buffer  # [rows] what the last merge scales the pieces before by
    fresh: Buffer  # [rows] and the new one
    o: Buffer  # [rows, out_dim]

    @staticmethod
    def allocate(s: AttentionSpec, rows: int) -> _State:
        def one_each(name: str) -> Buffer:
            return Buffer(name, F32, (wrap(rows),), "local")

        return _State(
            s,
            one_each("state_m"),
            one_each("state_l"),
            one_each("old"),
            one_each("fresh"),
            Buffer("state_o", F32, (wrap(rows), wrap(s.out_dim)), "scratch"),
        )

    def scoped(self, body: Stmt) -> Stmt:
        for buffer in (self.m, self.total, self.old, self.fresh, self.o):
            body = Alloc(buffer, body)
        return body

    def reset(self, r: ExprLike, head: Expr) -> Stmt:
        """As before the first piece of a query head."""
        clear = _channels(self.spec, lambda d: store(self.o, (r, d), 0.0))
        m, total = self.spec.head_sink(head)
        return seq(store(self.m, r, m), store(self.total, r, total), clear)

    def take(self, r: ExprLike, m: Expr, total: Expr) -> Stmt:
        """Take in m and l of a piece; its output follows through `add`."""

        def scaled(new: Var) -> Stmt:
            return seq(
                store(self.old, r, exp(self.m[r] - new)),
                store(self.fresh, r, exp(m - new)),
                store(self.total, r, self.total[r] * self.old[r] + total * self.fresh[r]),
                store(self.m, r, new),
            )

        return let("new", maximum(self.m[r], m), scaled)

    def add(self, r: ExprLike, d: Expr, o: Expr) -> Stmt:
        return store(self.o, (r, d), self.o[r, d] * self.old[r] + o * self.fresh[r])

    def result(self, r: ExprLike, d: Expr) -> Expr:
        return self.o[r, d] / self.total[r]
