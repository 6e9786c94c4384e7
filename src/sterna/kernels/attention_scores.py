"""The scores of rows against a piece, and their softmax: the first half of attention's inner part.

Makes, for each row, the largest score m, the sum l of exp(score - m), and leaves exp(score - m)
where the second half finds it. The order of each sum depends on the row's position alone.
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
    const_value,
    exp,
    fma,
    maximum,
    minimum,
    select,
    wrap,
)
from sterna.ir.loop import Alloc, If, Prefetch, Seq, Stmt, seq, store
from sterna.kernels.attention_rows import Piece
from sterna.kernels.attention_spec import LOW, attends, reaches, reads_page
from sterna.kernels.build import let, loop, unroll, vector
from sterna.ops.activation import softcap


@dataclass(frozen=True, slots=True)
class Scores(Piece):
    """Scores of all rows against a piece."""

    def all_scores(self) -> Stmt:
        """scores[r, token] = scale * q[r] . k[token], LOW where the row does not see the token.

        Of pages that the row does not reach, scores are left as they are.
        """
        s, size = self.spec, self.spec.cache.page_size

        def one_page(u: Var) -> Stmt:
            seen = self.page(
                u, lambda page: seq(self.load_scales(page, u), self.page_scores(page, u))
            )
            if not s.limited:
                return seen
            return If(reads_page(s, self.q.position, self.begin + u * size), seen, self.blank(u))

        return loop("u", self.used, one_page)

    def scaled(self, page: Var, t: Var, score: Expr) -> Expr:
        s = self.spec
        if s.cache.scales is not None:
            score = score * cast(F32, s.cache.scale(page, 0, self.q.head, t))
        return softcap(score, s.softcap) if s.softcap else score

    def load_scales(self, page: Var, u: Var) -> Stmt:
        """Those of a page's values, for `soften`."""
        s, size, scales = self.spec, self.spec.cache.page_size, self.rows.value_scales
        if scales is None:
            return Seq(())

        def one(t: Var) -> Stmt:
            return store(scales, u * size + t, cast(F32, s.cache.scale(page, 1, self.q.head, t)))

        return vector("t", size, one)

    def blank(self, u: Var) -> Stmt:
        size = self.spec.cache.page_size

        def row(r: Var) -> Stmt:
            return vector("t", size, lambda t: store(self.rows.scores, (r, u * size + t), LOW))

        return loop("r", self.rows.blocks(self.q) * self.rows.block, row)

    def page_scores(self, page: Var, u: Var) -> Stmt:
        s, size, panel = self.spec, self.spec.cache.page_size, self.rows.panel

        def key(d: Expr, t: Expr) -> Expr:
            return cast(F32, s.cache.key(page, self.q.head, d, t))

        if panel is None:
            return self.page(
                minimum(u + 1, self.used - 1),
                lambda after: self.each_block(lambda r: self.block_scores(r, u, page, key, after)),
            )

        def copy(d: Var) -> Stmt:
            return vector("t", size, lambda t: store(panel, d * size + t, key(d, t)))

        def copied(d: Expr, t: Expr) -> Expr:
            return panel[d * size + t]

        return seq(
            loop("d", s.dim, copy),
            self.each_block(lambda r: self.block_scores(r, u, page, copied)),
        )

    def block_scores(
        self,
        first: Expr,
        u: Var,
        page: Var,
        key: Callable[[Expr, Expr], Expr],
        after: Var | None = None,
    ) -> Stmt:
        """Of one block and page. Meanwhile values, and keys of page `after`, come to the cache."""
        s, block, size = self.spec, self.rows.block, self.spec.cache.page_size
        dot = Buffer("dot", F32, (wrap(block), wrap(size)), "register")

        def clear(r: Var) -> Stmt:
            return vector("t", size, lambda t: store(dot, (r, t), 0.0))

        def accumulate(d: Expr) -> Stmt:
            def one(r: Var) -> Stmt:
                weight = self.rows.q[first + r, d]
                return vector(
                    "t", size, lambda t: store(dot, (r, t), fma(key(d, t), weight, dot[r, t]))
                )

            return unroll("r", block, one)

        def keep(r: Var) -> Stmt:
            return let("position", self.rows.position(self.q, first + r), lambda p: masked(r, p))

        def masked(r: Var, position: Var) -> Stmt:
            def one(t: Var) -> Stmt:
                score = self.scaled(page, t, dot[r, t] * s.scale)
                seen = attends(s, position, self.begin + u * size + t)
                at = (first + r, u * size + t)
                return store(self.rows.scores, at, select(seen, score, LOW))

            return vector("t", size, one)

        def values(o: Var) -> tuple[Stmt, ...]:
            if s.cache.joined:
                return ()  # they are the keys
            return (Prefetch(s.cache.value(page, self.q.head, wrap(0), o * (step * size))),)

        def some(o: Var) -> Stmt:
            return seq(
                Prefetch(s.cache.key(after or page, self.q.head, o * step, wrap(0))),
                *values(o),
                unroll("d", step, lambda d: accumulate(o * step + d)),
            )

        step = gcd(s.dim, max(1, s.cache.line // size))
        products = loop("d", s.dim, accumulate) if after is None else loop("o", s.dim // step, some)
        run = seq(unroll("r", block, clear), products, unroll("r", block, keep))
        if const_value(self.q.count) == 1:
            return Alloc(dot, run)
        highest = self.rows.position(self.q, first + (block - 1))
        return If(self.begin + u * size <= highest, Alloc(dot, run))

    def soften(self, done: Callable[[Expr, Expr, Expr], Stmt]) -> Stmt:
        """m = max of scores, scores = exp(scores - m), l = their sum; then done(r, m, l).

        Scores of a cache in 8 bits are then scaled as their values are.
        """
        s = self.spec

        def row(r: Var) -> Stmt:
            def seen(position: Var) -> Stmt:
                run = self.soften_row(r, position, done)
                return If(reaches(s, position, position, self.c), run)

            return let("position", self.rows.position(self.q, r), seen)

        return loop("r", self.rows.blocks(self.q) * self.rows.block, row)

    def soften_row(self, r: Var, position: Var, done: Callable[[Expr, Expr, Expr], Stmt]) -> Stmt:
        size, scores, lanes = self.spec.cache.page_size, self.rows.scores, self.rows.lanes
        used = minimum((position - self.begin) // size + 1, self.spec.piece // size)
        scales = self.rows.value_scales
        lane = Buffer("lane", F32, (wrap(size),), "register")

        def over_pages(start: float, body: Callable[[Var, Var], Stmt]) -> Stmt:
            clear = vector("t", size, lambda t: store(lane, t, start))
            run = loop("u", used, lambda u: vector("t", size, lambda t: body(u, t)))
            spill = vector("t", size, lambda t: store(lanes, t, lane[t]))
            return Alloc(lane, seq(clear, run, spill))

        def halves(combine: Callable[[Expr, Expr], Expr]) -> Stmt:
            def fold(width: int) -> Stmt:
                return vector(
                    "t", width, lambda t: store(lanes, t, combine(lanes[t], lanes[t + width]))
                )

            return seq(*(fold(size >> k) for k in range(1, size.bit_length())))

        def largest(u: Var, t: Var) -> Stmt:
            return store(lane, t, maximum(lane[t], scores[r, u * size + t]))

        def with_max(m: Var) -> Stmt:
            def total(u: Var, t: Var) -> Stmt:
                at = (r, u * size + t)

                def add(e: Var) -> Stmt:
                    kept = e if scales is None else e * scales[u * size + t]
                    return seq(store(scores, at, kept), store(lane, t, lane[t] + e))

                return let("e", exp(scores[at] - m), add)

            summed = let("total", lanes[0], lambda total: done(r, m, total))
            return seq(over_pages(0.0, total), halves(lambda a, b: a + b), summed)

        return seq(over_pages(LOW, largest), halves(maximum), let("m", lanes[0], with_max))
