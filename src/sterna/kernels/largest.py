"""The largest logit of each row on a target with work groups: what is greedy stays on the device.

The meaning is that of `runtime.sampling` for rows whose inverse temperature is 0: what is allowed,
then bias and penalties, then the first largest, or NONE where that is infinite or no number. Three
kernels: one copies rows and masks them, one changes the few tokens of the list of edits, one
reduces blocks of a row to a candidate each and those to the token.

Floats are compared as whole numbers that rise with them: what memory holds is read as u32 by a
kernel of its own, so infinities and NaNs mean the same on targets that promise nothing of them. A
product and the difference after it stand in two launches, where no compiler fuses them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sterna.base.dtype import F32, I32, U32, DType
from sterna.ir.expr import (
    Binary,
    Buffer,
    Expr,
    Var,
    cast,
    equals,
    logical_and,
    logical_or,
    select,
    wrap,
)
from sterna.ir.loop import Alloc, ForKind, If, PrimFunc, Stmt, seq, store
from sterna.kernels.build import let, loop, parallel
from sterna.kernels.sample import EDITS, NONE, ROW, VOCABULARY, SampleBuffers
from sterna.kernels.weights import LARGEST

_SIGN, _ALL = 0x80000000, 0xFFFFFFFF
_INFINITY = 0x7F800000
_FINITE = int(np.float32(LARGEST).view(np.uint32))  # the bits of the largest that is a number


@dataclass(frozen=True, slots=True)
class LargestBuffers:
    """Besides what the caller gives: the rows as they are looked at, and each block's best.

    `bits` is the memory of `x` [r, size], read as whole numbers; `tops` [r, blocks, 2] are the
    order of a block's largest and its token. A block is of `block` tokens, taken by `lanes`
    threads of a group, or by one thread alone.
    """

    given: SampleBuffers
    x: Buffer
    bits: Buffer
    tops: Buffer
    blocks: int
    block: int
    lanes: int

    @staticmethod
    def of(vocabulary: int, logit_rows: Var, *, barriers: bool) -> LargestBuffers:
        """Buffers for a model with so many logits a row."""
        block, lanes = (1024, 64) if barriers else (256, 1)
        blocks = -(-vocabulary // block)

        def buffer(name: str, dtype: DType, *shape: int) -> Buffer:
            return Buffer(name, dtype, (ROW, *(wrap(d) for d in shape)))

        return LargestBuffers(
            SampleBuffers.of(vocabulary, logit_rows),
            buffer("x", F32, blocks * block),
            buffer("x", U32, blocks * block),
            buffer("tops", U32, blocks, 2),
            blocks,
            block,
            lanes,
        )

    def threads(self, name: str, extent: int, body: Callable[[Expr], Stmt]) -> Stmt:
        """body(t) for the threads of a group, where a group has several."""
        return loop(name, extent, body, ForKind.SERIAL if self.lanes == 1 else ForKind.THREAD)

    def each_block(self, body: Callable[[Expr, Expr], Stmt]) -> Stmt:
        """body(row, block) by a group for every block of every row."""
        return parallel(
            "group", ROW * self.blocks, lambda g: body(g // self.blocks, g % self.blocks)
        )


def place_rows(name: str, b: LargestBuffers) -> PrimFunc:
    """x = the logits of the rows that are asked for; minus infinity for what may not come."""
    given, nothing = b.given, wrap(float("-inf"))

    def group(row: Expr, block: Expr) -> Stmt:
        def thread(t: Expr) -> Stmt:
            return loop("i", b.block // b.lanes, lambda i: token(block * b.block + i * b.lanes + t))

        def token(at: Expr) -> Stmt:
            copied = store(b.x, (row, at), given.logits[given.rows[row], at])
            barred = If(wrap(0) < given.masked[row], forbid(at))
            return If(at < VOCABULARY, seq(copied, barred), store(b.x, (row, at), nothing))

        def forbid(at: Expr) -> Stmt:
            bit = (given.allowed[row, at // 32] >> cast(U32, at % 32)) & wrap(1, U32)
            return If(equals(bit, wrap(0, U32)), store(b.x, (row, at), nothing))

        return b.threads("t", b.lanes, thread)

    params = (given.logits, given.rows, given.masked, given.allowed, b.x)
    return PrimFunc(name, params, (ROW, EDITS, VOCABULARY), b.each_block(group))


def edit_rows(name: str, b: LargestBuffers) -> PrimFunc:
    """Every edit of every row: bias and scale, then what is taken away."""
    given = b.given

    def at_row(e: Var, body: Callable[[Expr, Expr], Stmt]) -> Stmt:
        """body(row of edit e, its token): as many rows end before it as the row's number."""
        row = Buffer("row", I32, (wrap(1),), "register")

        def pass_by(i: Var) -> Stmt:
            return If(given.edit_indptr[i + 1] <= e, store(row, 0, i + 1))

        find = seq(store(row, 0, 0), loop("i", ROW, pass_by))
        found = let("at", row[0], lambda r: body(r, given.edit_ids[e]))
        return Alloc(row, seq(find, found))

    def scale(e: Var) -> Stmt:
        def put(row: Expr, token: Expr) -> Stmt:
            moved = b.x[row, token] + given.edits[e, 0]
            return let("moved", moved, lambda x: store(b.x, (row, token), scaled(x)))

        def scaled(x: Expr) -> Expr:
            return x * select(wrap(0.0) < x, given.edits[e, 1], given.edits[e, 2])

        return at_row(e, put)

    def lessen(e: Var) -> Stmt:
        return at_row(e, lambda r, token: store(b.x, (r, token), b.x[r, token] - given.edits[e, 3]))

    params = (given.edit_indptr, given.edit_ids, given.edits, b.x)
    body = seq(parallel("edit", EDITS, scale), parallel("edit", EDITS, lessen))
    return PrimFunc(name, params, (ROW, EDITS, VOCABULARY), body)


def take_largest(name: str, b: LargestBuffers) -> PrimFunc:
    """sampled[i] = the first largest of row i, or NONE."""

    def block(row: Expr, block: Expr) -> Stmt:
        def candidate(i: Expr, body: _Candidate) -> Stmt:
            at = block * b.block + i
            return let("order", _order(b.bits[row, at]), lambda o: body(o, at))

        def keep(order: Expr, token: Expr) -> Stmt:
            at = (row, block)
            return seq(store(b.tops, (*at, 0), order), store(b.tops, (*at, 1), cast(U32, token)))

        return _reduced(b, b.block, candidate, keep)

    def row(row: Var) -> Stmt:
        def candidate(i: Expr, body: _Candidate) -> Stmt:
            order, token = b.tops[row, i, 0], cast(I32, b.tops[row, i, 1])
            return let("order", order, lambda o: body(o, token))

        def keep(order: Expr, token: Expr) -> Stmt:
            chosen = select(_is_number(order), token, wrap(NONE))
            return store(b.given.sampled, row, chosen)

        return _reduced(b, b.blocks, candidate, keep)

    body = seq(b.each_block(block), parallel("row", ROW, row))
    params = (b.bits, b.tops, b.given.sampled)
    return PrimFunc(name, params, (ROW, EDITS, VOCABULARY), body)


_Candidate = Callable[[Expr, Expr], Stmt]  # of its order and token


def _reduced(
    b: LargestBuffers,
    count: int,
    candidate: Callable[[Expr, _Candidate], Stmt],
    keep: _Candidate,
) -> Stmt:
    """keep(order, token) of the largest among candidates 0 to count; tokens rise with them."""
    lanes = b.lanes
    orders = Buffer("orders", U32, (wrap(lanes),), "shared")
    tokens = Buffer("tokens", I32, (wrap(lanes),), "shared")

    def thread(t: Expr) -> Stmt:
        best = Buffer("best", U32, (wrap(1),), "register")
        own = Buffer("own", I32, (wrap(1),), "register")

        def take(order: Expr, token: Expr) -> Stmt:
            return If(best[0] < order, seq(store(best, 0, order), store(own, 0, token)))

        def one(turn: Var) -> Stmt:
            i = turn * lanes + t
            taken = candidate(i, take)
            return taken if count % lanes == 0 else If(i < count, taken)

        look = loop("turn", -(-count // lanes), one)
        done = seq(store(orders, t, best[0]), store(tokens, t, own[0]))
        start = seq(store(best, 0, wrap(0, U32)), store(own, 0, 0))
        return Alloc(best, Alloc(own, seq(start, look, done)))

    def fold(width: int) -> Stmt:
        def one(t: Expr) -> Stmt:
            other = t + width
            first = logical_and(equals(orders[t], orders[other]), tokens[other] < tokens[t])
            taken = seq(store(orders, t, orders[other]), store(tokens, t, tokens[other]))
            return If(logical_or(Binary("<", orders[t], orders[other]), first), taken)

        return b.threads("t", width, one)

    folds = [fold(lanes >> k) for k in range(1, lanes.bit_length())]
    run = seq(b.threads("t", lanes, thread), *folds, keep(orders[0], tokens[0]))
    return Alloc(orders, Alloc(tokens, run))


def _order(bits: Expr) -> Expr:
    """A whole number that rises with the float of these bits: zeros alike, NaN above all."""
    negative = Binary("^", bits, _word(_ALL))
    plain = select(Binary("<", bits, _word(_SIGN)), Binary("|", bits, _word(_SIGN)), negative)
    zero = select(equals(bits, _word(_SIGN)), _word(_SIGN), plain)
    unknown = Binary("<", _word(_INFINITY), Binary("&", bits, _word(_SIGN - 1)))
    return select(unknown, _word(_ALL), zero)


def _is_number(order: Expr) -> Expr:
    """Whether the float of this order is finite, as far from infinity as sampling wants it."""
    above = Binary("<=", _word(_SIGN), order)
    size = select(above, Binary("^", order, _word(_SIGN)), Binary("^", order, _word(_ALL)))
    return Binary("<=", Binary("&", size, _word(_SIGN - 1)), _word(_FINITE))


def _word(value: int) -> Expr:
    return wrap(value, U32)
