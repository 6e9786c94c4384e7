"""What a work group keeps and does for attention: some queries' heads against a piece of the cache.

A row is a query head of a query; the rows of a group share a kv head. Neighbouring threads take
neighbouring tokens for the scores and neighbouring channels for the values, and each does so for
all rows: so an element of the cache is one thread's, who reads it once into a register, and needs
no copy in shared memory. What all threads read, queries and scores, is there. In which order a
row's sums add depends on its position alone, not on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sterna.base.dtype import F32
from sterna.ir.expr import (
    Binary,
    Buffer,
    Expr,
    ExprLike,
    Var,
    cast,
    exp,
    fma,
    maximum,
    minimum,
    select,
    wrap,
)
from sterna.ir.loop import Alloc, If, Stmt, seq, store
from sterna.kernels.attention_rows import Queries
from sterna.kernels.attention_spec import LOW, AttentionSpec, attended, attends, reaches
from sterna.kernels.build import let, loop, threads, unroll
from sterna.ops.activation import softcap

_TOKENS = 128  # that a group scores side by side
_ROWS = 8  # whose scores are reduced side by side


Each = Callable[[Callable[[Expr], Stmt]], Stmt]


@dataclass(frozen=True, slots=True)
class GroupMemory:
    """For `queries` at most: their heads and scores, their running m, l and o.

    Queries past the last are the last once more: its rows are computed again, by the same threads,
    which write the same bits. So no branch asks how many there are.
    """

    spec: AttentionSpec
    queries: int
    q: Buffer  # [rows, dim]
    scores: Buffer  # [rows, piece]
    lanes: tuple[Buffer, ...]  # [rows, page_size] each: maxima or sums by slot, then across
    peak: Buffer  # [rows, page_size] the maximum, alike in all slots
    tops: Buffer  # [rows] and below: of a piece
    sums: Buffer
    m: Buffer  # of all pieces so far
    total: Buffer
    old: Buffer  # what the last merge scales the pieces before by
    fresh: Buffer  # and the new one
    part: Buffer  # [rows, out_dim] of the last piece
    o: Buffer  # [rows, out_dim]

    @staticmethod
    def of(s: AttentionSpec, queries: int) -> GroupMemory:
        rows = queries * s.group

        def memory(name: str, *shape: int, scope: str = "shared") -> Buffer:
            return Buffer(name, F32, tuple(wrap(d) for d in (rows, *shape)), scope)

        size = s.cache.page_size
        return GroupMemory(
            s,
            queries,
            memory("queries", s.dim),
            memory("scores", s.piece),
            tuple(memory(f"lanes_{size >> k}", size) for k in range(_folds(size))),
            memory("peak", size, scope="register"),
            memory("tops"),
            memory("sums"),
            memory("state_m"),
            memory("state_l"),
            memory("old"),
            memory("fresh"),
            memory("part", s.out_dim, scope="register"),
            memory("state_o", s.out_dim, scope="register"),
        )

    @staticmethod
    def row_bytes(s: AttentionSpec) -> int:
        """Shared memory of a row, where nothing of it is in registers."""
        size = s.cache.page_size
        return (s.dim + s.piece + _folds(size) * size + size + 6) * F32.bytes

    def scoped(self, body: Stmt) -> Stmt:
        memory = (self.q, self.scores, *self.lanes, self.peak, self.tops, self.sums, self.m)
        for buffer in (*memory, self.total, self.old, self.fresh, self.part, self.o):
            body = Alloc(buffer, body)
        return body

    @property
    def several(self) -> bool:
        return self.queries > 1

    @property
    def most(self) -> int:
        return self.queries * self.spec.group

    def rows(self, q: Queries, body: Callable[[Expr], Stmt]) -> Stmt:
        """body(r) in threads, for the rows of the queries: to stand around other threads."""
        return self.blocks(q, lambda each: each(body))

    def slots(self, q: Queries, body: Callable[[Expr, Expr], Stmt]) -> Stmt:
        """body(r, slot) in threads, for the rows of the queries and the slots of a page."""
        size = self.spec.cache.page_size
        return self.blocks(
            q, lambda each: threads("t", size, lambda t: each(lambda row: body(row, t)))
        )

    def blocks(self, q: Queries, turn: Callable[[Each], Stmt]) -> Stmt:
        """turn(each) in threads of rows side by side; each(body) is body(r) if there is row r."""
        side = min(self.most, _ROWS)
        rows, whole = self.most, self.most % side == 0

        def some(block: Var) -> Stmt:
            def each(r: Var, body: Callable[[Expr], Stmt]) -> Stmt:
                row = block * side + r
                return body(row) if whole else If(row < rows, body(row))

            return threads("r", side, lambda r: turn(lambda body: each(r, body)))

        return loop("block", (rows + (side - 1)) // side, some)

    def channels(self, body: Callable[[Var], Stmt]) -> Stmt:
        return threads("d", self.spec.out_dim, body)

    def heads(self, body: Callable[[Expr], Stmt], query: int = 0) -> Stmt:
        """body(r) for the rows of a query, which number registers."""
        group = self.spec.group
        return unroll("g", group, lambda g: body(g + query * group))

    def all_rows(self, queries: int, body: Callable[[Expr], Stmt]) -> Stmt:
        """body(r) for the rows of so many queries, which number registers."""
        return unroll("g", queries * self.spec.group, body)

    def each_query(self, queries: int, body: Callable[[int], Stmt]) -> Stmt:
        return seq(*map(body, range(queries)))

    def page(self, q: Queries, token: Expr) -> Expr:
        return self.spec.page_table[q.pages + token // self.spec.cache.page_size]

    def query_of(self, r: Expr) -> Expr:
        return r // self.spec.group if self.several else wrap(0)

    def start(self, q: Queries) -> Stmt:
        """Queries to where all threads read them, and m, l and o of no piece."""
        s = self.spec

        def channel(d: Var) -> Stmt:
            def one(r: Var) -> Stmt:
                n = q.start + minimum(self.query_of(r), q.count - 1) if self.several else q.start
                value = s.q[n, (q.head * s.group + r % s.group) * s.dim + d]
                return store(self.q, (r, d), cast(F32, value))

            return loop("row", self.most, one)

        def empty(d: Var) -> Stmt:
            return self.all_rows(self.queries, lambda r: store(self.o, (r, d), 0.0))

        def clear(r: Expr) -> Stmt:
            m, total = s.head_sink(q.head * s.group + r % s.group)
            return seq(store(self.m, r, m), store(self.total, r, total))

        return seq(threads("d", s.dim, channel), self.channels(empty), self.rows(q, clear))

    def piece(self, q: Queries, c: Expr) -> Stmt:
        """m and l of a piece in tops[r] and sums[r], its output in part."""
        s = self.spec
        begin = c * s.piece

        def with_count(count: Var) -> Stmt:
            return seq(
                self.score(q, begin, count), self.soften(q, begin, count),
                self.weigh(q, begin, count),
            )  # fmt: skip

        return let("count", minimum(q.last + 1 - begin, s.piece), with_count, lo=1)

    def score(self, q: Queries, begin: Expr, count: Expr) -> Stmt:
        """scores[r, token] = scale * q[r] . k[token], LOW where the row does not see the token."""
        s, size = self.spec, self.spec.cache.page_size
        width = min(_TOKENS, s.piece)
        slots = (count + (size - 1)) // size * size

        def one(token: Expr) -> Stmt:
            seen = attended(s, q.position, q.last, begin + token)
            blank = loop("row", self.most, lambda r: store(self.scores, (r, token), LOW))
            found = self.products(q, begin, token, self.queries)
            return If(seen, found, blank)

        def some(turn: Var) -> Stmt:
            return threads(
                "x", width, lambda x: If(turn * width + x < slots, one(turn * width + x))
            )

        return loop("turn", (slots + (width - 1)) // width, some)

    def products(self, q: Queries, begin: Expr, token: Expr, queries: int) -> Stmt:
        """The scores of a token's key, which is read once for all rows."""
        s = self.spec
        slot = token % s.cache.page_size
        dot = Buffer("dot", F32, (wrap(queries * s.group),), "register")

        def on_page(page: Var) -> Stmt:
            def channel(d: Var) -> Stmt:
                key = cast(F32, s.cache.key(page, q.head, d, slot))

                def add(k: Var) -> Stmt:
                    return self.all_rows(
                        queries, lambda r: store(dot, r, fma(k, self.q[r, d], dot[r]))
                    )

                return let("k", key, add)

            def keep(query: int, scale: Expr | None) -> Stmt:
                seen = attends(s, q.at(query), begin + token) if queries > 1 else wrap(True)

                def one(r: Expr) -> Stmt:
                    score = dot[r] * s.scale
                    score = score if scale is None else score * scale
                    score = softcap(score, s.softcap) if s.softcap else score
                    return store(self.scores, (r, token), select(seen, score, LOW))

                return self.heads(one, query)

            def kept(scale: Expr | None) -> Stmt:
                return self.each_query(queries, lambda query: keep(query, scale))

            ending = (
                kept(None)
                if s.cache.scales is None
                else let("scale", cast(F32, s.cache.scale(page, 0, q.head, slot)), kept)
            )
            return seq(
                self.all_rows(queries, lambda r: store(dot, r, 0.0)),
                loop("d", s.dim, channel),
                ending,
            )

        return Alloc(dot, let("page", self.page(q, begin + token), on_page))

    def soften(self, q: Queries, begin: Expr, count: Expr) -> Stmt:
        """Maxima, exponentials and their sums: by slots of a page, then in halves.

        Of a row that sees no token of the piece they mean nothing, and `merge` leaves them out.
        """
        size = self.spec.cache.page_size
        used = (count + (size - 1)) // size

        def largest(r: Expr, t: Expr) -> Stmt:
            return self.over_pages(
                used, LOW, r, t,
                lambda u, lane: store(lane, 0, maximum(lane[0], self.scores[r, u * size + t])),
            )  # fmt: skip

        def with_top(r: Expr, t: Expr, top: Expr) -> Stmt:
            return seq(store(self.peak, (r, t), top), _first(t, store(self.tops, r, top)))

        def total(r: Expr, t: Expr) -> Stmt:
            def add(u: Var, lane: Buffer) -> Stmt:
                at = (r, u * size + t)
                kept = self.value_scale(q, begin + u * size + t)

                def with_e(e: Var) -> Stmt:
                    value = e if kept is None else e * kept
                    return seq(store(self.scores, at, value), store(lane, 0, lane[0] + e))

                return let("e", exp(self.scores[at] - self.peak[r, t]), with_e)

            return self.over_pages(used, 0.0, r, t, add)

        def with_sum(r: Expr, t: Expr, value: Expr) -> Stmt:
            return _first(t, store(self.sums, r, value))

        return seq(
            self.slots(q, largest),
            *self.halves(q, maximum, with_top),
            self.slots(q, total),
            *self.halves(q, lambda a, b: a + b, with_sum),
        )

    def value_scale(self, q: Queries, token: Expr) -> Expr | None:
        s = self.spec
        if s.cache.scales is None:
            return None
        slot = token % s.cache.page_size
        return cast(F32, s.cache.scale(self.page(q, token), 1, q.head, slot))

    def over_pages(
        self, used: Expr, start: float, r: Expr, t: Expr, body: Callable[[Var, Buffer], Stmt]
    ) -> Stmt:
        """lanes[0][r, t] = what the body gathers in one register over all pages."""
        lane = Buffer("lane", F32, (wrap(1),), "register")
        run = loop("u", used, lambda u: body(u, lane))
        return Alloc(lane, seq(store(lane, 0, start), run, store(self.lanes[0], (r, t), lane[0])))

    def halves(
        self,
        q: Queries,
        combine: Callable[[Expr, Expr], Expr],
        done: Callable[[Expr, Expr, Expr], Stmt],
    ) -> list[Stmt]:
        """done(r, t, value) with what all slots of lanes[0] come to, folded in halves.

        A slot takes in the one `width` away from it, in which one bit of its number differs; so all
        of them come to the value that the first would if it alone took in the half behind.
        """
        size = self.spec.cache.page_size

        def fold(k: int) -> Stmt:
            here, width = self.lanes[k], size >> k + 1

            def one(r: Expr, t: Expr) -> Stmt:
                found: Expr = here[r, t]
                if width:
                    found = combine(found, here[r, Binary("^", t, wrap(width))])
                if width > 1:
                    return store(self.lanes[k + 1], (r, t), found)
                return let("found", found, lambda value: done(r, t, value))

            return self.slots(q, one)

        return [fold(k) for k in range(len(self.lanes))]

    def weigh(self, q: Queries, begin: Expr, count: Expr) -> Stmt:
        """part[r, d] = sum over tokens that row r sees of scores[r, token] * v[token, d]."""

        def channel(d: Var) -> Stmt:
            clear = self.all_rows(self.queries, lambda r: store(self.part, (r, d), 0.0))
            return seq(clear, walk(self.queries, d))

        def walk(queries: int, d: Var) -> Stmt:
            def whole(t: Expr) -> Stmt:
                def all_rows(v: Var) -> Stmt:
                    return self.all_rows(queries, lambda r: self.add_row(r, t, d, v))

                return self.value(q, begin, t, d, all_rows)

            def guarded(t: Expr) -> Stmt:
                def one(query: int, v: Var) -> Stmt:
                    seen = attends(self.spec, q.at(query), begin + t)
                    return self.heads(lambda r: self.add_row(r, t, d, v, seen), query)

                return self.value(
                    q, begin, t, d, lambda v: self.each_query(queries, lambda i: one(i, v))
                )

            return self.tokens(q, begin, count, queries, whole, guarded)

        return self.channels(channel)

    def tokens(
        self,
        q: Queries,
        begin: Expr,
        count: Expr,
        queries: int,
        whole: Callable[[Expr], Stmt],
        guarded: Callable[[Expr], Stmt],
    ) -> Stmt:
        """Tokens in order: `whole` for those that all of the queries see, else `guarded`."""
        s = self.spec
        several = queries > 1
        if s.limited:
            body = guarded if several else whole
            return loop(
                "token",
                count,
                lambda t: If(attended(s, q.position, q.last, begin + t), body(t)),
            )
        if not (several and s.causal):
            return loop("token", count, whole)

        def parts(top: Var) -> Stmt:
            rest = loop("token", count - top, lambda t: guarded(top + t))
            return seq(loop("token", top, whole), rest)

        return let("top", minimum(maximum(q.position + 1 - begin, 0), count), parts, lo=0)

    def value(self, q: Queries, begin: Expr, t: Expr, d: Var, body: Callable[[Var], Stmt]) -> Stmt:
        """body(element d of a token's value), read once for all rows."""
        cache = self.spec.cache

        def on_page(page: Var) -> Stmt:
            return let("v", cast(F32, cache.value(page, q.head, t % cache.page_size, d)), body)

        return let("page", self.page(q, begin + t), on_page)

    def add_row(self, r: Expr, t: Expr, d: Var, v: Var, seen: Expr | None = None) -> Stmt:
        part = self.part[r, d]
        added = fma(v, self.scores[r, t], part)
        return store(self.part, (r, d), added if seen is None else select(seen, added, part))

    def merge(self, q: Queries, c: Expr) -> Stmt:
        """Take in a piece: both sides are scaled to the larger of the two maxima.

        Of several queries those do so that see a token of it.
        """

        def row(r: Expr) -> Stmt:
            seen = self.seen(q, self.query_of(r), c)

            def scaled(new: Var) -> Stmt:
                total = self.total[r] * self.old[r] + self.sums[r] * self.fresh[r]
                return seq(
                    store(self.old, r, exp(self.m[r] - new)),
                    store(self.fresh, r, exp(self.tops[r] - new)),
                    store(self.total, r, self.chosen(seen, total, self.total[r])),
                    store(self.m, r, self.chosen(seen, new, self.m[r])),
                )

            return let("new", maximum(self.m[r], self.tops[r]), scaled)

        def channel(d: Var) -> Stmt:
            def query(i: int) -> Stmt:
                seen = self.seen(q, wrap(i), c)

                def one(r: Expr) -> Stmt:
                    merged = self.o[r, d] * self.old[r] + self.part[r, d] * self.fresh[r]
                    return store(self.o, (r, d), self.chosen(seen, merged, self.o[r, d]))

                return self.heads(one, i)

            return self.each_query(self.queries, query)

        return seq(self.rows(q, row), self.channels(channel))

    def chosen(self, seen: Expr, value: Expr, kept: Expr) -> Expr:
        """The value where the query sees what it comes from; a single one always does."""
        return select(seen, value, kept) if self.several else value

    def seen(self, q: Queries, query: Expr, c: Expr) -> Expr:
        """Whether a query sees any token of piece c, which some query of the group sees."""
        return reaches(self.spec, q.at(query), q.at(query), c)

    def finish(self, q: Queries) -> Stmt:
        s = self.spec

        def channel(d: Var) -> Stmt:
            def query(i: int) -> Stmt:
                def one(r: Expr) -> Stmt:
                    h = q.head * s.group + r - i * s.group
                    value = cast(s.out.dtype, self.o[r, d] / self.total[r])
                    n = q.start + minimum(i, q.count - 1) if i else q.start
                    return store(s.out, (n, h * s.out_dim + d), value)

                return self.heads(one, i)

            return self.each_query(self.queries, query)

        return self.channels(channel)

    def save(self, q: Queries, c: Expr, partial: Buffer) -> Stmt:
        """The piece of a single query for those who merge it."""
        s = self.spec

        def at(r: Expr, d: ExprLike) -> tuple[ExprLike, ...]:
            return (q.start, q.head * s.group + r, c, d)

        def row(r: Expr) -> Stmt:
            return seq(
                store(partial, at(r, s.out_dim), self.tops[r]),
                store(partial, at(r, s.out_dim + 1), self.sums[r]),
            )

        def channel(d: Var) -> Stmt:
            return self.heads(lambda r: store(partial, at(r, d), self.part[r, d]))

        return seq(self.rows(q, row), self.channels(channel))


def _folds(page_size: int) -> int:
    return max(1, page_size.bit_length() - 1)


def _first(t: Expr, body: Stmt) -> Stmt:
    """The body in the first slot alone."""
    return If(t < 1, body)
