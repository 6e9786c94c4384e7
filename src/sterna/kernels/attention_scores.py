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
    logical_or,
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
        if self.rows.panel is not None:
            panel, pages = self.rows.panel, self.rows.pages
            units = (self.used + (pages - 1)) // pages
            return loop("unit", units, lambda w: self.unit_scores(w * pages, panel))
        s = self.spec

        def one_page(u: Var) -> Stmt:
            seen = self.page(
                u, lambda page: seq(self.load_scales(page, u), self.page_scores(page, u))
            )
            return If(self.is_read(u), seen, self.blank(u)) if s.limited else seen

        return loop("u", self.used, one_page)

    def is_read(self, u: Expr) -> Expr:
        """Whether any query of the tile sees a token of page u."""
        begin = self.begin + u * self.spec.cache.page_size
        return reads_page(self.spec, self.q.position, begin)

    def scaled(self, page: Var, t: Var, score: Expr) -> Expr:
        s = self.spec
        if s.cache.scales is not None:
            score = score * cast(F32, s.cache.scale(page, 0, self.q.head, t))
        return softcap(score, s.softcap) if s.softcap else score

    def load_scales(self, page: Var, u: Expr) -> Stmt:
        """Those of a page's values, for `soften`."""
        s, size, scales = self.spec, self.spec.cache.page_size, self.rows.value_scales
        if scales is None:
            return Seq(())

        def one(t: Var) -> Stmt:
            return store(scales, u * size + t, cast(F32, s.cache.scale(page, 1, self.q.head, t)))

        return vector("t", size, one)

    def blank(self, u: Expr) -> Stmt:
        size = self.spec.cache.page_size

        def row(r: Var) -> Stmt:
            return vector("t", size, lambda t: store(self.rows.scores, (r, u * size + t), LOW))

        return loop("r", self.rows.blocks(self.q) * self.rows.block, row)

    def page_scores(self, page: Var, u: Var) -> Stmt:
        """Of a page whose keys each block converts."""

        def key(d: Expr, t: Expr) -> Expr:
            return cast(F32, self.spec.cache.key(page, self.q.head, d, t))

        return self.page(
            minimum(u + 1, self.used - 1),
            lambda after: self.each_block(lambda r: self.block_scores(r, u, [page], key, after)),
        )

    def unit_scores(self, u: Expr, panel: Buffer) -> Stmt:
        """Of some pages from page u on, whose keys are converted once for all blocks.

        Past the last page it is taken again, and what is not read is not copied: no row sees them.
        """
        s, size, count = self.spec, self.spec.cache.page_size, self.rows.pages
        width = size * count

        def copy(v: int, page: Var) -> Stmt:
            def one(d: Var) -> Stmt:
                return vector(
                    "t",
                    size,
                    lambda t: store(
                        panel,
                        d * width + (v * size + t),
                        cast(F32, s.cache.key(page, self.q.head, d, t)),
                    ),
                )

            run = seq(self.load_scales(page, u + v), loop("d", s.dim, one))
            return If(self.is_read(u + v), run) if s.limited else run

        def copied(d: Expr, t: Expr) -> Expr:
            return panel[d * width + t]

        def with_pages(pages: list[Var]) -> Stmt:
            if len(pages) < count:
                following = minimum(u + len(pages), self.used - 1)
                return self.page(following, lambda page: with_pages([*pages, page]))
            copies = [copy(v, page) for v, page in enumerate(pages)]
            return seq(*copies, self.each_block(lambda r: self.block_scores(r, u, pages, copied)))

        if not s.limited:
            return with_pages([])
        read = self.is_read(u)
        for v in range(1, count):
            read = logical_or(read, self.is_read(u + v))
        return If(read, with_pages([]), seq(*(self.blank(u + v) for v in range(count))))

    def block_scores(
        self,
        first: Expr,
        u: Expr,
        pages: list[Var],
        key: Callable[[Expr, Expr], Expr],
        after: Var | None = None,
    ) -> Stmt:
        """Of one block and some pages from page u on, of which `key` has element d of token t.

        Meanwhile values, and keys of page `after`, come to the cache.
        """
        s, block, size = self.spec, self.rows.block, self.spec.cache.page_size
        width = size * len(pages)
        dot = Buffer("dot", F32, (wrap(block), wrap(width)), "register")

        def clear(r: Var) -> Stmt:
            return vector("t", width, lambda t: store(dot, (r, t), 0.0))

        def accumulate(d: Expr) -> Stmt:
            def one(r: Var) -> Stmt:
                weight = self.rows.q[first + r, d]
                return vector(
                    "t", width, lambda t: store(dot, (r, t), fma(key(d, t), weight, dot[r, t]))
                )

            return unroll("r", block, one)

        def keep(r: Var) -> Stmt:
            def masked(position: Var) -> Stmt:
                return seq(*(masked_page(v, page, position) for v, page in enumerate(pages)))

            def masked_page(v: int, page: Var, position: Var) -> Stmt:
                def one(t: Var) -> Stmt:
                    score = self.scaled(page, t, dot[r, v * size + t] * s.scale)
                    token = (u + v) * size + t
                    seen = attends(s, position, self.begin + token)
                    return store(self.rows.scores, (first + r, token), select(seen, score, LOW))

                return vector("t", size, one)

            return let("position", self.rows.position(self.q, first + r), masked)

        def values(o: Var) -> tuple[Stmt, ...]:
            if s.cache.joined:
                return ()  # they are the keys
            return (Prefetch(s.cache.value(pages[0], self.q.head, wrap(0), o * (step * size))),)

        def some(o: Var) -> Stmt:
            return seq(
                Prefetch(s.cache.key(after or pages[0], self.q.head, o * step, wrap(0))),
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

        Scores of a cache in 8 bits are then scaled as their values are. Each in a loop of its own:
        a row is a chain of waits, which a processor fills with other rows while the loop is short.
        """
        rows = self.rows

        def tell(r: Var, _: Var) -> Stmt:
            return done(r, rows.largest[r], rows.totals[r])

        return seq(*(self.each_row(part) for part in (self.find_largest, self.exponentials, tell)))

    def each_row(self, body: Callable[[Var, Var], Stmt]) -> Stmt:
        """body(row, its position) for those that see a token of the piece."""

        def row(r: Var) -> Stmt:
            def seen(position: Var) -> Stmt:
                return If(reaches(self.spec, position, position, self.c), body(r, position))

            return let("position", self.rows.position(self.q, r), seen)

        return loop("r", self.rows.blocks(self.q) * self.rows.block, row)

    def find_largest(self, r: Var, position: Var) -> Stmt:
        size, scores = self.spec.cache.page_size, self.rows.scores

        def one(lane: Buffer, u: Var, t: Var) -> Stmt:
            return store(lane, t, maximum(lane[t], scores[r, u * size + t]))

        reduced = self.reduced(position, LOW, one, maximum)
        return seq(reduced, store(self.rows.largest, r, self.rows.lanes[0]))

    def exponentials(self, r: Var, position: Var) -> Stmt:
        size, scores, scales = self.spec.cache.page_size, self.rows.scores, self.rows.value_scales

        def one(lane: Buffer, u: Var, t: Var) -> Stmt:
            at = (r, u * size + t)

            def add(e: Var) -> Stmt:
                kept = e if scales is None else e * scales[u * size + t]
                return seq(store(scores, at, kept), store(lane, t, lane[t] + e))

            return let("e", exp(scores[at] - self.rows.largest[r]), add)

        reduced = self.reduced(position, 0.0, one, lambda a, b: a + b)
        return seq(reduced, store(self.rows.totals, r, self.rows.lanes[0]))

    def reduced(
        self,
        position: Var,
        start: float,
        body: Callable[[Buffer, Var, Var], Stmt],
        combine: Callable[[Expr, Expr], Expr],
    ) -> Stmt:
        """lanes[0] = body(a vector, page, token of it) over the pages that a row reaches."""
        size, lanes = self.spec.cache.page_size, self.rows.lanes
        used = minimum((position - self.begin) // size + 1, self.spec.piece // size)
        lane = Buffer("lane", F32, (wrap(size),), "register")

        def fold(width: int) -> Stmt:
            return vector(
                "t", width, lambda t: store(lanes, t, combine(lanes[t], lanes[t + width]))
            )

        clear = vector("t", size, lambda t: store(lane, t, start))
        run = loop("u", used, lambda u: vector("t", size, lambda t: body(lane, u, t)))
        spill = vector("t", size, lambda t: store(lanes, t, lane[t]))
        halves = (fold(size >> k) for k in range(1, size.bit_length()))
        return seq(Alloc(lane, seq(clear, run, spill)), *halves)
