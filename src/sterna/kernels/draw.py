"""Drawing tokens on a target with work groups, where no numbers have 64 bits and none are atomic.

The meaning is that of `runtime.sampling` for rows with a temperature. `kernels.largest` has masked
and edited the logits and found each row's peak before, `kernels.heaviest` has sorted what tokens
weigh. Here a group for each row finds the least weight that top_k and then top_p keep, bit by bit
from the top, and then where the draw falls: the block, the part of it, the token.

All threads go the same way whatever the weights are, since only what a step was given may steer
them past barriers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sterna.base.dtype import I32, U32
from sterna.ir.expr import (
    Binary,
    Buffer,
    Expr,
    cast,
    equals,
    logical_and,
    logical_or,
    maximum,
    minimum,
    select,
    wrap,
)
from sterna.ir.loop import Alloc, If, PrimFunc, Stmt, Store, seq, store
from sterna.ir.rewrite import visit
from sterna.kernels.build import let, loop, parallel
from sterna.kernels.heaviest import DIMS, DRAWN, DrawBuffers
from sterna.kernels.limbs import (
    Pair,
    below,
    carried,
    draw_limbs,
    high_part,
    less,
    low_part,
    part_of,
    sum_of,
    times,
    word,
)
from sterna.kernels.sample import ROW
from sterna.kernels.weights import SHARE_BITS, UNIT_BITS

# Places in `state`: the least weight kept, how many equal to it and how many of those are left;
# whether what is looked for was reached, and found; where the draw falls: the block, the thread's
# part of it, the token of that. Then pairs, low part first: what is looked for, what lies ahead of
# it, and all that is kept.
_LEAST, _TIES, _LEFT, _REACHED, _FOUND, _BLOCK = range(6)
_TARGET, _AHEAD, _MASS, _STATE = 8, 10, 12, 14
_BEGIN, _END, _AT = range(3)  # of a block's marks, while a weight is looked for
_SAME, _LOW, _HIGH = range(3)  # of them afterwards: ties, and what is above
_TOP_K, _TOP_P, _DRAW = range(3)  # what is found, in this order
_TIE_BITS = 22  # of the number of tokens that weigh the same


def draw_rows(name: str, d: DrawBuffers) -> PrimFunc:
    """sampled[i] = the token that row i draws, where it has a temperature and any logits."""
    b, given = d.largest, d.largest.given

    def shared(title: str, count: int) -> Buffer:
        return Buffer(title, U32, (wrap(count),), "shared")

    def group(row: Expr) -> Stmt:
        memory = (
            *(shared("state", _STATE), shared("factor", 4), shared("limbs", 4)),
            *(shared("product", 8), shared("words", 6), shared("weights", b.block)),
            *(shared(title, b.lanes) for title in ("low", "high", "same")),
        )
        body = _Row(d, row, *memory).draw()
        used = {n.buffer for n in visit(body) if isinstance(n, Store)}
        for buffer in memory:
            body = Alloc(buffer, body) if buffer in used else body
        return body

    params = (
        *(given.inverse_temperature, given.limits, given.keys, b.x, d.heavy, d.sums, d.marks),
        given.sampled,
    )
    return PrimFunc(name, params, DIMS, parallel("row", ROW * DRAWN, group))


@dataclass(frozen=True, slots=True)
class _Row:
    """One row: the group's memory, and each stage as statements."""

    d: DrawBuffers
    row: Expr
    state: Buffer
    factor: Buffer
    limbs: Buffer
    product: Buffer
    words: Buffer
    weights: Buffer
    low: Buffer  # a thread's own sum
    high: Buffer
    same: Buffer

    def draw(self) -> Stmt:
        begin = seq(store(self.state, _LEAST, word(0)), store(self.state, _TIES, word(0)))
        return seq(begin, loop("way", 3, self.way), self.find())

    @property
    def alone(self) -> bool:
        """Whether the row has one thread."""
        return self.d.largest.lanes == 1

    def limit(self, place: int) -> Expr:
        """top_k, top_p, or the least weight, as the row was given it."""
        return self.d.largest.given.limits[self.row, place]

    # Pairs in the group's memory.

    def pair(self, place: int) -> Pair:
        return Pair(self.state[place + 1], self.state[place])

    def keep(self, place: int, pair: Pair) -> Stmt:
        return seq(store(self.state, place, pair.low), store(self.state, place + 1, pair.high))

    def add(self, t: Expr, low: Expr, high: Expr) -> Stmt:
        """To the sum of thread t."""
        more = store(self.low, t, self.low[t] + low), store(self.high, t, self.high[t] + high)
        return seq(*more)

    def clear(self, t: Expr) -> Stmt:
        return seq(store(self.low, t, word(0)), store(self.high, t, word(0)))

    def folded(self) -> Stmt:
        """low[0] and high[0] = the sums of all threads."""
        half = self.d.largest.lanes // 2
        if half == 0:
            return seq()

        def fold(k: Expr) -> Stmt:
            return self.d.largest.threads("t", half, lambda t: let("w", wrap(half) >> k, one(t)))

        def one(t: Expr) -> Callable[[Expr], Stmt]:
            return lambda w: If(t < w, self.add(t, self.low[t + w], self.high[t + w]))

        return loop("k", half.bit_length(), fold)

    # What top_k and top_p keep.

    def way(self, way: Expr) -> Stmt:
        """Look at all that is kept so far; then cut it, or say where the draw falls."""
        top_k = logical_and(equals(way, wrap(_TOP_K)), wrap(0) < self.limit(_TOP_K))
        top_p = logical_and(equals(way, wrap(_TOP_P)), self.limit(_TOP_P) < wrap(1 << SHARE_BITS))
        return seq(
            If(equals(way, wrap(_DRAW)), self.floor()),
            self.measure(),
            self.aim(way),
            self.cut(way, logical_or(top_k, top_p)),
        )

    def floor(self) -> Stmt:
        """What weighs less than a row allows goes, and then no ties are counted."""
        floor = cast(U32, maximum(self.limit(_DRAW), 0))
        raised = seq(store(self.state, _LEAST, floor - word(1)), store(self.state, _TIES, word(0)))
        return If(less(self.state[_LEAST], floor), raised)

    def each_block(self, body: Callable[[Expr, Expr], Stmt]) -> Stmt:
        """body(thread, block) by threads, each with a sum of its own; then all sums are one."""
        b = self.d.largest

        def thread(t: Expr) -> Stmt:
            def turn(i: Expr) -> Stmt:
                at = i * b.lanes + t
                one = let("b", at, lambda block: body(t, block))
                return one if b.blocks % b.lanes == 0 else If(at < wrap(b.blocks), one)

            return seq(self.clear(t), loop("i", -(-b.blocks // b.lanes), turn))

        return seq(b.threads("t", b.lanes, thread), self.folded())

    def measure(self) -> Stmt:
        """marks: a block's ties and what it has above them; the sum of all blocks above."""
        least, size = self.state[_LEAST], self.d.largest.block

        def block(t: Expr, b: Expr) -> Stmt:
            def above(count: Expr) -> Stmt:
                ties = self.search(b, least, count, wrap(size), lambda end: tied(end - count))
                return seq(ties, self.mass(b, count, note))

            def tied(count: Expr) -> Stmt:
                return store(self.d.marks, (self.row, b, _SAME), cast(U32, count))

            def note(p: Pair) -> Stmt:
                place = (self.row, b)
                low = store(self.d.marks, (*place, _LOW), p.low)
                return seq(
                    low, store(self.d.marks, (*place, _HIGH), p.high), self.add(t, p.low, p.high)
                )

            return self.search(
                b, least + word(1), wrap(0), wrap(size), lambda at: let("above", at, above)
            )

        return self.each_block(block)

    def aim(self, way: Expr) -> Stmt:
        """target = top_k; or the share of the mass that is kept; or the draw's place in it."""
        count = cast(U32, self.limit(_TOP_K))

        def mass(ties: Pair) -> Stmt:
            total = sum_of(Pair(self.high[0], self.low[0]), ties)
            return carried(total, lambda p: self.keep(_MASS, p))

        def share(p: Pair) -> Stmt:
            none = logical_and(
                equals(way, wrap(_TOP_P)), equals(Binary("|", p.high, p.low), word(0))
            )
            return self.keep(_TARGET, Pair(p.high, select(none, word(1), p.low)))

        whole = seq(
            *(store(self.factor, k, word(0)) for k in range(3)),
            store(self.factor, 3, cast(U32, self.limit(_TOP_P))),
        )
        drawn = draw_limbs(self.d.largest.given.keys, self.row, self.words, self.factor)
        shared = seq(
            times(self.state[_LEAST], self.state[_TIES], mass),
            If(equals(way, wrap(_TOP_P)), whole, drawn),
            part_of(self.pair(_MASS), self.factor, self.limbs, self.product, share),
        )
        counted = self.keep(_TARGET, Pair(high_part(count), low_part(count)))
        return If(equals(way, wrap(_TOP_K)), counted, shared)

    def cut(self, way: Expr, wanted: Expr) -> Stmt:
        """least = the largest weight such that it and all above come to the target or more.

        Where it is not wanted there are no turns, rather than a branch around their barriers:
        compilers that make loops of groups have been seen to go wrong there.
        """
        size = word(self.d.largest.block)

        def start(t: Expr) -> Stmt:
            def turn(i: Expr) -> Stmt:
                b = i * self.d.largest.lanes + t
                marks = ((_BEGIN, word(0)), (_END, size), (_AT, size))
                fill = seq(*(store(self.d.marks, (self.row, b, k), value) for k, value in marks))
                return If(logical_and(b < wrap(self.d.largest.blocks), way < wrap(_DRAW)), fill)

            return loop("i", -(-self.d.largest.blocks // self.d.largest.lanes), turn)

        begin = seq(
            store(self.state, _LEAST, word(0)),
            store(self.state, _REACHED, word(1)),
            self.keep(_AHEAD, Pair(word(0), word(0))),
        )
        turns = select(wanted, wrap(UNIT_BITS + 1), wrap(0))
        return seq(
            If(wanted, begin),
            self.d.largest.threads("t", self.d.largest.lanes, start),
            loop("n", turns, lambda n: self.bit(way, word(1 << UNIT_BITS) >> cast(U32, n))),
            If(wanted, self.ties(way)),
        )

    def bit(self, way: Expr, bit: Expr) -> Stmt:
        """One bit of the least weight: it is set where that much is reached with it."""
        candidate = Binary("|", self.state[_LEAST], bit)

        def block(t: Expr, b: Expr) -> Stmt:
            def mark(place: int) -> Expr:
                return self.d.marks[self.row, b, place]

            def put(place: int, value: Expr) -> Stmt:
                return store(self.d.marks, (self.row, b, place), value)

            def found(at: Expr) -> Stmt:
                count = self.add(t, cast(U32, at), word(0))
                mass = self.mass(b, at, lambda p: self.add(t, p.low, p.high))
                return seq(put(_AT, cast(U32, at)), If(equals(way, wrap(_TOP_K)), count, mass))

            reached = equals(self.state[_REACHED], word(1))
            begin, end = cast(I32, mark(_BEGIN)), cast(I32, mark(_END))
            return seq(
                If(reached, put(_END, mark(_AT)), put(_BEGIN, mark(_AT))),
                self.search(b, candidate, begin, end, lambda at: let("at", at, found)),
            )

        def decide(p: Pair) -> Stmt:
            missed = seq(store(self.state, _REACHED, word(0)), self.keep(_AHEAD, p))
            reached = seq(
                store(self.state, _REACHED, word(1)), store(self.state, _LEAST, candidate)
            )
            return If(below(p, self.pair(_TARGET)), missed, reached)

        return seq(self.each_block(block), carried(Pair(self.high[0], self.low[0]), decide))

    def ties(self, way: Expr) -> Stmt:
        """How many of the least weight it takes to reach the target."""
        unit = select(equals(way, wrap(_TOP_K)), word(1), self.state[_LEAST])

        def turn(i: Expr) -> Stmt:
            more = self.state[_TIES] + (word(1 << (_TIE_BITS - 1)) >> cast(U32, i))
            return let("more", more, lambda m: times(unit, m, lambda p: note(m, p)))

        def note(more: Expr, p: Pair) -> Stmt:
            return carried(sum_of(self.pair(_AHEAD), p), lambda sum: keep(more, sum))

        def keep(more: Expr, sum: Pair) -> Stmt:
            return If(below(sum, self.pair(_TARGET)), store(self.state, _TIES, more))

        some = seq(
            loop("i", _TIE_BITS, turn), store(self.state, _TIES, self.state[_TIES] + word(1))
        )
        return seq(store(self.state, _TIES, word(0)), If(less(word(0), self.state[_LEAST]), some))

    # What a block knows.

    def search(
        self, b: Expr, least: Expr, begin: Expr, end: Expr, body: Callable[[Expr], Stmt]
    ) -> Stmt:
        """body(how many of a block weigh `least` or more), a number from begin to end."""
        at = Buffer("at", I32, (wrap(1),), "register")
        to = Buffer("to", I32, (wrap(1),), "register")

        def turn(_: Expr) -> Stmt:
            return If(at[0] < to[0], let("middle", (at[0] + to[0]) >> 1, look))

        def look(middle: Expr) -> Stmt:
            lighter = less(self.d.heavy[self.row, b, middle], least)
            return If(lighter, store(to, 0, middle), store(at, 0, middle + 1))

        halvings = loop("s", self.d.largest.block.bit_length(), turn)
        run = seq(store(at, 0, begin), store(to, 0, end), halvings, body(at[0]))
        return Alloc(at, Alloc(to, run))

    def mass(self, b: Expr, count: Expr, body: Callable[[Pair], Stmt]) -> Stmt:
        """body(what the first `count` of a block come to)."""
        size = self.d.chunk
        low = Buffer("mass_low", U32, (wrap(1),), "register")
        high = Buffer("mass_high", U32, (wrap(1),), "register")

        def chunk(c: Expr) -> Stmt:
            def turn(i: Expr) -> Stmt:
                at = c * size + i
                return If(at < count, let("q", self.d.heavy[self.row, b, at], more))

            place = (self.row, b, c)
            return seq(
                store(low, 0, self.d.sums[(*place, wrap(0))]),
                store(high, 0, self.d.sums[(*place, wrap(1))]),
                loop("i", size, turn),
            )

        def more(q: Expr) -> Stmt:
            return seq(store(low, 0, low[0] + low_part(q)), store(high, 0, high[0] + high_part(q)))

        whole = let("c", minimum(count // size, self.d.chunks - 1), chunk)
        return Alloc(low, Alloc(high, seq(whole, carried(Pair(high[0], low[0]), body))))

    # Where the draw falls.

    def find(self) -> Stmt:
        """The first token with more than the drawn share of all weight up to and with it."""
        d, b = self.d, self.d.largest
        each = b.block // b.lanes
        first = cast(I32, self.state[_BLOCK]) * b.block

        def level(n: Expr) -> Stmt:
            known = b.threads("t", b.lanes, lambda t: If(equals(n, wrap(1)), self.weigh(t, first)))
            return self.scan(n) if self.alone else seq(known, self.scan(n))

        start = (_BLOCK, _BLOCK + 1, _BLOCK + 2)
        place = cast(I32, self.state[_BLOCK + 1]) * each + cast(I32, self.state[_BLOCK + 2])
        return seq(
            *(store(self.state, k, word(0)) for k in start),
            store(self.state, _LEFT, self.state[_TIES]),
            self.keep(_AHEAD, Pair(word(0), word(0))),
            loop("level", 3, level),
            If(d.drawn(self.row), store(b.given.sampled, self.row, first + place)),
        )

    def weigh(self, t: Expr, first: Expr) -> Stmt:
        """A thread's tokens of the block that begins at `first`, and what they come to."""
        each = self.d.largest.block // self.d.largest.lanes

        def one(n: Expr) -> Stmt:
            return self.d.weight(self.row, first + n, lambda q: let("q", q, lambda w: note(n, w)))

        def note(n: Expr, q: Expr) -> Stmt:
            same, kept = self.told(q)
            return seq(
                store(self.weights, n, q),
                store(self.same, t, self.same[t] + same),
                self.add(t, kept.low, kept.high),
            )

        clear = seq(self.clear(t), store(self.same, t, word(0)))
        return seq(clear, loop("i", each, lambda i: let("n", t * each + i, one)))

    def told(self, q: Expr) -> tuple[Expr, Pair]:
        """1 for a weight that is the least; what it adds where it is above."""
        kept = select(less(self.state[_LEAST], q), q, word(0))
        same = select(equals(q, self.state[_LEAST]), word(1), word(0))
        return same, Pair(high_part(kept), low_part(kept))

    def part(self, level: Expr, i: Expr, body: Callable[[Expr, Pair], Stmt]) -> Stmt:
        """body(ties, mass above) of part i: a block, a thread's tokens, one of these."""
        part = Buffer("part", U32, (wrap(3),), "register")
        each = self.d.largest.block // self.d.largest.lanes

        def put(same: Expr, mass: Pair) -> Stmt:
            values = enumerate((same, mass.low, mass.high))
            return seq(*(store(part, k, value) for k, value in values))

        def mark(place: int) -> Expr:
            return self.d.marks[self.row, i, place]

        def token(q: Expr) -> Stmt:
            return let("q", q, lambda w: put(*self.told(w)))

        of_block = put(mark(_SAME), Pair(mark(_HIGH), mark(_LOW)))
        if self.alone:
            first = cast(I32, self.state[_BLOCK]) * self.d.largest.block
            inside = self.d.weight(self.row, first + i, token)
        else:
            of_thread = put(self.same[i], Pair(self.high[i], self.low[i]))
            of_token = token(self.weights[cast(I32, self.state[_BLOCK + 1]) * each + i])
            inside = If(equals(level, wrap(1)), of_thread, of_token)
        fill = If(equals(level, wrap(0)), of_block, inside)
        return Alloc(part, seq(fill, body(part[0], Pair(part[2], part[1]))))

    def scan(self, level: Expr) -> Stmt:
        """state[_BLOCK + level] = the first part that the target falls into.

        Where a thread is alone its part is the block, and is passed over.
        """
        b = self.d.largest

        def turn(i: Expr) -> Stmt:
            look = self.part(level, i, lambda same, mass: taken(i, same, mass))
            return If(equals(self.state[_FOUND], word(0)), look)

        def taken(i: Expr, same: Expr, mass: Pair) -> Stmt:
            left = self.state[_LEFT]

            def add(n: Expr) -> Stmt:
                return times(self.state[_LEAST], n, lambda p: summed(i, n, sum_of(mass, p)))

            return let("taken", select(less(same, left), same, left), add)

        def summed(i: Expr, n: Expr, more: Pair) -> Stmt:
            return carried(sum_of(self.pair(_AHEAD), more), lambda p: look(i, n, p))

        def look(i: Expr, n: Expr, after: Pair) -> Stmt:
            found = store(self.state, _FOUND, word(1))
            here = seq(found, store(self.state, level + _BLOCK, cast(U32, i)))
            left = store(self.state, _LEFT, self.state[_LEFT] - n)
            past = seq(self.keep(_AHEAD, after), left)
            return If(below(self.pair(_TARGET), after), here, past)

        threads = 0 if self.alone else b.lanes
        of_block = select(equals(level, wrap(1)), wrap(threads), wrap(b.block // b.lanes))
        count = select(equals(level, wrap(0)), wrap(b.blocks), of_block)
        return seq(store(self.state, _FOUND, word(0)), loop("i", count, turn))
