"""Values weighted by the softmax of a piece: the second half of attention's inner part.

Makes, for each row, o = sum of exp(score - m) * v, token by token in order. A value that a row
does not see never enters its sum, not even times zero: it may be anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sterna.base.dtype import F32
from sterna.ir.expr import Buffer, Expr, Var, cast, fma, maximum, minimum, wrap
from sterna.ir.loop import Alloc, If, Prefetch, Stmt, seq, store
from sterna.kernels.attention_rows import Piece
from sterna.kernels.attention_spec import attends, reaches, reads_page
from sterna.kernels.build import let, loop, unroll, vector


@dataclass(frozen=True, slots=True)
class Values(Piece):
    """Values of a piece, for all rows."""

    def weigh(self, keep: Callable[[Expr, Expr, Expr], Stmt]) -> Stmt:
        """keep(r, d, sum over tokens that row r sees of scores[r, token] * v[token, d])."""
        panel, lanes = self.rows.panel, self.rows.channels

        def channels(o: Var) -> Stmt:
            d = o * lanes
            if panel is None:
                return self.each_block(lambda r: self.block_values(r, d, None, keep))
            return seq(
                loop("u", self.used, lambda u: self.copy_values(u, d, panel)),
                self.each_block(lambda r: self.block_values(r, d, panel, keep)),
            )

        return loop("o", self.spec.out_dim // lanes, channels)

    def copy_values(self, u: Var, d: Expr, panel: Buffer) -> Stmt:
        """panel[token, i] = v[token, d + i] for the tokens of a page."""
        s, size, lanes = self.spec, self.spec.cache.page_size, self.rows.channels

        def token(page: Var, t: Var) -> Stmt:
            def one(i: Var) -> Stmt:
                value = cast(F32, s.cache.value(page, self.q.head, t, d + i))
                return store(panel, (u * size + t) * lanes + i, value)

            return vector("i", lanes, one)

        copy = self.page(u, lambda page: loop("t", size, lambda t: token(page, t)))
        if not s.limited:
            return copy
        return If(reads_page(s, self.q.position, self.begin + u * size), copy)

    def block_values(
        self,
        first: Expr,
        d: Expr,
        panel: Buffer | None,
        keep: Callable[[Expr, Expr, Expr], Stmt],
    ) -> Stmt:
        s, block, lanes = self.spec, self.rows.block, self.rows.channels
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
            if not s.limited:
                return seq(
                    self.tokens(wrap(0), top, d, panel, whole),
                    self.tokens(top, end, d, panel, guarded),
                )
            return let(
                "low",
                within(s.unseen(lowest) + 1),
                lambda low: let(
                    "bottom",
                    within(s.unseen(highest) + 1),
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
        s, size, lanes = self.spec, self.spec.cache.page_size, self.rows.channels
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
        s, size, lanes = self.spec, self.spec.cache.page_size, self.rows.channels
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
