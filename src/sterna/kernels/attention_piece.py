"""One query and one kv head against one piece of cached tokens: the inner part of attention.

Makes, for each query head of the group, the largest score m, the sum l of exp(score - m), and
o = sum of exp(score - m) * v. Slots of a page that hold no token are read and masked, never used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd

from sterna.base.dtype import F32
from sterna.ir.expr import (
    Buffer,
    Expr,
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
from sterna.ir.loop import Alloc, Stmt, seq, store
from sterna.kernels.build import let, loop, unroll, vector
from sterna.kernels.kv_cache import CacheLayout

LOW = -1.0e30  # the score of a token that is not attended to: exp(LOW - m) is 0
LANES = 16


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


def reaches(s: AttentionSpec, position: Expr, c: Expr) -> Expr:
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


@dataclass(frozen=True, slots=True)
class Piece:
    """What one (query, kv head) makes of a piece, for each query head of the group."""

    scores: Buffer  # [group, piece]
    m: Buffer  # [group]
    total: Buffer  # [group] sums of exp(score - m)
    o: Buffer  # [group, dim]
    lanes: Buffer  # [page_size] a vector being reduced

    @staticmethod
    def allocate(s: AttentionSpec) -> Piece:
        def local(name: str, *shape: int) -> Buffer:
            return Buffer(name, F32, tuple(wrap(d) for d in shape), "local")

        return Piece(
            local("scores", s.group, s.piece),
            local("piece_m", s.group),
            local("piece_l", s.group),
            local("piece_o", s.group, s.dim),
            local("lanes", s.cache.page_size),
        )

    def scoped(self, body: Stmt) -> Stmt:
        for buffer in (self.scores, self.m, self.total, self.o, self.lanes):
            body = Alloc(buffer, body)
        return body

    def save(self, s: AttentionSpec, partial: Buffer, n: Expr, h: Expr, c: Expr, g: Expr) -> Stmt:
        lanes = gcd(s.dim, LANES)

        def copy(o: Var) -> Stmt:
            return vector(
                "i",
                lanes,
                lambda i: store(partial, (n, h, c, o * lanes + i), self.o[g, o * lanes + i]),
            )

        return seq(
            loop("o", s.dim // lanes, copy),
            store(partial, (n, h, c, s.dim), self.m[g]),
            store(partial, (n, h, c, s.dim + 1), self.total[g]),
        )


def query_piece(
    s: AttentionSpec,
    p: Piece,
    n: Expr,
    position: Expr,
    head: Expr,
    pages: Expr,
    c: Expr,
    done: Callable[[Piece], Stmt],
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
    p: Piece,
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
            return store(p.scores, (g, u * size + t), select(seen, dot[g, t] * s.scale, LOW))

        return vector("t", size, one)

    return Alloc(
        dot,
        seq(unroll("g", s.group, clear), loop("d", s.dim, accumulate), unroll("g", s.group, keep)),
    )


def _soften(s: AttentionSpec, p: Piece, g: Expr, used: Expr) -> Stmt:
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
        over_pages(LOW, largest),
        store(p.m, g, LOW),
        loop("t", size, lambda t: store(p.m, g, maximum(p.m[g], p.lanes[t]))),
        over_pages(0.0, total),
        store(p.total, g, 0.0),
        loop("t", size, lambda t: store(p.total, g, p.total[g] + p.lanes[t])),
    )


def _weighted_values(
    s: AttentionSpec,
    p: Piece,
    head: Expr,
    count: Expr,
    used: Expr,
    page: Callable[[Expr], Expr],
) -> Stmt:
    """o[g] = sum over tokens of scores[g, token] * v[token], some channels at a time."""
    size, lanes = s.cache.page_size, gcd(s.dim, LANES)
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
