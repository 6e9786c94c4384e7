"""What one attention call is: sizes, buffers, and which tokens a query sees. No loops."""

from __future__ import annotations

from dataclasses import dataclass

from sterna.base.dtype import F32
from sterna.ir.expr import Buffer, Expr, cast, logical_and, logical_or, wrap
from sterna.kernels.kv_cache import CacheLayout

LOW = -1.0e30  # the score of a token that is not attended to: exp(LOW - m) is 0
LANES = 16  # channels that are computed together
_MOST_ROWS = 6  # times two registers of 8 lanes: with a key and a query they fill 16 registers


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Sizes and buffers of one attention call. q: [n, heads * head_dim] in f32, out like it."""

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
    causal: bool = True  # False: `positions` holds the last position of each token's sequence
    softcap: float = 0.0  # scores bent by softcap * tanh(score / softcap); 0: as they are
    chunk: int = 0  # where not 0, a query sees the tokens of its own chunk of positions alone
    value_dim: int = 0  # of values, where they are the first elements of keys and not as long
    sink: Buffer | None = None  # [heads] score of a token that every query sees, its value 0
    vectors: int = 1  # of LANES lanes that a row has in registers, where many rows are computed

    @property
    def group(self) -> int:
        """Query heads that share a kv head."""
        return self.heads // self.cache.kv_heads

    @property
    def limited(self) -> bool:
        """Whether a query does not see all tokens before its own."""
        return self.window >= 0 or self.chunk > 0

    def unseen(self, position: Expr) -> Expr:
        """The last token before a query at `position` that it does not see, sinks aside."""
        if self.chunk:
            return wrap(position // self.chunk * self.chunk - 1)
        return wrap(position - self.window)

    def head_sink(self, head: Expr) -> tuple[Expr, Expr]:
        """m and l that a query head's softmax starts with."""
        if self.sink is None:
            return wrap(LOW), wrap(0.0)
        return cast(F32, self.sink[head]), wrap(1.0)

    @property
    def dim(self) -> int:
        return self.cache.head_dim

    @property
    def out_dim(self) -> int:
        """Elements of a head's values, and of its result."""
        return self.value_dim or self.dim

    @property
    def params(self) -> tuple[Buffer, ...]:
        """Inputs in the order of the operator's arguments, then the output."""
        index = (self.positions, self.page_indptr, self.page_table)
        tiles = (self.tile_start, self.tile_size, self.tile_seq)
        sink = () if self.sink is None else (self.sink,)
        return (self.q, *self.cache.buffers, *index, *tiles, *sink, self.out)


def block_rows(rows: int) -> int:
    """Rows computed together, such that blocks of them cover `rows` with the least waste."""
    blocks = -(-rows // _MOST_ROWS)
    return -(-rows // blocks)


def reaches(s: AttentionSpec, first: Expr, last: Expr, c: Expr) -> Expr:
    """Whether queries at positions first to last see any token of piece c."""
    begin = c * s.piece
    reached = begin <= last
    if not s.limited:
        return reached
    seen = s.unseen(first) < begin + (s.piece - 1)
    inside = logical_or(seen, begin < wrap(s.sinks)) if s.sinks else seen
    return logical_and(reached, inside)


def attends(s: AttentionSpec, position: Expr, token: Expr) -> Expr:
    """Whether a query sees the token at a position."""
    return attended(s, position, position, token)


def attended(s: AttentionSpec, first: Expr, last: Expr, token: Expr) -> Expr:
    """Whether a token is among those that queries at positions first to last see."""
    causal = token <= last
    if not s.limited:
        return causal
    near = s.unseen(first) < token
    inside = logical_or(near, token < wrap(s.sinks)) if s.sinks else near
    return logical_and(causal, inside)


def reads_page(s: AttentionSpec, first: Expr, page_begin: Expr) -> Expr:
    """Whether queries from position `first` on see any token of a page that they reach.

    What the window has left is never read: the engine may have given the page away.
    """
    last = page_begin + (s.cache.page_size - 1)
    inside = s.unseen(first) < last
    return logical_or(inside, page_begin < wrap(s.sinks)) if s.sinks else inside
