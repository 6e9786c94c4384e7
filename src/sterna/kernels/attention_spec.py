"""What one attention call is: sizes, buffers, and which tokens a query sees. No loops."""

from __future__ import annotations

from dataclasses import dataclass

from sterna.ir.expr import Buffer, Expr, logical_and, logical_or, wrap
from sterna.kernels.kv_cache import CacheLayout

LOW = -1.0e30  # the score of a token that is not attended to: exp(LOW - m) is 0
LANES = 16  # channels that are computed together
_MOST_ROWS = 6  # times two registers of 8 lanes: with a key and a query they fill 16 registers


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
    causal: bool = True  # False: `positions` holds the last position of each token's sequence
    softcap: float = 0.0  # scores bent by softcap * tanh(score / softcap); 0: as they are

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
        return (self.q, *self.cache.buffers, *index, *tiles, self.out)


def block_rows(rows: int) -> int:
    """Rows computed together, such that blocks of them cover `rows` with the least waste."""
    blocks = -(-rows // _MOST_ROWS)
    return -(-rows // blocks)


def reaches(s: AttentionSpec, first: Expr, last: Expr, c: Expr) -> Expr:
    """Whether queries at positions first to last see any token of piece c."""
    begin = c * s.piece
    reached = begin <= last
    if s.window < 0:
        return reached
    seen = wrap(first - s.window) < begin + (s.piece - 1)
    inside = logical_or(seen, begin < wrap(s.sinks)) if s.sinks else seen
    return logical_and(reached, inside)


def attends(s: AttentionSpec, position: Expr, token: Expr) -> Expr:
    """Whether a query sees the token at a position."""
    causal = token <= position
    if s.window < 0:
        return causal
    near = wrap(position - s.window) < token
    inside = logical_or(near, token < wrap(s.sinks)) if s.sinks else near
    return logical_and(causal, inside)


def reads_page(s: AttentionSpec, first: Expr, page_begin: Expr) -> Expr:
    """Whether queries from position `first` on see any token of a page that they reach.

    What the window has left is never read: the engine may have given the page away.
    """
    last = page_begin + (s.cache.page_size - 1)
    inside = wrap(first - s.window) < last
    return logical_or(inside, page_begin < wrap(s.sinks)) if s.sinks else inside
