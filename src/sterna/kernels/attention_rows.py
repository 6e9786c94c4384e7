"""What a work item of attention keeps in memory: rows, and where a piece of the cache lies.

A row is a query head of a query; the rows of a work item share a kv head, so each page of keys and
values is read once for all of them. Rows are computed in blocks that fill the registers; what a
block holds besides changes nothing in a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd

from sterna.base.dtype import F32
from sterna.ir.expr import Buffer, Expr, ExprLike, Var, cast, const_value, minimum, wrap
from sterna.ir.loop import Alloc, Stmt, store
from sterna.kernels.attention_spec import LANES, AttentionSpec, block_rows
from sterna.kernels.build import let, loop, vector

Body = Callable[[Var], Stmt]


@dataclass(frozen=True, slots=True)
class Queries:
    """`count` neighbouring queries of one sequence, from token `start` at `position` on.

    Where they are not `causal`, `position` is for all of them that of the sequence's last token.
    """

    start: Expr
    count: Expr
    position: Expr
    pages: Expr  # where the sequence's page table begins
    head: Expr  # of keys and values
    causal: bool = True

    @property
    def last(self) -> Expr:
        return self.position + self.count - 1 if self.causal else self.position

    def at(self, query: ExprLike) -> Expr:
        """The position of a query, or of the last for those past it."""
        return self.position + minimum(query, self.count - 1) if self.causal else self.position


@dataclass(frozen=True, slots=True)
class Rows:
    """Memory of one work item for `most` queries times the heads of a group, blocks of rows.

    `panel` holds keys of `pages` pages, or `channels` channels of a piece's values, as f32: worth a
    copy where several blocks read them. None: each block converts for itself.
    """

    spec: AttentionSpec
    block: int
    rows: int  # a multiple of block; those past the last one repeat it
    pages: int  # whose keys a block takes together
    channels: int  # of values that a block takes together
    q: Buffer  # [rows, dim]
    scores: Buffer  # [rows, piece]
    lanes: Buffer  # [page_size] a vector being reduced
    largest: Buffer  # [rows] of a piece's scores
    totals: Buffer  # [rows] sums of exp(score - largest)
    panel: Buffer | None
    value_scales: Buffer | None  # [piece] where the cache has 8 bits

    @staticmethod
    def of(s: AttentionSpec, queries: int) -> Rows:
        block = block_rows(queries * s.group)
        rows = -(-queries * s.group // block) * block
        vectors = s.vectors if rows > 2 * block else 1
        pages = gcd(s.piece // s.cache.page_size, vectors)
        channels = gcd(s.out_dim, LANES * vectors)
        size = max(s.dim * s.cache.page_size * pages, s.piece * channels)
        panel = _memory("panel", "scratch", size) if rows > 2 * block else None
        return Rows(
            s,
            block,
            rows,
            pages,
            channels,
            _memory("queries", "scratch", rows, s.dim),
            _memory("scores", "scratch", rows, s.piece),
            _memory("lanes", "local", s.cache.page_size),
            _memory("largest", "local", rows),
            _memory("totals", "local", rows),
            panel,
            None if s.cache.scales is None else _memory("value_scales", "local", s.piece),
        )

    def scoped(self, body: Stmt) -> Stmt:
        reduced = (self.lanes, self.largest, self.totals)
        for buffer in (self.q, self.scores, *reduced, self.panel, self.value_scales):
            body = body if buffer is None else Alloc(buffer, body)
        return body

    def blocks(self, q: Queries) -> Expr:
        return (q.count * self.spec.group + (self.block - 1)) // self.block

    def query(self, q: Queries, r: Expr) -> Expr:
        """Which of the queries a row belongs to."""
        return wrap(0) if const_value(q.count) == 1 else minimum(r // self.spec.group, q.count - 1)

    def position(self, q: Queries, r: Expr) -> Expr:
        """The last that the row's query sees."""
        return q.position + self.query(q, r) if q.causal else q.position

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


def _memory(name: str, scope: str, *shape: int) -> Buffer:
    return Buffer(name, F32, tuple(wrap(d) for d in shape), scope)


@dataclass(frozen=True, slots=True)
class Piece:
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
