"""Attention for threads that work alone: one for each query and head, with little memory.

The same pieces, sums and merges as in `attention`, in the same order, so a thread gives the same
bits. Nothing is shared: each thread reads the keys and values that it sees, four tokens or four
channels at a time. For caches of floats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd

from sterna.base.dtype import F32
from sterna.base.errors import CodegenError
from sterna.ir.expr import Buffer, Expr, Var, cast, exp, fma, maximum, minimum, select, wrap
from sterna.ir.loop import Alloc, If, PrimFunc, Stmt, seq, store
from sterna.kernels.attention_spec import LOW, AttentionSpec, attends, reaches
from sterna.kernels.build import let, loop, parallel, unroll
from sterna.kernels.kv_cache import LAYER
from sterna.ops.activation import softcap

_SIDE_BY_SIDE = 4  # tokens, or channels, that are summed in registers


def attention_alone(name: str, s: AttentionSpec, dims: tuple[Var, ...], tile: int) -> PrimFunc:
    """One work item for each (query, head): pieces in order. Tiles hold `tile` queries or fewer."""
    if s.cache.scales is not None:
        raise CodegenError("threads that work alone read caches of floats only; leave out kv_dtype")
    tiles, state = s.tile_start.shape[0], _State.of(s)

    def item(w: Var) -> Stmt:
        head, rest = w % s.heads, w // s.heads
        t, i = rest // tile, rest % tile

        def query(n: Var) -> Stmt:
            def at(position: Var) -> Stmt:
                pages = s.page_indptr[s.tile_seq[t]]
                return let(
                    "pages", pages, lambda p: _Query(s, state, n, head, position, p).attend()
                )

            return let("position", s.positions[n], at, lo=0)

        return If(i < s.tile_size[t], let("n", s.tile_start[t] + i, query))

    return PrimFunc(
        name, s.params, (*dims, LAYER), parallel("item", tiles * (tile * s.heads), item)
    )


def _memory(name: str, size: int) -> Buffer:
    return Buffer(name, F32, (wrap(size),), "local")


@dataclass(frozen=True, slots=True)
class _State:
    """What a thread keeps: of pieces before, m, l and o as in `attention`; of one, its scores."""

    o: Buffer  # [dim]
    m: Buffer
    total: Buffer
    scale: Buffer  # [2] of what was merged before, and of the piece
    scores: Buffer  # [piece]
    lane: Buffer  # [page_size] a vector being reduced

    @staticmethod
    def of(s: AttentionSpec) -> _State:
        return _State(
            _memory("state_o", s.dim),
            _memory("state_m", 1),
            _memory("state_l", 1),
            _memory("scale", 2),
            _memory("scores", s.piece),
            _memory("lane", s.cache.page_size),
        )

    def scoped(self, body: Stmt) -> Stmt:
        for buffer in (self.o, self.m, self.total, self.scale, self.scores, self.lane):
            body = Alloc(buffer, body)
        return body


@dataclass(frozen=True, slots=True)
class _Query:
    """One query and head; `pages`: where the sequence's page table begins."""

    s: AttentionSpec
    state: _State
    n: Expr
    head: Expr
    position: Expr
    pages: Expr

    def attend(self) -> Stmt:
        """All pieces, then the output."""
        s, kept = self.s, self.state
        start = seq(
            store(kept.m, 0, LOW),
            store(kept.total, 0, 0.0),
            loop("d", s.dim, lambda d: store(kept.o, d, 0.0)),
        )

        def write(d: Var) -> Stmt:
            value = cast(s.out.dtype, kept.o[d] / kept.total[0])
            return store(s.out, (self.n, self.head * s.dim + d), value)

        pieces = minimum(self.position // s.piece + 1, s.pieces)
        body = seq(start, loop("piece", pieces, self.piece), loop("d", s.dim, write))
        return kept.scoped(body)

    def piece(self, c: Var) -> Stmt:
        s = self.s
        size = s.cache.page_size
        reached = minimum((self.position - c * s.piece) // size + 1, s.piece // size)

        def run(used: Var) -> Stmt:
            return seq(
                self.each_page(c, used, lambda u, page: self.page_scores(c, u, page)),
                self.largest(used, lambda m: self.soften(used, m)),
                self.values(c, used),
            )

        whole = let("used", reached, run)
        if s.window < 0:
            return whole
        return If(reaches(s, self.position, self.position, c), whole)

    def each_page(self, c: Var, used: Expr, body: Callable[[Var, Var], Stmt]) -> Stmt:
        """body(number in the piece, page) for the pages that the query reaches."""
        first = self.pages + c * (self.s.piece // self.s.cache.page_size)
        return loop(
            "u", used, lambda u: let("page", self.s.page_table[first + u], lambda p: body(u, p))
        )

    @property
    def kv_head(self) -> Expr:
        return self.head // self.s.group

    def page_scores(self, c: Var, u: Var, page: Var) -> Stmt:
        s = self.s
        size, some = s.cache.page_size, gcd(s.cache.page_size, _SIDE_BY_SIDE)
        dot = Buffer("dot", F32, (wrap(some),), "register")

        def block(b: Var) -> Stmt:
            def accumulate(d: Var) -> Stmt:
                def with_weight(weight: Var) -> Stmt:
                    def one(j: Var) -> Stmt:
                        key = cast(F32, s.cache.key(page, self.kv_head, d, b * some + j))
                        return store(dot, j, fma(key, weight, dot[j]))

                    return unroll("j", some, one)

                query = cast(F32, s.q[self.n, self.head * s.dim + d])
                return let("weight", query, with_weight)

            def keep(j: Var) -> Stmt:
                t = b * some + j
                score = dot[j] * s.scale
                score = softcap(score, s.softcap) if s.softcap else score
                seen = attends(s, self.position, c * s.piece + u * size + t)
                return store(self.state.scores, u * size + t, select(seen, score, LOW))

            return Alloc(
                dot,
                seq(
                    unroll("j", some, lambda j: store(dot, j, 0.0)),
                    loop("d", s.dim, accumulate),
                    unroll("j", some, keep),
                ),
            )

        return loop("b", size // some, block)

    def over_lanes(self, used: Expr, start: float, body: Callable[[Expr, Var], Stmt]) -> Stmt:
        size, lane = self.s.cache.page_size, self.state.lane
        return seq(
            loop("t", size, lambda t: store(lane, t, start)),
            loop("u", used, lambda u: loop("t", size, lambda t: body(u * size + t, t))),
        )

    def halves(self, combine: Callable[[Expr, Expr], Expr]) -> Stmt:
        """The lanes become one, in the first."""
        size, lane = self.s.cache.page_size, self.state.lane

        def fold(width: int) -> Stmt:
            return loop("t", width, lambda t: store(lane, t, combine(lane[t], lane[t + width])))

        return seq(*(fold(size >> k) for k in range(1, size.bit_length())))

    def largest(self, used: Expr, body: Callable[[Var], Stmt]) -> Stmt:
        """body(the largest score); of a maximum the order does not matter."""
        lane, scores = self.state.lane, self.state.scores

        def take(i: Var) -> Stmt:
            return store(lane, 0, maximum(lane[0], scores[i]))

        walk = loop("i", used * self.s.cache.page_size, take)
        return seq(store(lane, 0, LOW), walk, let("m", lane[0], body))

    def soften(self, used: Expr, m: Var) -> Stmt:
        """scores = exp(scores - m), and the piece's m and l are merged."""
        kept = self.state

        def add(i: Expr, t: Var) -> Stmt:
            return let(
                "e",
                exp(kept.scores[i] - m),
                lambda e: seq(store(kept.scores, i, e), store(kept.lane, t, kept.lane[t] + e)),
            )

        def merged(new: Var) -> Stmt:
            old, fresh = kept.scale[0], kept.scale[1]
            return seq(
                store(kept.scale, 0, exp(kept.m[0] - new)),
                store(kept.scale, 1, exp(m - new)),
                store(kept.total, 0, kept.total[0] * old + kept.lane[0] * fresh),
                store(kept.m, 0, new),
            )

        return seq(
            self.over_lanes(used, 0.0, add),
            self.halves(lambda a, b: a + b),
            let("new", maximum(kept.m[0], m), merged),
        )

    def values(self, c: Var, used: Expr) -> Stmt:
        """o = o * old + fresh * sum of e * v, over the tokens that are seen, in order."""
        s, kept = self.s, self.state
        size, some = s.cache.page_size, gcd(s.dim, _SIDE_BY_SIDE)
        total = Buffer("total", F32, (wrap(some),), "register")

        def block(b: Var) -> Stmt:
            def on_page(u: Var, page: Var) -> Stmt:
                def token(t: Var) -> Stmt:
                    def add(i: Var) -> Stmt:
                        value = cast(F32, s.cache.value(page, self.kv_head, t, b * some + i))
                        return store(total, i, fma(value, kept.scores[u * size + t], total[i]))

                    seen = attends(s, self.position, c * s.piece + u * size + t)
                    return If(seen, unroll("i", some, add))

                return loop("t", size, token)

            def keep(i: Var) -> Stmt:
                d = b * some + i
                return store(kept.o, d, kept.o[d] * kept.scale[0] + total[i] * kept.scale[1])

            clear = unroll("i", some, lambda i: store(total, i, 0.0))
            return Alloc(
                total, seq(clear, self.each_page(c, used, on_page), unroll("i", some, keep))
            )

        return loop("b", s.dim // some, block)
