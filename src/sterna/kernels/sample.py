"""Choosing a step's tokens from its logits, on the device: one work item a row.

A row goes through: bias and penalties (a list of edits), what is allowed (a bit a token), then
either the largest logit, or temperature, top-k, top-p, min-p and a draw. The largest of a row that
nothing changes is found where its logits lie. Weights are whole
numbers, exp((x - largest) / temperature) in units of 2^-30, so sums of them have no order: the
same token comes out whatever the lanes and threads, and any language replays it. Thresholds are
found digit by digit from histograms, without sorting. Equal weights rank by lowest id.

The draw is Philox4x32-10 of (seed, answer, position), 64 bits of it: Salmon et al., "Parallel
random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from sterna.base.dtype import F32, I32, U32, U64, DType
from sterna.ir.expr import (
    Binary,
    Buffer,
    Expr,
    ExprLike,
    Unary,
    Var,
    cast,
    equals,
    logical_and,
    maximum,
    minimum,
    select,
    wrap,
)
from sterna.ir.loop import Alloc, If, PrimFunc, Stmt, seq, store
from sterna.kernels.build import let, loop, parallel, vector
from sterna.kernels.weights import LARGEST, LOG2E, SHARE_BITS, weigh

Logits = Callable[[Expr], Expr]  # of a row, by their ids

ROW = Var("r", lo=1)  # rows to sample
EDITS = Var("e", lo=0)  # entries of the list of edits
VOCABULARY = Var("v", lo=1)  # ids that exist; a model's rows past them are padding
NONE = -1  # the token where the largest logit is no number

_LANES = 16
_WIDE = 64  # partial results of a search for the largest: enough that none waits for the last
_BLOCK = 1024  # tokens whose weights are summed, to find a draw's place
_DIGITS = ((20, 11), (10, 10), (0, 10))  # (shift, bits) of a weight's digits, from the top
_BINS = 1 << 11
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85


@dataclass(frozen=True, slots=True)
class SampleBuffers:
    """What the kernel reads and writes, by the names the runtime knows; r rows.

    `rows` says which row of `logits` [rows of the step, vocabulary] each is. `limits` [r, 3] are
    top_k (0: all), top_p in units of 2^-16, and the least weight. `inverse_temperature` 0: the
    largest. `keys` [r, 5] are seed, answer and position in words, low first. `allowed`
    [r, ceil(vocabulary / 32)] counts where `masked` is not 0. Edits `edit_indptr[i]` on are
    row i's: x becomes x + bias, that times the second where positive, times the third elsewhere,
    and that minus the fourth.
    """

    logits: Buffer
    rows: Buffer
    inverse_temperature: Buffer
    limits: Buffer
    keys: Buffer
    masked: Buffer
    allowed: Buffer
    edit_indptr: Buffer
    edit_ids: Buffer
    edits: Buffer
    sampled: Buffer

    @staticmethod
    def of(vocabulary: int, logit_rows: Var) -> SampleBuffers:
        """Buffers for a model with so many logits a row."""

        def buffer(name: str, dtype: DType, *shape: ExprLike) -> Buffer:
            return Buffer(name, dtype, tuple(wrap(s) for s in shape))

        return SampleBuffers(
            buffer("logits", F32, logit_rows, vocabulary),
            buffer("rows", I32, ROW),
            buffer("inverse_temperature", F32, ROW),
            buffer("limits", I32, ROW, 3),
            buffer("keys", U32, ROW, 5),
            buffer("masked", I32, ROW),
            buffer("allowed", U32, ROW, -(-vocabulary // 32)),
            buffer("edit_indptr", I32, ROW + 1),
            buffer("edit_ids", I32, EDITS),
            buffer("edits", F32, EDITS, 4),
            buffer("sampled", I32, ROW),
        )

    @property
    def params(self) -> tuple[Buffer, ...]:
        return (
            *(self.logits, self.rows, self.inverse_temperature, self.limits, self.keys),
            *(self.masked, self.allowed, self.edit_indptr, self.edit_ids, self.edits),
            self.sampled,
        )


def sample(name: str, vocabulary: int, logit_rows: Var) -> PrimFunc:
    """sampled[i] = the token of row i, or NONE; see SampleBuffers for what it takes."""
    buffers = SampleBuffers.of(vocabulary, logit_rows)
    size = -(-vocabulary // _BLOCK) * _BLOCK

    def item(r: Var) -> Stmt:
        row = _Row(buffers, r, size, *_memory(size))
        changed = seq(row.load(), row.edit(), row.peak(row.x.__getitem__, size, row.choose))
        return row.scoped(If(row.plain, row.first_largest(), changed))

    return PrimFunc(name, buffers.params, (ROW, EDITS, VOCABULARY), parallel("row", ROW, item))


def _memory(size: int) -> tuple[Buffer, ...]:
    def scratch(name: str, dtype: DType, count: int, scope: str = "scratch") -> Buffer:
        return Buffer(name, dtype, (wrap(count),), scope)

    return (
        scratch("x", F32, size),
        scratch("weights", I32, size),
        scratch("histogram", U64, _BINS),
        scratch("blocks", U64, size // _BLOCK),
        scratch("lanes", F32, _WIDE, "local"),
        scratch("first", I32, _WIDE, "local"),
        scratch("whole", I32, 5, "local"),
        scratch("sums", U64, 3, "local"),
        scratch("words", U64, 6, "local"),
    )


# Places in `whole`: the least weight kept, how many equal to it, and what is being looked for.
_LEAST, _TIES, _DIGIT, _SEEN, _FOUND = range(5)
_AHEAD, _MASS, _AT = range(3)  # places in `sums`


def _u64(value: ExprLike) -> Expr:
    return cast(U64, value) if isinstance(value, Expr) else wrap(value, U64)


@dataclass(frozen=True, slots=True)
class _Row:
    """One row: its memory, and each stage as statements."""

    given: SampleBuffers
    r: Var
    size: int  # of the vocabulary, in whole blocks
    x: Buffer
    weights: Buffer
    histogram: Buffer
    blocks: Buffer
    lanes: Buffer
    first: Buffer
    whole: Buffer
    sums: Buffer
    words: Buffer

    def scoped(self, body: Stmt) -> Stmt:
        buffers = (self.x, self.weights, self.histogram, self.blocks, self.lanes, self.first)
        for buffer in (*buffers, self.whole, self.sums, self.words):
            body = Alloc(buffer, body)
        return body

    def each(self, body: Callable[[Expr], Stmt]) -> Stmt:
        """body(id) for all tokens, in vectors."""
        return loop(
            "o", self.size // _LANES, lambda o: vector("i", _LANES, lambda i: body(o * _LANES + i))
        )

    def one_by_one(self, body: Callable[[Expr], Stmt]) -> Stmt:
        return loop("i", self.size, body)

    # Logits.

    @property
    def plain(self) -> Expr:
        """Whether the largest is asked for, of all logits as they are."""
        given, r = self.given, self.r
        largest = equals(given.inverse_temperature[r], wrap(0.0))
        unchanged = equals(given.edit_indptr[r], given.edit_indptr[r + 1])
        return logical_and(largest, logical_and(equals(given.masked[r], 0), unchanged))

    def logit(self, i: Expr) -> Expr:
        return self.given.logits[self.given.rows[self.r], i]

    def first_largest(self) -> Stmt:
        """The largest of a plain row."""
        return self.peak(self.logit, VOCABULARY, partial(self.largest, self.logit, VOCABULARY))

    def load(self) -> Stmt:
        """x = the row's logits; minus infinity for what may not come."""
        r, nothing = self.r, wrap(float("-inf"))

        def forbid(i: Expr) -> Stmt:
            word = self.given.allowed[r, i // 32]
            bit = (word >> cast(U32, i % 32)) & wrap(1, U32)
            return If(equals(bit, wrap(0, U32)), store(self.x, i, nothing))

        def pad(i: Var) -> Stmt:
            return store(self.x, VOCABULARY + i, nothing)

        copied = loop("i", VOCABULARY, lambda i: store(self.x, i, self.logit(i)))
        masked = If(wrap(0) < self.given.masked[r], loop("i", VOCABULARY, forbid))
        return seq(copied, loop("i", self.size - VOCABULARY, pad), masked)

    def edit(self) -> Stmt:
        start, end = self.given.edit_indptr[self.r], self.given.edit_indptr[self.r + 1]

        def one(i: Var) -> Stmt:
            return let("e", start + i, at)

        def at(e: Var) -> Stmt:
            edits, token = self.given.edits, self.given.edit_ids[e]
            return let("moved", self.x[token] + edits[e, 0], lambda x: put(e, token, x))

        def put(e: Var, token: Expr, x: Var) -> Stmt:
            edits = self.given.edits
            scaled = x * select(wrap(0.0) < x, edits[e, 1], edits[e, 2])
            return store(self.x, token, scaled - edits[e, 3])

        return loop("e", end - start, one)

    def peak(self, x: Logits, count: ExprLike, body: Callable[[Var], Stmt]) -> Stmt:
        """body(largest x of `count`), or no token where that is infinite or any is NaN."""

        def take(place: Expr, at: Expr) -> Stmt:
            return store(self.lanes, place, maximum(self.lanes[place], x(at)))

        def fold(i: Var) -> Stmt:
            return store(self.lanes, 0, maximum(self.lanes[0], self.lanes[i]))

        lowest = vector("i", _WIDE, lambda i: store(self.lanes, i, float("-inf")))

        def found(peak: Var) -> Stmt:  # all comparisons with NaN fail
            return If(Unary("abs", peak) <= wrap(LARGEST), body(peak), self.put(NONE))

        return seq(
            lowest,
            self.in_lanes(count, take),
            loop("i", _WIDE, fold),
            let("peak", self.lanes[0], found),
        )

    def in_lanes(self, count: ExprLike, take: Callable[[Expr, Expr], Stmt]) -> Stmt:
        """take(a place of `_WIDE`, i) for all i below `count`, in vectors."""

        def block(o: Var) -> Stmt:
            return vector("i", _WIDE, lambda i: take(i, o * _WIDE + i))

        count = wrap(count)
        whole = count // _WIDE
        rest = loop("i", count - whole * _WIDE, lambda i: take(i, whole * _WIDE + i))
        return seq(loop("o", whole, block), rest)

    def choose(self, peak: Var) -> Stmt:
        return If(
            equals(self.given.inverse_temperature[self.r], wrap(0.0)),
            self.largest(self.x.__getitem__, self.size, peak),
            seq(self.weigh(peak), self.top_k(), self.top_p(), self.keep(), self.draw()),
        )

    def put(self, token: ExprLike) -> Stmt:
        return store(self.given.sampled, self.r, token)

    def largest(self, x: Logits, count: ExprLike, peak: Var) -> Stmt:
        """The first token of `count` whose x is the peak."""

        def take(place: Expr, at: Expr) -> Stmt:
            found = select(equals(x(at), peak), at, self.size)
            return store(self.first, place, minimum(self.first[place], found))

        def fold(i: Var) -> Stmt:
            return store(self.first, 0, minimum(self.first[0], self.first[i]))

        clear = vector("i", _WIDE, lambda i: store(self.first, i, self.size))
        return seq(
            clear, self.in_lanes(count, take), loop("i", _WIDE, fold), self.put(self.first[0])
        )

    # Weights and thresholds.

    def weigh(self, peak: Var) -> Stmt:
        def by(slope: Var) -> Stmt:
            return self.each(
                lambda i: weigh(self.x[i], peak, slope, lambda q: store(self.weights, i, q))
            )

        weights = let("slope", self.given.inverse_temperature[self.r] * LOG2E, by)
        return seq(weights, store(self.whole, _LEAST, 0), store(self.whole, _TIES, 0))

    def top_k(self) -> Stmt:
        top_k = self.given.limits[self.r, 0]
        # Of weights alike, one counts one.
        search = self.threshold(_u64(top_k), lambda q: _u64(1), lambda least: _u64(1))
        return If(wrap(0) < top_k, search)

    def top_p(self) -> Stmt:
        share = self.given.limits[self.r, 1]

        def search(target: Var) -> Stmt:
            return self.threshold(target, _u64, _u64)

        mass = self.sums[_MASS]
        scaled = Binary(">>", mass * _u64(share), _u64(SHARE_BITS))
        wanted = let("target", maximum_u64(scaled, _u64(1)), search)
        return If(share < wrap(1 << SHARE_BITS), seq(self.measure(), wanted))

    def measure(self) -> Stmt:
        """sums[MASS] = all weight that top-k left."""

        def add(i: Expr) -> Stmt:
            q = self.weights[i]
            kept = select(self.whole[_LEAST] < q, q, 0)
            return store(self.sums, _MASS, self.sums[_MASS] + _u64(kept))

        ties = _u64(self.whole[_LEAST]) * _u64(self.whole[_TIES])
        return seq(
            store(self.sums, _MASS, _u64(0)),
            self.one_by_one(add),
            store(self.sums, _MASS, self.sums[_MASS] + ties),
        )

    def threshold(
        self, target: Expr, measure: Callable[[Expr], Expr], each: Callable[[Expr], Expr]
    ) -> Stmt:
        """The largest weight such that it and all above it measure `target` or more.

        Sets LEAST to it, and TIES to how many of that very weight are wanted. `measure(weight)`
        is what a token counts, `each(least)` what each tie does.
        """
        digits = [self.digit(shift, bits, target, measure) for shift, bits in _DIGITS]

        def ties(least: Var) -> Stmt:
            rest = target - self.sums[_AHEAD]
            unit = maximum_u64(each(least), _u64(1))
            count = Binary("//", rest + unit - _u64(1), unit)
            return store(self.whole, _TIES, select(wrap(0) < least, cast(I32, count), 0))

        return seq(
            store(self.sums, _AHEAD, _u64(0)),
            store(self.whole, _LEAST, 0),
            *digits,
            let("least", self.whole[_LEAST], ties),
        )

    def digit(self, shift: int, bits: int, target: Expr, measure: Callable[[Expr], Expr]) -> Stmt:
        """One digit of the threshold, among the weights that begin as it does.

        It is 0 where no larger one is reached, so nobody counts the many whose first is 0.
        """
        known = self.whole[_LEAST]  # its digits so far

        def count(i: Expr) -> Stmt:
            return let("q", self.weights[i], note)

        def note(q: Var) -> Stmt:
            digit = Binary("-", q >> shift, known << bits)
            place = let("digit", digit, lambda d: add(q, d))
            return (
                place if shift == _DIGITS[0][0] else If(equals(q >> (shift + bits), known), place)
            )

        def add(q: Var, digit: Var) -> Stmt:
            count = store(self.histogram, digit, self.histogram[digit] + measure(q))
            return If(wrap(0) < digit, count) if shift == _DIGITS[0][0] else count

        def walk(j: Var) -> Stmt:
            return let("b", wrap((1 << bits) - 1) - j, pass_by)

        def pass_by(b: Var) -> Stmt:
            ahead = self.sums[_AHEAD]
            reached = target <= Binary("+", ahead, self.histogram[b])
            stop = seq(store(self.whole, _FOUND, 1), store(self.whole, _DIGIT, b))
            go_on = store(self.sums, _AHEAD, ahead + self.histogram[b])
            return If(equals(self.whole[_FOUND], 0), If(reached, stop, go_on))

        clear = loop("b", 1 << bits, lambda b: store(self.histogram, b, _u64(0)))
        return seq(
            clear,
            self.one_by_one(count),
            store(self.whole, _FOUND, 0),
            store(self.whole, _DIGIT, 0),
            loop("j", (1 << bits) - 1, walk),
            store(self.whole, _LEAST, (known << bits) + self.whole[_DIGIT]),
        )

    # The draw.

    def keep(self) -> Stmt:
        """Weights that may not be drawn become 0; blocks[b] sums block b, sums[MASS] all."""
        least, floor = self.whole[_LEAST], self.given.limits[self.r, 2]

        def one(b: Expr, i: Expr) -> Stmt:
            return let("q", self.weights[b * _BLOCK + i], partial(kept, b, i))

        def kept(b: Expr, i: Expr, q: Var) -> Stmt:
            tie = select(equals(q, least), 1, 0)
            among = logical_and(equals(q, least), self.whole[_SEEN] < self.whole[_TIES])
            above = select(least < q, q, select(among, q, 0))
            weight = select(q < floor, 0, above)
            return let("weight", weight, partial(note, b, i, tie))

        def note(b: Expr, i: Expr, tie: Expr, weight: Var) -> Stmt:
            return seq(
                store(self.whole, _SEEN, self.whole[_SEEN] + tie),
                store(self.weights, b * _BLOCK + i, weight),
                store(self.sums, _AT, self.sums[_AT] + _u64(weight)),
            )

        def block(b: Var) -> Stmt:
            return seq(
                store(self.sums, _AT, _u64(0)),
                loop("i", _BLOCK, lambda i: one(b, i)),
                store(self.blocks, b, self.sums[_AT]),
                store(self.sums, _MASS, self.sums[_MASS] + self.sums[_AT]),
            )

        return seq(
            store(self.whole, _SEEN, 0),
            store(self.sums, _MASS, _u64(0)),
            loop("b", self.size // _BLOCK, block),
        )

    def draw(self) -> Stmt:
        """The first token with more than the drawn share of all weight up to and with it."""

        def find(point: Var) -> Stmt:
            def step(count: Expr, place: int, weight: Callable[[Expr], Expr]) -> Stmt:
                def one(i: Var) -> Stmt:
                    after = let("after", self.sums[_AT] + weight(i), lambda s: look(i, s))
                    return If(equals(self.whole[_FOUND], 0), after)

                def look(i: Var, after: Var) -> Stmt:
                    here = seq(store(self.whole, _FOUND, 1), store(self.whole, place, i))
                    return If(point < after, here, store(self.sums, _AT, after))

                return seq(store(self.whole, _FOUND, 0), loop("i", count, one))

            blocks = step(wrap(self.size // _BLOCK), _DIGIT, lambda b: self.blocks[b])
            first = self.whole[_DIGIT] * _BLOCK
            tokens = step(wrap(_BLOCK), _SEEN, lambda i: _u64(self.weights[first + i]))
            token = self.whole[_DIGIT] * _BLOCK + self.whole[_SEEN]
            return seq(store(self.sums, _AT, _u64(0)), blocks, tokens, self.put(token))

        return seq(self.philox(), let("point", self.point(), find))

    def point(self) -> Expr:
        """floor(draw * mass / 2^64) for a mass below 2^48, in products that fit 64 bits."""
        high, low, mass = self.words[0], self.words[1], self.sums[_MASS]
        m1, m0 = Binary(">>", mass, _u64(24)), Binary("&", mass, _u64((1 << 24) - 1))

        def shifted(a: Expr, bits: int) -> Expr:
            return Binary(">>", a, _u64(bits))

        carry = shifted(low * m1 + shifted(low * m0, 24), 8)
        return shifted(high * m1 + shifted(high * m0 + carry, 24), 8)

    def philox(self) -> Stmt:
        """words[0] and words[1] = the draw, high word first."""
        keys, words, r = self.given.keys, self.words, self.r

        def word(k: int) -> Expr:
            return _u64(keys[r, k])

        def low(a: Expr) -> Expr:
            return Binary("&", a, _u64(0xFFFFFFFF))

        def high(a: Expr) -> Expr:
            return Binary(">>", a, _u64(32))

        def turn(_: Var) -> Stmt:
            products = words[0] * _u64(_M0), words[2] * _u64(_M1)
            return let("p", products[0], lambda p: let("q", products[1], lambda q: mix(p, q)))

        def mix(p: Var, q: Var) -> Stmt:
            first = Binary("^", Binary("^", high(q), words[1]), words[4])
            third = Binary("^", Binary("^", high(p), words[3]), words[5])
            return let("a", first, lambda a: let("c", third, lambda c: put(p, q, a, c)))

        def put(p: Var, q: Var, a: Var, c: Var) -> Stmt:
            new = (a, low(q), c, low(p), low(words[4] + _u64(_W0)), low(words[5] + _u64(_W1)))
            return seq(*(store(words, k, value) for k, value in enumerate(new)))

        # Counter: position, answer, 0. Key: the seed.
        start = (word(3), word(4), word(2), _u64(0), word(0), word(1))
        fill = (store(words, k, value) for k, value in enumerate(start))
        return seq(*fill, loop("turn", 10, turn))


def maximum_u64(a: Expr, b: Expr) -> Expr:
    """The larger; kernels have no function for it."""
    return select(Binary("<", a, b), b, a)
