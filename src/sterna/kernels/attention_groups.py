"""Paged flash attention for targets with work groups: a group for one query and kv head.

The same sums in the same order as in `attention`, so the same bits: scores token by token, their
maxima and sums by slots of a page and then across, values token by token, pieces in order. What
differs is who computes what: in a group, neighbouring threads take neighbouring tokens for the
scores and neighbouring channels for the values.
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
    wrap,
)
from sterna.ir.loop import Alloc, ForKind, If, PrimFunc, Stmt, seq, store
from sterna.kernels.attention_spec import LOW, AttentionSpec, attends, reaches
from sterna.kernels.build import let, loop, parallel
from sterna.kernels.kv_cache import LAYER
from sterna.ops.activation import softcap

_TOKENS = 128  # that a group scores side by side
_ROWS = 8  # query heads whose scores are reduced side by side


def attention_tiles_groups(
    name: str, s: AttentionSpec, dims: tuple[Var, ...], tile: int
) -> PrimFunc:
    """A group for each (tile, query of it, kv head): all pieces in order."""
    tiles, kv_heads = s.tile_start.shape[0], s.cache.kv_heads

    def group(w: Var) -> Stmt:
        head, i, t = w % kv_heads, w // kv_heads % tile, w // (kv_heads * tile)

        def query(q: _Query) -> Stmt:
            memory = _Memory.of(s)
            reached = minimum(q.position // s.piece + 1, s.pieces)

            def piece(c: Var) -> Stmt:
                run = seq(memory.piece(q, c), memory.merge())
                return If(reaches(s, q.position, q.position, c), run) if s.limited else run

            return memory.scoped(
                seq(memory.start(q), loop("piece", reached, piece), memory.finish(q))
            )

        return If(i < s.tile_size[t], _at_query(s, t, i, head, query))

    body = parallel("group", tiles * tile * kv_heads, group)
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

        def query(q: _Query) -> Stmt:
            memory = _Memory.of(s)
            run = seq(memory.start(q), memory.piece(q, c), memory.save(q, c, partial))
            return If(reaches(s, q.position, q.position, c), memory.scoped(run))

        return _at_query(s, t, wrap(0), head, query)

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


@dataclass(frozen=True, slots=True)
class _Query:
    """Token `n` at `position`, for one kv head; `pages`: where its page table begins."""

    n: Expr
    position: Expr
    pages: Expr
    head: Expr


def _at_query(
    s: AttentionSpec, t: Expr, i: Expr, head: Expr, body: Callable[[_Query], Stmt]
) -> Stmt:
    def at(n: Var) -> Stmt:
        def placed(position: Var) -> Stmt:
            pages = s.page_indptr[s.tile_seq[t]]
            return let("pages", pages, lambda p: body(_Query(n, position, p, head)))

        return let("position", s.positions[n], placed, lo=0)

    return let("n", s.tile_start[t] + i, at, lo=0)


def _threads(name: str, extent: int, body: Callable[[Var], Stmt]) -> Stmt:
    return loop(name, extent, body, ForKind.THREAD)


@dataclass(frozen=True, slots=True)
class _Memory:
    """What a group keeps: queries and scores of its heads, their running m, l and o."""

    spec: AttentionSpec
    q: Buffer  # [group, dim]
    scores: Buffer  # [group, piece]
    lanes: tuple[Buffer, ...]  # [group, page_size] each: maxima or sums by slot, then across
    peak: Buffer  # [group, page_size] the maximum, alike in all slots
    tops: Buffer  # [group] and below: of a piece
    sums: Buffer
    m: Buffer  # of all pieces so far
    total: Buffer
    old: Buffer  # what the last merge scales the pieces before by
    fresh: Buffer  # and the new one
    part: Buffer  # [group, out_dim] of the last piece
    o: Buffer  # [group, out_dim]

    @staticmethod
    def of(s: AttentionSpec) -> _Memory:
        def memory(name: str, *shape: int, scope: str = "shared") -> Buffer:
            return Buffer(name, F32, tuple(wrap(d) for d in (s.group, *shape)), scope)

        size = s.cache.page_size
        return _Memory(
            s,
            memory("queries", s.dim),
            memory("scores", s.piece),
            tuple(memory(f"lanes_{size >> k}", size) for k in range(max(1, size.bit_length() - 1))),
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

    def scoped(self, body: Stmt) -> Stmt:
        memory = (self.q, self.scores, *self.lanes, self.peak, self.tops, self.sums, self.m)
        for buffer in (*memory, self.total, self.old, self.fresh, self.part, self.o):
            body = Alloc(buffer, body)
        return body

    def rows(self, body: Callable[[Expr], Stmt]) -> Stmt:
        """body(r) for every head of the group, in threads: to stand around other threads."""
        group = self.spec.group
        side = min(group, _ROWS)

        def some(block: Var) -> Stmt:
            def one(r: Var) -> Stmt:
                row = block * side + r
                return body(row) if group % side == 0 else If(row < group, body(row))

            return _threads("r", side, one)

        return loop("block", -(-group // side), some)

    def slots(self, width: int, body: Callable[[Expr, Expr], Stmt]) -> Stmt:
        """body(r, slot) in threads, for slots below `width`."""
        group = self.spec.group
        side = min(group, _ROWS)

        def some(block: Var) -> Stmt:
            def one(r: Var, t: Var) -> Stmt:
                row = block * side + r
                return body(row, t) if group % side == 0 else If(row < group, body(row, t))

            return _threads("r", side, lambda r: _threads("t", width, lambda t: one(r, t)))

        return loop("block", -(-group // side), some)

    def channels(self, body: Callable[[Var], Stmt]) -> Stmt:
        return _threads("d", self.spec.out_dim, body)

    def heads(self, body: Callable[[Var], Stmt]) -> Stmt:
        return loop("g", self.spec.group, body)

    def start(self, q: _Query) -> Stmt:
        s = self.spec

        def channel(d: Var) -> Stmt:
            def one(g: Var) -> Stmt:
                value = cast(F32, s.q[q.n, (q.head * s.group + g) * s.dim + d])
                return store(self.q, (g, d), value)

            return self.heads(one)

        def empty(d: Var) -> Stmt:
            return self.heads(lambda g: store(self.o, (g, d), 0.0))

        def clear(r: Expr) -> Stmt:
            m, total = s.head_sink(q.head * s.group + r)
            return seq(store(self.m, r, m), store(self.total, r, total))

        queries = _threads("d", s.dim, channel)
        return seq(queries, self.channels(empty), self.rows(clear))

    def piece(self, q: _Query, c: Expr) -> Stmt:
        """m and l of a piece in tops[r] and sums[r], its output in part."""
        s = self.spec
        begin = c * s.piece

        def with_count(count: Var) -> Stmt:
            return seq(
                self.score(q, begin, count), self.soften(q, begin, count),
                self.weigh(q, begin, count),
            )  # fmt: skip

        return let("count", minimum(q.position + 1 - begin, s.piece), with_count, lo=1)

    def page(self, q: _Query, token: Expr) -> Expr:
        return self.spec.page_table[q.pages + token // self.spec.cache.page_size]

    def score(self, q: _Query, begin: Expr, count: Expr) -> Stmt:
        s, size = self.spec, self.spec.cache.page_size
        width = min(_TOKENS, s.piece)
        slots = (count + (size - 1)) // size * size

        def one(token: Expr) -> Stmt:
            seen = attends(s, q.position, begin + token)
            blank = self.heads(lambda g: store(self.scores, (g, token), LOW))
            return If(seen, self.products(q, begin, token), blank)

        def some(turn: Var) -> Stmt:
            return _threads(
                "x", width, lambda x: If(turn * width + x < slots, one(turn * width + x))
            )

        return loop("turn", (slots + (width - 1)) // width, some)

    def products(self, q: _Query, begin: Expr, token: Expr) -> Stmt:
        """scores[g, token] = q[g] . k[token]: the key is read once for all heads."""
        s = self.spec
        slot = token % s.cache.page_size
        dot = Buffer("dot", F32, (wrap(s.group),), "register")

        def on_page(page: Var) -> Stmt:
            def channel(d: Var) -> Stmt:
                key = cast(F32, s.cache.key(page, q.head, d, slot))
                return let(
                    "k",
                    key,
                    lambda k: self.heads(lambda g: store(dot, g, fma(k, self.q[g, d], dot[g]))),
                )

            def scaled(g: Var) -> Expr:
                score = dot[g] * s.scale
                if s.cache.scales is not None:
                    score = score * cast(F32, s.cache.scale(page, 0, q.head, slot))
                return softcap(score, s.softcap) if s.softcap else score

            return seq(
                self.heads(lambda g: store(dot, g, 0.0)),
                loop("d", s.dim, channel),
                self.heads(lambda g: store(self.scores, (g, token), scaled(g))),
            )

        return Alloc(dot, let("page", self.page(q, begin + token), on_page))

    def soften(self, q: _Query, begin: Expr, count: Expr) -> Stmt:
        """Maxima, exponentials and their sums: by slots of a page, then in halves."""
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
            self.slots(size, largest),
            *self.halves(maximum, with_top),
            self.slots(size, total),
            *self.halves(lambda a, b: a + b, with_sum),
        )

    def value_scale(self, q: _Query, token: Expr) -> Expr | None:
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

            return self.slots(size, one)

        return [fold(k) for k in range(len(self.lanes))]

    def weigh(self, q: _Query, begin: Expr, count: Expr) -> Stmt:
        """part[g, d] = sum over tokens of scores[g, token] * v[token, d]."""
        s, size = self.spec, self.spec.cache.page_size

        def token(page: Var, t: Expr, d: Var) -> Stmt:
            value = cast(F32, s.cache.value(page, q.head, t % size, d))

            def with_value(v: Var) -> Stmt:
                return self.heads(
                    lambda g: store(self.part, (g, d), fma(v, self.scores[g, t], self.part[g, d]))
                )

            return let("v", value, with_value)

        def seen(t: Var, d: Var) -> Stmt:
            run = let("page", self.page(q, begin + t), lambda page: token(page, t, d))
            return If(attends(s, q.position, begin + t), run) if s.limited else run

        def channel(d: Var) -> Stmt:
            clear = self.heads(lambda g: store(self.part, (g, d), 0.0))
            return seq(clear, loop("token", count, lambda t: seen(t, d)))

        return self.channels(channel)

    def merge(self) -> Stmt:
        """Take in a piece: both sides are scaled to the larger of the two maxima."""

        def row(r: Expr) -> Stmt:
            def scaled(new: Var) -> Stmt:
                return seq(
                    store(self.old, r, exp(self.m[r] - new)),
                    store(self.fresh, r, exp(self.tops[r] - new)),
                    store(
                        self.total, r,
                        self.total[r] * self.old[r] + self.sums[r] * self.fresh[r],
                    ),
                    store(self.m, r, new),
                )  # fmt: skip

            return let("new", maximum(self.m[r], self.tops[r]), scaled)

        def channel(d: Var) -> Stmt:
            def one(g: Var) -> Stmt:
                merged = self.o[g, d] * self.old[g] + self.part[g, d] * self.fresh[g]
                return store(self.o, (g, d), merged)

            return self.heads(one)

        return seq(self.rows(row), self.channels(channel))

    def finish(self, q: _Query) -> Stmt:
        s = self.spec

        def channel(d: Var) -> Stmt:
            return self.heads(
                lambda g: _put(s, q.n, q.head * s.group + g, d, self.o[g, d] / self.total[g])
            )

        return self.channels(channel)

    def save(self, q: _Query, c: Expr, partial: Buffer) -> Stmt:
        s = self.spec

        def at(g: Expr, d: ExprLike) -> tuple[ExprLike, ...]:
            return (q.n, q.head * s.group + g, c, d)

        def row(r: Expr) -> Stmt:
            return seq(
                store(partial, at(r, s.out_dim), self.tops[r]),
                store(partial, at(r, s.out_dim + 1), self.sums[r]),
            )

        def channel(d: Var) -> Stmt:
            return self.heads(lambda g: store(partial, at(g, d), self.part[g, d]))

        return seq(self.rows(row), self.channels(channel))


def _first(t: Expr, body: Stmt) -> Stmt:
    """The body in the first slot alone."""
    return If(t < 1, body)


def _put(s: AttentionSpec, n: Expr, h: Expr, d: Expr, value: Expr) -> Stmt:
    return store(s.out, (n, h * s.out_dim + d), cast(s.out.dtype, value))


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
        done = _put(s, n, h, d, state[2] / state[1])
        return Alloc(state, seq(start, loop("piece", reached, one), done))

    return _threads("d", s.out_dim, channel)
