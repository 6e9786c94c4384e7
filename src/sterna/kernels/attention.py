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
from dataclasses import dataclass
from math import gcd

from sterna.base.dtype import F32
from sterna.ir.expr import Buffer, Expr, ExprLike, Var, cast, exp, maximum, minimum, wrap
from sterna.ir.loop import Alloc, If, PrimFunc, Stmt, seq, store
from sterna.kernels.attention_piece import (
    LANES,
    LOW,
    AttentionSpec,
    Piece,
    query_piece,
    reaches,
)
from sterna.kernels.build import let, loop, parallel, vector
from sterna.kernels.kv_cache import LAYER

__all__ = ["AttentionSpec", "attention_split", "attention_tiles"]


def attention_tiles(name: str, s: AttentionSpec, dims: tuple[Var, ...], tile: int) -> PrimFunc:
    """One work item for each (query tile, kv head): pieces in order, all queries for each."""
    state = _State.allocate(s, tile)
    tiles = s.tile_start.shape[0]

    def item(w: Var) -> Stmt:
        head, t = w % s.cache.kv_heads, w // s.cache.kv_heads
        first, size, sequence = s.tile_start[t], s.tile_size[t], s.tile_seq[t]

        def with_tile(start: Var, count: Var, pages: Var) -> Stmt:
            last = s.positions[start + count - 1]
            reached = minimum(last // s.piece + 1, s.pieces)

            def piece(c: Var) -> Stmt:
                return loop(
                    "query", count, lambda i: _one_query(s, state, start, i, head, pages, c)
                )

            return seq(
                loop("query", count, lambda i: state.reset(s, i)),
                loop("piece", reached, piece),
                loop("query", count, lambda i: state.finish(s, start + i, i, head)),
            )

        body = let(
            "start",
            first,
            lambda a: let(
                "count",
                size,
                lambda b: let("pages", s.page_indptr[sequence], lambda c: with_tile(a, b, c)),
            ),
        )
        return state.scoped(state.piece.scoped(body))

    return PrimFunc(
        name, s.params, (*dims, LAYER), parallel("item", tiles * s.cache.kv_heads, item)
    )


def attention_split(
    name: str, s: AttentionSpec, dims: tuple[Var, ...], partial: Buffer
) -> PrimFunc:
    """Pieces of one query on different threads, then a merge in order; for few queries.

    `partial` [n, heads, pieces, dim + 2] holds o, m and l of each piece. Tiles must hold one
    token each.
    """
    state = _State.allocate(s, 1)

    def item(w: Var) -> Stmt:
        c, rest = w % s.pieces, w // s.pieces
        head, t = rest % s.cache.kv_heads, rest // s.cache.kv_heads

        def keep(n: Expr) -> Callable[[Piece], Stmt]:
            return lambda p: loop(
                "g", s.group, lambda g: p.save(s, partial, n, head * s.group + g, c, g)
            )

        def work(n: Var, position: Var, pages: Var) -> Stmt:
            run = query_piece(s, state.piece, n, position, head, pages, c, keep(n))
            return If(reaches(s, position, c), run)

        start = s.tile_start[t]
        body = let(
            "start",
            start,
            lambda n: let(
                "position",
                s.positions[n],
                lambda p: let("pages", s.page_indptr[s.tile_seq[t]], lambda g: work(n, p, g)),
            ),
        )
        return state.piece.scoped(body)

    def merge(w: Var) -> Stmt:
        n, h = w // s.heads, w % s.heads

        def one(c: Var, position: Var) -> Stmt:
            at = (n, h, c)
            taken = state.merge(
                s,
                0,
                0,
                partial[(*at, s.dim)],
                partial[(*at, s.dim + 1)],
                lambda d: partial[(*at, d)],
            )
            return If(reaches(s, position, c), taken)

        def pieces(position: Var) -> Stmt:
            return seq(
                state.reset_head(s, 0, 0),
                loop(
                    "piece", minimum(position // s.piece + 1, s.pieces), lambda c: one(c, position)
                ),
                state.write(s, n, h, 0, 0),
            )

        return state.scoped(let("position", s.positions[n], pieces))

    work = parallel("item", s.tile_start.shape[0] * s.cache.kv_heads * s.pieces, item)
    join = parallel("row", s.q.shape[0] * s.heads, merge)
    return PrimFunc(name, (*s.params, partial), (*dims, LAYER), seq(work, join))


def _one_query(
    s: AttentionSpec, state: _State, start: Var, i: Var, head: Expr, pages: Var, c: Var
) -> Stmt:
    def into_state(p: Piece) -> Stmt:
        def one(g: Var) -> Stmt:
            return state.merge(s, i, g, p.m[g], p.total[g], lambda d: p.o[g, d])

        return loop("g", s.group, one)

    def at(position: Var) -> Stmt:
        run = query_piece(s, state.piece, start + i, position, head, pages, c, into_state)
        return If(reaches(s, position, c), run)

    return let("position", s.positions[start + i], at)


@dataclass(frozen=True, slots=True)
class _State:
    """Running m, l, o of the queries of a tile, merged piece by piece."""

    m: Buffer  # [tile, group]
    total: Buffer  # [tile, group] sums of exp(score - m)
    o: Buffer  # [tile, group, dim]
    piece: Piece

    @staticmethod
    def allocate(s: AttentionSpec, tile: int) -> _State:
        def local(name: str, *shape: int) -> Buffer:
            scope = "scratch" if len(shape) == 3 else "local"
            return Buffer(name, F32, tuple(wrap(d) for d in shape), scope)

        return _State(
            local("state_m", tile, s.group),
            local("state_l", tile, s.group),
            local("state_o", tile, s.group, s.dim),
            Piece.allocate(s),
        )

    def scoped(self, body: Stmt) -> Stmt:
        for buffer in (self.m, self.total, self.o):
            body = Alloc(buffer, body)
        return body

    def reset(self, s: AttentionSpec, i: Expr) -> Stmt:
        return loop("g", s.group, lambda g: self.reset_head(s, i, g))

    def reset_head(self, s: AttentionSpec, i: ExprLike, g: ExprLike) -> Stmt:
        lanes = gcd(s.dim, LANES)
        clear = loop(
            "o",
            s.dim // lanes,
            lambda o: vector("d", lanes, lambda d: store(self.o, (i, g, o * lanes + d), 0.0)),
        )
        return seq(store(self.m, (i, g), LOW), store(self.total, (i, g), 0.0), clear)

    def merge(
        self,
        s: AttentionSpec,
        i: ExprLike,
        g: ExprLike,
        m: Expr,
        total: Expr,
        o: Callable[[Expr], Expr],
    ) -> Stmt:
        """Take in a piece: both sides are scaled to the larger of the two maxima."""
        lanes = gcd(s.dim, LANES)

        def scaled(new: Var, old: Var, fresh: Var) -> Stmt:
            def channels(q: Var) -> Stmt:
                def one(d: Var) -> Stmt:
                    at = (i, g, q * lanes + d)
                    return store(self.o, at, self.o[at] * old + o(q * lanes + d) * fresh)

                return vector("d", lanes, one)

            return seq(
                store(self.total, (i, g), self.total[i, g] * old + total * fresh),
                store(self.m, (i, g), new),
                loop("q", s.dim // lanes, channels),
            )

        return let(
            "new",
            maximum(self.m[i, g], m),
            lambda new: let(
                "old",
                exp(self.m[i, g] - new),
                lambda old: let("fresh", exp(m - new), lambda fresh: scaled(new, old, fresh)),
            ),
        )

    def finish(self, s: AttentionSpec, n: Expr, i: Expr, head: Expr) -> Stmt:
        return loop("g", s.group, lambda g: self.write(s, n, head * s.group + g, i, g))

    def write(self, s: AttentionSpec, n: Expr, h: Expr, i: ExprLike, g: ExprLike) -> Stmt:
        """out[n, h] = o / l."""
        lanes = gcd(s.dim, LANES)

        def channels(o: Var) -> Stmt:
            def one(d: Var) -> Stmt:
                c = o * lanes + d
                value = self.o[i, g, c] / self.total[i, g]
                return store(s.out, (n, h * s.dim + c), cast(s.out.dtype, value))

            return vector("d", lanes, one)

        return loop("o", s.dim // lanes, channels)
