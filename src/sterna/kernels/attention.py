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
from sterna.ir.expr import (
    Buffer,
    Expr,
    ExprLike,
    Var,
    cast,
    exp,
    fma,
    logical_and,
    logical_or,
    maximum,
    minimum,
    select,
    wrap,
)
from sterna.ir.loop import Alloc, If, PrimFunc, Stmt, seq, store
from sterna.kernels.build import let, loop, parallel, unroll, vector
from sterna.kernels.kv_cache import LAYER, CacheLayout

_LOW = -1.0e30  # the score of a token that is not attended to: exp(_LOW - m) is 0
_LANES = 16


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Sizes and buffers of one attention call. q and out: [n, heads * head_dim] in f32."""

    heads: int
    scale: float
    window: int  # tokens seen, the query's own included; -1 for all
    sinks: int  # first tokens of a sequence, seen whatever the window
    piece: int  # cached tokens in a piece: a multiple of the page size
    pieces: int  # most pieces that the context window holds
    q: Buffer
    cache: CacheLayout
    positions: Buffer
    page_indptr: Buffer
    page_table: Buffer
    tile_start: Buffer
    tile_size: Buffer
    tile_seq: Buffer
    out: Buffer

    @property
    def group(self) -> int:
        """Query heads that share a kv head."""
        return self.heads // self.cache.kv_heads

    @property
    def dim(self) -> int:
        return self.cache.head_dim

    @property
    def params(self) -> tuple[Buffer, ...]:
        """Inputs in the order of the operator's arguments, then the output."""
        index = (self.positions, self.page_indptr, self.page_table)
        tiles = (self.tile_start, self.tile_size, self.tile_seq)
        return (self.q, self.cache.buffer, *index, *tiles, self.out)


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
                    "query", count, lambda i: _query_piece(s, state, start, i, head, pages, c)
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

        def keep(n: Expr) -> Callable[[_Piece], Stmt]:
            return lambda p: loop(
                "g", s.group, lambda g: p.save(s, partial, n, head * s.group + g, c, g)
            )

        def work(n: Var, position: Var, pages: Var) -> Stmt:
            run = _piece(s, state.piece, n, position, head, pages, c, keep(n))
            return If(_reaches(s, position, c), run)

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
            return If(_reaches(s, position, c), taken)

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


def _reaches(s: AttentionSpec, position: Expr, c: Expr) -> Expr:
    """Whether a query sees any token of piece c."""
    first = c * s.piece
    reached = first <= position
    if s.window < 0:
        return reached
    seen = wrap(position - s.window) < first + (s.piece - 1)
    inside = logical_or(seen, first < wrap(s.sinks)) if s.sinks else seen
    return logical_and(reached, inside)


def _attends(s: AttentionSpec, position: Expr, token: Expr) -> Expr:
    """Whether a query sees the token at a position."""
    causal = token <= position
    if s.window < 0:
        return causal
    near = wrap(position - s.window) < token
    inside = logical_or(near, token < wrap(s.sinks)) if s.sinks else near
    return logical_and(causal, inside)


def _query_piece(
    s: AttentionSpec, state: _State, start: Var, i: Var, head: Expr, pages: Var, c: Var
) -> Stmt:
    def into_state(p: _Piece) -> Stmt:
        def one(g: Var) -> Stmt:
            return state.merge(s, i, g, p.m[g], p.l[g], lambda d: p.o[g, d])

        return loop("g", s.group, one)

    def at(position: Var) -> Stmt:
        run = _piece(s, state.piece, start + i, position, head, pages, c, into_state)
        return If(_reaches(s, position, c), run)

    return let("position", s.positions[start + i], at)


@dataclass(frozen=True, slots=True)
class _Piece:
    """What one (query, kv head) makes of a piece, for each query head of the group."""

    scores: Buffer  # [group, piece]
    m: Buffer  # [group]
    l: Buffer  # [group]  # noqa: E741
    o: Buffer  # [group, dim]
    lanes: Buffer  # [16] a vector being reduced

    @staticmethod
    def allocate(s: AttentionSpec) -> _Piece:
        def local(name: str, *shape: int) -> Buffer:
            return Buffer(name, F32, tuple(wrap(d) for d in shape), "local")

        return _Piece(
            local("scores", s.group, s.piece),
            local("piece_m", s.group),
            local("piece_l", s.group),
            local("piece_o", s.group, s.dim),
            local("lanes", _LANES),
        )

    def scoped(self, body: Stmt) -> Stmt:
        for buffer in (self.scores, self.m, self.l, self.o, self.lanes):
            body = Alloc(buffer, body)
        return body

    def save(self, s: AttentionSpec, partial: Buffer, n: Expr, h: Expr, c: Expr, g: Expr) -> Stmt:
        lanes = gcd(s.dim, _LANES)

        def copy(o: Var) -> Stmt:
            return vector(
                "i",
                lanes,
                lambda i: store(partial, (n, h, c, o * lanes + i), self.o[g, o * lanes + i]),
            )

        return seq(
            loop("o", s.dim // lanes, copy),
            store(partial, (n, h, c, s.dim), self.m[g]),
            store(partial, (n, h, c, s.dim + 1), self.l[g]),
        )


def _piece(
    s: AttentionSpec,
    p: _Piece,
    n: Expr,
    position: Expr,
    head: Expr,
    pages: Expr,
    c: Expr,
    done: Callable[[_Piece], Stmt],
) -> Stmt:
    """Scores, softmax sums and weighted values of one query against one piece; then `done`."""
    size = s.cache.page_size
    first = c * s.piece

    def with_count(count: Var) -> Stmt:
        used = (count + (size - 1)) // size

        def page(u: Expr) -> Expr:
            return s.page_table[pages + c * (s.piece // size) + u]

        def scores(u: Var) -> Stmt:
            return let("page", page(u), lambda q: _scores(s, p, n, position, head, q, first, u))

        def soften(g: Var) -> Stmt:
            return _soften(s, p, g, used)

        return seq(
            loop("u", used, scores),
            loop("g", s.group, soften),
            _weighted_values(s, p, head, count, used, page),
            done(p),
        )

    reach = minimum(position + 1 - first, s.piece)
    return let("count", reach, with_count, lo=1)


def _scores(
    s: AttentionSpec,
    p: _Piece,
    n: Expr,
    position: Expr,
    head: Expr,
    page: Expr,
    first: Expr,
    u: Expr,
) -> Stmt:
    """scores[g, u * page_size + t] = scale * q[g] . k[t] for the tokens t of a page."""
    size = s.cache.page_size
    dot = Buffer("dot", F32, (wrap(s.group), wrap(size)), "register")

    def clear(g: Var) -> Stmt:
        return vector("t", size, lambda t: store(dot, (g, t), 0.0))

    def accumulate(d: Var) -> Stmt:
        def one(g: Var) -> Stmt:
            q = cast(F32, s.q[n, (head * s.group + g) * s.dim + d])
            return vector(
                "t",
                size,
                lambda t: store(
                    dot, (g, t), fma(cast(F32, s.cache.key(page, head, d, t)), q, dot[g, t])
                ),
            )

        return unroll("g", s.group, one)

    def keep(g: Var) -> Stmt:
        def one(t: Var) -> Stmt:
            seen = _attends(s, position, first + u * size + t)
            return store(p.scores, (g, u * size + t), select(seen, dot[g, t] * s.scale, _LOW))

        return vector("t", size, one)

    return Alloc(
        dot,
        seq(unroll("g", s.group, clear), loop("d", s.dim, accumulate), unroll("g", s.group, keep)),
    )


def _soften(s: AttentionSpec, p: _Piece, g: Expr, used: Expr) -> Stmt:
    """m[g] = max of scores, scores = exp(scores - m), l[g] = their sum: by lanes, then across."""
    size = s.cache.page_size
    lane = Buffer("lane", F32, (wrap(size),), "register")

    def over_pages(start: float, body: Callable[[Var, Var], Stmt]) -> Stmt:
        spill = vector("t", size, lambda t: store(p.lanes, t, lane[t]))
        clear = vector("t", size, lambda t: store(lane, t, start))
        run = loop("u", used, lambda u: vector("t", size, lambda t: body(u, t)))
        return Alloc(lane, seq(clear, run, spill))

    def largest(u: Var, t: Var) -> Stmt:
        return store(lane, t, maximum(lane[t], p.scores[g, u * size + t]))

    def total(u: Var, t: Var) -> Stmt:
        at = u * size + t
        return let(
            "e",
            exp(p.scores[g, at] - p.m[g]),
            lambda e: seq(store(p.scores, (g, at), e), store(lane, t, lane[t] + e)),
        )

    return seq(
        over_pages(_LOW, largest),
        store(p.m, g, _LOW),
        loop("t", size, lambda t: store(p.m, g, maximum(p.m[g], p.lanes[t]))),
        over_pages(0.0, total),
        store(p.l, g, 0.0),
        loop("t", size, lambda t: store(p.l, g, p.l[g] + p.lanes[t])),
    )


def _weighted_values(
    s: AttentionSpec,
    p: _Piece,
    head: Expr,
    count: Expr,
    used: Expr,
    page: Callable[[Expr], Expr],
) -> Stmt:
    """o[g] = sum over tokens of scores[g, token] * v[token], some channels at a time."""
    size, lanes = s.cache.page_size, gcd(s.dim, _LANES)
    total = Buffer("total", F32, (wrap(s.group), wrap(lanes)), "register")

    def channels(o: Var) -> Stmt:
        def token(u: Var, at: Var, t: Var) -> Stmt:
            def one(g: Var) -> Stmt:
                weight = p.scores[g, u * size + t]
                return vector(
                    "i",
                    lanes,
                    lambda i: store(
                        total,
                        (g, i),
                        fma(
                            cast(F32, s.cache.value(at, head, t, o * lanes + i)),
                            weight,
                            total[g, i],
                        ),
                    ),
                )

            return unroll("g", s.group, one)

        def one_page(u: Var) -> Stmt:
            tokens = minimum(count - u * size, size)
            return let("page", page(u), lambda at: loop("t", tokens, lambda t: token(u, at, t)))

        def clear(g: Var) -> Stmt:
            return vector("i", lanes, lambda i: store(total, (g, i), 0.0))

        def keep(g: Var) -> Stmt:
            return vector("i", lanes, lambda i: store(p.o, (g, o * lanes + i), total[g, i]))

        return Alloc(
            total,
            seq(unroll("g", s.group, clear), loop("u", used, one_page), unroll("g", s.group, keep)),
        )

    return loop("o", s.dim // lanes, channels)


@dataclass(frozen=True, slots=True)
class _State:
    """Running m, l, o of the queries of a tile, merged piece by piece."""

    m: Buffer  # [tile, group]
    l: Buffer  # [tile, group]  # noqa: E741
    o: Buffer  # [tile, group, dim]
    piece: _Piece

    @staticmethod
    def allocate(s: AttentionSpec, tile: int) -> _State:
        def local(name: str, *shape: int) -> Buffer:
            scope = "scratch" if len(shape) == 3 else "local"
            return Buffer(name, F32, tuple(wrap(d) for d in shape), scope)

        return _State(
            local("state_m", tile, s.group),
            local("state_l", tile, s.group),
            local("state_o", tile, s.group, s.dim),
            _Piece.allocate(s),
        )

    def scoped(self, body: Stmt) -> Stmt:
        for buffer in (self.m, self.l, self.o):
            body = Alloc(buffer, body)
        return body

    def reset(self, s: AttentionSpec, i: Expr) -> Stmt:
        return loop("g", s.group, lambda g: self.reset_head(s, i, g))

    def reset_head(self, s: AttentionSpec, i: ExprLike, g: ExprLike) -> Stmt:
        lanes = gcd(s.dim, _LANES)
        clear = loop(
            "o",
            s.dim // lanes,
            lambda o: vector("d", lanes, lambda d: store(self.o, (i, g, o * lanes + d), 0.0)),
        )
        return seq(store(self.m, (i, g), _LOW), store(self.l, (i, g), 0.0), clear)

    def merge(
        self,
        s: AttentionSpec,
        i: ExprLike,
        g: ExprLike,
        m: Expr,
        l: Expr,  # noqa: E741
        o: Callable[[Expr], Expr],
    ) -> Stmt:
        """Take in a piece: both sides are scaled to the larger of the two maxima."""
        lanes = gcd(s.dim, _LANES)

        def scaled(new: Var, old: Var, fresh: Var) -> Stmt:
            def channels(q: Var) -> Stmt:
                def one(d: Var) -> Stmt:
                    at = (i, g, q * lanes + d)
                    return store(self.o, at, self.o[at] * old + o(q * lanes + d) * fresh)

                return vector("d", lanes, one)

            return seq(
                store(self.l, (i, g), self.l[i, g] * old + l * fresh),
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
        lanes = gcd(s.dim, _LANES)

        def channels(o: Var) -> Stmt:
            def one(d: Var) -> Stmt:
                c = o * lanes + d
                value = self.o[i, g, c] / self.l[i, g]
                return store(s.out, (n, h * s.dim + c), cast(s.out.dtype, value))

            return vector("d", lanes, one)

        return loop("o", s.dim // lanes, channels)
