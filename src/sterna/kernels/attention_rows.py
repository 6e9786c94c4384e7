"""Rows against one piece of cached tokens: the inner part of attention.

A row is a query head of a query; the rows of a work item share a kv head, so each page of keys and
values is read once for all of them. Makes, for each row, the largest score m, the sum l of
exp(score - m), and o = sum of exp(score - m) * v, in an order that depends on the row's position
alone: rows are computed in blocks that fill the registers, and what a block holds besides changes
nothing. A value that a row does not see never enters its sums, not even times zero.
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
from sterna.ir.loop import Alloc, If, Prefetch, Stmt, seq, store
from sterna.kernels.attention_spec import (
    LANES,
    LOW,
    AttentionSpec,
    attends,
    block_rows,
    reaches,
    reads_page,
)
from sterna.kernels.build import let, loop, unroll, vector

Body = Callable[[Var], Stmt]


@dataclass(frozen=True, slots=True)
class Queries:
    """`count` neighbouring queries of one sequence, from token `start` at `position` on."""

    start: Expr
    count: Expr
    position: Expr
    pages: Expr  # where the sequence's page table begins
    head: Expr  # of keys and values

    @property
    def last(self) -> Expr:
        return self.position + self.count - 1


@dataclass(frozen=True, slots=True)
class Rows:
    """Memory of one work item for `most` queries times the heads of a group, blocks of rows.

    `panel` holds keys of a page, or some channels of a piece's values, as f32: worth a copy where
    several blocks read them. None: each block converts for itself.
    """

    spec: AttentionSpec
    block: int
    rows: int  # a multiple of block; those past the last one repeat it
    q: Buffer  # [rows, dim]
    scores: Buffer  # [rows, piece]
    lanes: Buffer  # [page_size] a vector being reduced
    panel: Buffer | None

    @staticmethod
    def of(s: AttentionSpec, queries: int) -> Rows:
        block = block_rows(queries * s.group)
        rows = -(-queries * s.group // block) * block
        size = max(s.dim * s.cache.page_size, s.piece * gcd(s.dim, LANES))
        panel = _memory("panel", "scratch", size) if rows > 2 * block else None
        return Rows(
            s,
            block,
            rows,
            _memory("queries", "scratch", rows, s.dim),
            _memory("scores", "scratch", rows, s.piece),
            _memory("lanes", "local", s.cache.page_size),
            panel,
        )

    def scoped(self, body: Stmt) -> Stmt:
        for buffer in (self.q, self.scores, self.lanes, self.panel):
            body = body if buffer is None else Alloc(buffer, body)
        return body

    def blocks(self, q: Queries) -> Expr:
        return (q.count * self.spec.group + (self.block - 1)) // self.block

    def query(self, q: Queries, r: Expr) -> Expr:
        """Which of the queries a row belongs to."""
        return wrap(0) if const_value(q.count) == 1 else minimum(r // self.spec.group, q.count - 1)

    def position(self, q: Queries, r: Expr) -> Expr:
        """Of the row's query."""
        return q.position + self.query(q, r)

    def load(self, q: Queries) -> Stmt:
        """Copy the queries of all rows to where they are neighbours."""
        s, lanes = self.spec, gcd(self.spec.dim, LANES)

        def row(own: Var) -> Stmt:
            return let("row", minimum(own, q.count * s.group - 1), lambda r: copy(own, r))

        def copy(own: Var, r: Var) -> Stmt:
            n, base = q.start + r // s.group, (q.head * s.group + r % s.group) * s.dim

            def some(o: Var) -> Stmt:
                def one(i: Var) -> Stmt:
                    d = o * lanes + i
                    return store(self.q, (own, d), cast(F32, s.q[n, base + d]))

                return vector("i", lanes, one)

            return loop("o", s.dim // lanes, some)

        return loop("r", self.blocks(q) * self.block, row)

    def piece(
        self,
        q: Queries,
        c: Expr,
        soft: Callable[[Expr, Expr, Expr], Stmt],
        keep: Callable[[Expr, Expr, Expr], Stmt],
    ) -> Stmt:
        """All rows against piece c.

        `soft(r, m, l)` takes what a row made of its scores, `keep(r, d, o)` an element of its
        output, both only for rows that see a token of the piece.
        """
        count = minimum(q.last + 1 - c * self.spec.piece, self.spec.piece)

        def with_count(count: Var) -> Stmt:
            work = _Piece(self, q, c, count)
            return seq(work.all_scores(), work.soften(soft), work.weigh(keep))

        return let("count", count, with_count, lo=1)


def _memory(name: str, scope: str, *shape: int) -> Buffer:
    return Buffer(name, F32, tuple(wrap(d) for d in shape), scope)


@dataclass(frozen=True, slots=True)
class _Piece:
    """One piece: its first `count` tokens are those that the last query reaches."""

    rows: Rows
    q: Queries
    c: Expr
    count: Expr

    @property
    def spec(self) -> AttentionSpec:
        return self.rows.spec

    @property
    def begin(self) -> Expr:
        return self.c * self.spec.piece

    @property
    def used(self) -> Expr:
        """Pages with a token in them."""
        return (self.count + (self.spec.cache.page_size - 1)) // self.spec.cache.page_size

    def page(self, u: Expr, body: Body) -> Stmt:
        """body(number of page u of the piece)."""
        s = self.spec
        entry = self.q.pages + self.c * (s.piece // s.cache.page_size) + u
        return let("page", s.page_table[entry], body)

    def each_block(self, body: Callable[[Expr], Stmt]) -> Stmt:
        """body(first row) for each block of rows."""
        block = self.rows.block
        return loop("block", self.rows.blocks(self.q), lambda b: body(b * block))

    # Scores.

    def all_scores(self) -> Stmt:
        """scores[r, token] = scale * q[r] . k[token], LOW where the row does not see the token.

        Of pages that the row does not reach, scores are left as they are.
        """
        s, size = self.spec, self.spec.cache.page_size

        def one_page(u: Var) -> Stmt:
            seen = self.page(u, lambda page: self.page_scores(page, u))
            if s.window < 0:
                return seen
            return If(reads_page(s, self.q.position, self.begin + u * size), seen, self.blank(u))

        return loop("u", self.used, one_page)

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
                score = s.cache.scaled_key(page, self.q.head, t, dot[r, t] * s.scale)
                seen = attends(s, position, self.begin + u * size + t)
                at = (first + r, u * size + t)
                return store(self.rows.scores, at, select(seen, score, LOW))

            return vector("t", size, one)

        def some(o: Var) -> Stmt:
            return seq(
                Prefetch(s.cache.key(after or page, self.q.head, o * step, wrap(0))),
                Prefetch(s.cache.value(page, self.q.head, wrap(0), o * (step * size))),
                unroll("d", step, lambda d: accumulate(o * step + d)),
            )

        step = gcd(s.dim, max(1, s.cache.line // size))
        products = loop("d", s.dim, accumulate) if after is None else loop("o", s.dim // step, some)
        run = seq(unroll("r", block, clear), products, unroll("r", block, keep))
        if const_value(self.q.count) == 1:
            return Alloc(dot, run)
        highest = self.rows.position(self.q, first + (block - 1))
        return If(self.begin + u * size <= highest, Alloc(dot, run))

    # Softmax.

    def soften(self, done: Callable[[Expr, Expr, Expr], Stmt]) -> Stmt:
        """m = max of scores, scores = exp(scores - m), l = their sum; then done(r, m, l)."""
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
                    return seq(store(scores, at, e), store(lane, t, lane[t] + e))

                return let("e", exp(scores[at] - m), add)

            summed = let("total", lanes[0], lambda total: done(r, m, total))
            return seq(over_pages(0.0, total), halves(lambda a, b: a + b), summed)

        return seq(over_pages(LOW, largest), halves(maximum), let("m", lanes[0], with_max))

    # Values.

    def weigh(self, keep: Callable[[Expr, Expr, Expr], Stmt]) -> Stmt:
        """keep(r, d, sum over tokens that row r sees of scores[r, token] * v[token, d])."""
        s, panel = self.spec, self.rows.panel
        lanes = gcd(s.dim, LANES)

        def channels(o: Var) -> Stmt:
            d = o * lanes
            if panel is None:
                return self.each_block(lambda r: self.block_values(r, d, None, keep))
            return seq(
                loop("u", self.used, lambda u: self.copy_values(u, d, panel)),
                self.each_block(lambda r: self.block_values(r, d, panel, keep)),
            )

        return loop("o", s.dim // lanes, channels)

    def copy_values(self, u: Var, d: Expr, panel: Buffer) -> Stmt:
        """panel[token, i] = v[token, d + i] for the tokens of a page."""
        s, size, lanes = self.spec, self.spec.cache.page_size, gcd(self.spec.dim, LANES)

        def token(page: Var, t: Var) -> Stmt:
            def one(i: Var) -> Stmt:
                value = cast(F32, s.cache.value(page, self.q.head, t, d + i))
                return store(panel, (u * size + t) * lanes + i, value)

            return vector("i", lanes, one)

        copy = self.page(u, lambda page: loop("t", size, lambda t: token(page, t)))
        if s.window < 0:
            return copy
        return If(reads_page(s, self.q.position, self.begin + u * size), copy)

    def block_values(
        self,
        first: Expr,
        d: Expr,
        panel: Buffer | None,
        keep: Callable[[Expr, Expr, Expr], Stmt],
    ) -> Stmt:
        s, block, lanes = self.spec, self.rows.block, gcd(self.spec.dim, LANES)
        total = Buffer("total", F32, (wrap(block), wrap(lanes)), "register")

        def add(r: Var, token: Expr, value: Callable[[Expr], Expr], weight: Expr) -> Stmt:
            return vector(
                "i", lanes, lambda i: store(total, (r, i), fma(value(i), weight, total[r, i]))
            )

        def whole(token: Expr, value: Callable[[Expr], Expr]) -> Stmt:
            return unroll(
                "r",
                block,
                lambda r: add(r, token, value, self.rows.scores[first + r, token]),
            )

        def guarded(token: Expr, value: Callable[[Expr], Expr]) -> Stmt:
            def one(r: Var) -> Stmt:
                seen = attends(s, self.rows.position(self.q, first + r), self.begin + token)
                return If(seen, add(r, token, value, self.rows.scores[first + r, token]))

            return unroll("r", block, one)

        def finish(r: Var) -> Stmt:
            def seen(position: Var) -> Stmt:
                done = vector("i", lanes, lambda i: keep(first + r, d + i, total[r, i]))
                return If(reaches(s, position, position, self.c), done)

            return let("position", self.rows.position(self.q, first + r), seen)

        clear = unroll(
            "r", block, lambda r: vector("i", lanes, lambda i: store(total, (r, i), 0.0))
        )
        walk = self.tokens_of_block(first, d, panel, whole, guarded)
        return Alloc(total, seq(clear, walk, unroll("r", block, finish)))

    def tokens_of_block(
        self,
        first: Expr,
        d: Expr,
        panel: Buffer | None,
        whole: Callable[[Expr, Callable[[Expr], Expr]], Stmt],
        guarded: Callable[[Expr, Callable[[Expr], Expr]], Stmt],
    ) -> Stmt:
        """Tokens in order: `whole` for those that all rows of a block see, else `guarded`."""
        s = self.spec
        lowest = self.rows.position(self.q, first)
        highest = self.rows.position(self.q, first + (self.rows.block - 1))

        def within(token: Expr) -> Expr:
            return minimum(maximum(token - self.begin, 0), self.count)

        def walk(top: Var, end: Var) -> Stmt:
            if s.window < 0:
                return seq(
                    self.tokens(wrap(0), top, d, panel, whole),
                    self.tokens(top, end, d, panel, guarded),
                )
            return let(
                "low",
                within(lowest - (s.window - 1)),
                lambda low: let(
                    "bottom",
                    within(highest - (s.window - 1)),
                    lambda bottom: windowed(low, bottom, top, end),
                ),
            )

        def windowed(low: Var, bottom: Var, top: Var, end: Var) -> Stmt:
            sinks = minimum(within(wrap(s.sinks)), low)
            parts = [
                self.tokens(low, minimum(bottom, end), d, panel, guarded),
                self.tokens(bottom, top, d, panel, whole),
                self.tokens(maximum(bottom, top), end, d, panel, guarded),
            ]
            if s.sinks:
                parts.insert(0, self.tokens(wrap(0), sinks, d, panel, guarded))
            return seq(*parts)

        return let(
            "top",
            within(lowest + 1),
            lambda top: let("end", within(highest + 1), lambda end: walk(top, end)),
        )

    def tokens(
        self,
        begin: Expr,
        end: Expr,
        d: Expr,
        panel: Buffer | None,
        body: Callable[[Expr, Callable[[Expr], Expr]], Stmt],
    ) -> Stmt:
        """body(token of the piece, its value at channel d + i) for tokens begin to end."""
        s, size, lanes = self.spec, self.spec.cache.page_size, gcd(self.spec.dim, LANES)
        if panel is not None:

            def copied(t: Var) -> Stmt:
                return body(begin + t, lambda i: panel[(begin + t) * lanes + i])

            return loop("t", end - begin, copied)

        def one_page(v: Var) -> Stmt:
            u = begin // size + v
            stop = minimum(end - u * size, size)

            def on_page(page: Var) -> Stmt:
                def one(t: Expr) -> Stmt:
                    return body(
                        u * size + t,
                        lambda i: cast(F32, s.cache.value(page, self.q.head, t, d + i)),
                    )

                def some(low: Var) -> Stmt:
                    return loop("t", stop - low, lambda t: one(low + t))

                return seq(self.keys_ahead(u, d), let("low", maximum(begin - u * size, 0), some))

            return self.page(u, on_page)

        pages = (end + (size - 1)) // size - begin // size
        return loop("v", pages, one_page)

    def keys_ahead(self, u: Expr, d: Expr) -> Stmt:
        """Bring what page u of the next piece holds in some channels to the processor's cache."""
        s, size, lanes = self.spec, self.spec.cache.page_size, gcd(self.spec.dim, LANES)
        following = (self.c + 1) * (s.piece // size) + u
        entry = self.q.pages + minimum(following, self.q.last // size)
        step = max(1, s.cache.line // size)

        def lines(page: Var) -> Stmt:
            return unroll(
                "k",
                -(-lanes // step),
                lambda k: Prefetch(s.cache.key(page, self.q.head, d + k * step, wrap(0))),
            )

        return let("page", s.page_table[entry], lines)
