"""What the tokens of a row weigh in a draw, sorted block by block, on a target with work groups.

A group weighs the tokens of a block, sorts the weights and sums them up, so how many are above a
weight, and what they come to, is a search: `kernels.draw` asks for that many times. Sums are pairs
of words, see `kernels.limbs`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sterna.base.dtype import U32
from sterna.ir.expr import (
    Binary,
    Buffer,
    Expr,
    Var,
    cast,
    equals,
    logical_and,
    maximum,
    select,
    wrap,
)
from sterna.ir.loop import Alloc, If, PrimFunc, Stmt, seq, store
from sterna.kernels.build import let, loop, parallel
from sterna.kernels.largest import LargestBuffers
from sterna.kernels.limbs import Pair, carried, high_part, less, low_part, word
from sterna.kernels.sample import EDITS, ROW, VOCABULARY
from sterna.kernels.weights import LARGEST, LOG2E, weigh

DRAWN = Var("d", lo=0)  # 1 where any row is drawn; 0: nothing of this is launched
DIMS = (ROW, EDITS, VOCABULARY, DRAWN)
_CHUNKS = 8  # of a block at least


@dataclass(frozen=True, slots=True)
class DrawBuffers:
    """Besides what the largest takes: each block's weights, sorted, and what is known of it.

    `heavy` [r, blocks, block] are weights, the largest first; `sums` [r, blocks, chunks, 2] is
    what the chunks before each come to, low part first; `marks` [r, blocks, 3] are the draw's own.
    """

    largest: LargestBuffers
    heavy: Buffer
    sums: Buffer
    marks: Buffer

    @staticmethod
    def of(b: LargestBuffers) -> DrawBuffers:
        def buffer(name: str, *shape: int) -> Buffer:
            return Buffer(name, U32, (ROW, *(wrap(d) for d in shape)))

        return DrawBuffers(
            b,
            buffer("heavy", b.blocks, b.block),
            buffer("sums", b.blocks, max(b.lanes, _CHUNKS), 2),
            buffer("marks", b.blocks, 3),
        )

    @property
    def chunks(self) -> int:
        return max(self.largest.lanes, _CHUNKS)

    @property
    def chunk(self) -> int:
        """Weights that are summed up one by one."""
        return self.largest.block // self.chunks

    def drawn(self, row: Expr) -> Expr:
        """Whether a row is drawn: it has a temperature, and its peak is a number."""
        given = self.largest.given
        warm = Binary("<", wrap(0.0), given.inverse_temperature[row])
        return logical_and(warm, wrap(0) <= given.sampled[row])

    def weight(self, row: Expr, at: Expr, body: Callable[[Expr], Stmt]) -> Stmt:
        """body(weight), a u32: 0 for what may not come, and in a row that is not drawn."""
        given, x = self.largest.given, self.largest.x
        found = Buffer("found", U32, (wrap(1),), "register")
        peak = x[row, maximum(given.sampled[row], 0)]
        slope = given.inverse_temperature[row] * LOG2E
        weighed = weigh(x[row, at], peak, slope, lambda q: store(found, 0, cast(U32, q)))
        may_come = logical_and(self.drawn(row), Binary("<=", wrap(-LARGEST), x[row, at]))
        return Alloc(found, seq(store(found, 0, word(0)), If(may_come, weighed), body(found[0])))


@dataclass(frozen=True, slots=True)
class _Weights:
    """A block's weights while they are sorted: `buffer` from `place` on."""

    buffer: Buffer
    place: tuple[Expr, ...] = ()

    def __getitem__(self, i: Expr) -> Expr:
        return self.buffer[(*self.place, i)]

    def store(self, i: Expr, value: Expr) -> Stmt:
        return store(self.buffer, (*self.place, i), value)


def sort_weights(name: str, d: DrawBuffers) -> PrimFunc:
    """heavy and sums of each block.

    Threads of a group sort in their own memory; one alone where the weights are going to lie,
    since compilers take long over a large array of one thread.
    """
    b = d.largest
    alone = b.lanes == 1
    shared = Buffer("weights", U32, (wrap(b.block),), "shared")
    low = Buffer("low", U32, (wrap(d.chunks),), "shared")
    high = Buffer("high", U32, (wrap(d.chunks),), "shared")

    def group(row: Expr, block: Expr) -> Stmt:
        weights = _Weights(d.heavy, (row, block)) if alone else _Weights(shared)

        def each(t: Expr, body: Callable[[Expr], Stmt]) -> Stmt:
            return loop("i", b.block // b.lanes, lambda i: let("at", i * b.lanes + t, body))

        def weighed(at: Expr) -> Stmt:
            return d.weight(row, block * b.block + at, lambda q: weights.store(at, q))

        def told(at: Expr) -> Stmt:
            return store(d.heavy, (row, block, at), weights[at])

        def scan(c: Expr) -> Stmt:
            total = Pair(high[c] + high[c - 1], low[c] + low[c - 1])
            return carried(total, lambda p: seq(store(high, c, p.high), store(low, c, p.low)))

        def summed(c: Expr) -> Stmt:
            before = maximum(c - 1, 0)
            first = equals(c, wrap(0))
            place = (row, block, c)
            return seq(
                store(d.sums, (*place, 0), select(first, word(0), low[before])),
                store(d.sums, (*place, 1), select(first, word(0), high[before])),
            )

        def chunks(body: Callable[[Expr], Stmt]) -> Stmt:
            turns = d.chunks // b.lanes
            return b.threads(
                "t", b.lanes, lambda t: loop("c", turns, lambda c: body(t * turns + c))
            )

        return seq(
            b.threads("t", b.lanes, lambda t: each(t, weighed)),
            _sorted(b, weights),
            seq() if alone else b.threads("t", b.lanes, lambda t: each(t, told)),
            chunks(lambda c: _chunk(weights, c, d.chunk, low, high)),
            loop("c", d.chunks - 1, lambda c: scan(c + 1)),
            chunks(summed),
        )

    def allocated(g: Expr) -> Stmt:
        body = Alloc(low, Alloc(high, group(g // b.blocks, g % b.blocks)))
        return body if alone else Alloc(shared, body)

    body = parallel("group", ROW * b.blocks * DRAWN, allocated)
    params = (b.given.inverse_temperature, b.given.sampled, b.x, d.heavy, d.sums)
    return PrimFunc(name, params, DIMS, body)


def _chunk(weights: _Weights, c: Expr, size: int, low: Buffer, high: Buffer) -> Stmt:
    """low[c] and high[c] = what a chunk comes to, carried."""

    def add(q: Expr) -> Stmt:
        return seq(
            store(low, c, low[c] + low_part(q)),
            store(high, c, high[c] + high_part(q)),
        )

    def carry(p: Pair) -> Stmt:
        return seq(store(high, c, p.high), store(low, c, p.low))

    return seq(
        store(low, c, word(0)),
        store(high, c, word(0)),
        loop("i", size, lambda i: let("q", weights[c * size + i], add)),
        carried(Pair(high[c], low[c]), carry),
    )


def _sorted(b: LargestBuffers, weights: _Weights) -> Stmt:
    """The largest first, by a bitonic network: Batcher, "Sorting networks", AFIPS 1968."""

    def stage(k: Expr) -> Stmt:
        return loop("j", k + 1, lambda j: step(k, k - j))

    def step(k: Expr, apart: Expr) -> Stmt:
        def thread(t: Expr) -> Stmt:
            turns = b.block // 2 // b.lanes
            return loop("i", turns, lambda i: let("pair", i * b.lanes + t, places))

        def places(pair: Expr) -> Stmt:
            before = Binary("-", wrap(1) << apart, wrap(1))
            lower = ((pair >> apart) << (apart + 1)) + Binary("&", pair, before)
            return let("i", lower, lambda i: let("j", i + (wrap(1) << apart), lambda j: look(i, j)))

        def look(i: Expr, j: Expr) -> Stmt:
            return let("a", weights[i], lambda a: let("z", weights[j], lambda z: put(i, j, a, z)))

        def put(i: Expr, j: Expr, a: Expr, z: Expr) -> Stmt:
            falls = equals(Binary("&", i >> (k + 1), wrap(1)), wrap(0))
            wrong = less(select(falls, a, z), select(falls, z, a))
            return If(wrong, seq(weights.store(i, z), weights.store(j, a)))

        return b.threads("t", b.lanes, thread)

    return loop("k", b.block.bit_length() - 1, stage)
