"""Products with the experts that tokens chose, expert by expert: many tokens in a step.

The meaning and the order of every sum are those of the operator's compute rule: each result is a
sum of `LANES` partial sums. What differs is who comes when: pairs (token, slot) are first put in
order of their experts, then a work item takes some rows of one expert's weight, unpacks them once,
and multiplies them with all tokens that chose it. A row's bits do not depend on the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd

from sterna.base.dtype import F32
from sterna.ir.expr import Buffer, Expr, Var, cast, const_value, equals, fma, minimum, wrap
from sterna.ir.loop import Alloc, If, PrimFunc, Stmt, seq, store
from sterna.kernels.build import let, loop, parallel, unroll, vector
from sterna.ops.experts import LANES

_COLUMNS = 8  # rows of the weight that a work item unpacks
_SIDE = 2  # of them, and tokens, that are multiplied together


@dataclass(frozen=True, slots=True)
class ExpertSpec:
    """x [n, depth] or [n, slots * depth], index [n, slots], weight [experts * size, depth]."""

    experts: int
    x: Buffer
    index: Buffer
    weight: Buffer
    bias: Buffer | None
    out: Buffer  # [n, slots * size]

    @property
    def slots(self) -> int:
        return int(const_value(self.index.shape[1]) or 0)

    @property
    def depth(self) -> int:
        return int(const_value(self.weight.shape[1]) or 0)

    @property
    def size(self) -> int:
        return int(const_value(self.weight.shape[0]) or 0) // self.experts

    @property
    def pairs(self) -> Expr:
        return self.index.shape[0] * self.slots

    def own(self, pair: Expr) -> tuple[Expr, Expr]:
        """(row, first column) of what a pair multiplies."""
        whole = const_value(self.x.shape[1]) == self.depth
        return pair // self.slots, wrap(0) if whole else pair % self.slots * self.depth


def grouped_experts(
    name: str, s: ExpertSpec, dims: tuple[Var, ...], order: Buffer, starts: Buffer
) -> PrimFunc:
    """All products. `order` i32 [pairs] and `starts` i32 [experts, 2] are room to work in."""
    columns = gcd(s.size, _COLUMNS)
    blocks = s.size // columns

    def item(w: Var) -> Stmt:
        def with_rows(first: Var, end: Var) -> Stmt:
            run = _Work(s, order, w // blocks, w % blocks * columns, columns, first, end).run()
            return If(first < end, run)

        expert = w // blocks
        return let(
            "first",
            starts[expert, 0],
            lambda first: let("end", starts[expert, 1], lambda end: with_rows(first, end)),
        )

    bias = () if s.bias is None else (s.bias,)
    return PrimFunc(
        name,
        (s.x, s.index, s.weight, *bias, order, starts, s.out),
        dims,
        seq(_sorted(s, order, starts), parallel("item", s.experts * blocks, item)),
    )


def _sorted(s: ExpertSpec, order: Buffer, starts: Buffer) -> Stmt:
    """Pairs in order of their experts, of each in their own order; where an expert's lie."""

    def each(body: Callable[[Var, Expr], Stmt]) -> Stmt:
        return loop("pair", s.pairs, lambda p: body(p, s.index[p // s.slots, p % s.slots]))

    def expert(e: Var) -> Stmt:
        at = Buffer("at", order.dtype, (wrap(1),), "register")

        def earlier(p: Var, chosen: Expr) -> Stmt:
            return If(chosen < e, store(at, 0, at[0] + 1))

        def own(p: Var, chosen: Expr) -> Stmt:
            return If(equals(chosen, e), seq(store(order, at[0], p), store(at, 0, at[0] + 1)))

        return Alloc(
            at,
            seq(
                store(at, 0, 0),
                each(earlier),
                store(starts, (e, 0), at[0]),
                each(own),
                store(starts, (e, 1), at[0]),
            ),
        )

    return parallel("expert", s.experts, expert)


@dataclass(frozen=True, slots=True)
class _Work:
    """Some columns of one expert's results, for the pairs `first` to `end` of the order."""

    spec: ExpertSpec
    order: Buffer
    expert: Expr
    column: Expr
    columns: int
    first: Expr
    end: Expr

    def run(self) -> Stmt:
        s = self.spec
        panel = Buffer("panel", F32, (wrap(self.columns), wrap(s.depth)), "scratch")
        begin = self.expert * s.size + self.column

        def unpack(c: Var) -> Stmt:
            return loop(
                "k", s.depth, lambda k: store(panel, (c, k), cast(F32, s.weight[begin + c, k]))
            )

        blocks = (self.end - self.first + (_SIDE - 1)) // _SIDE
        products = loop("block", blocks, lambda b: self.rows(panel, self.first + b * _SIDE))
        return Alloc(panel, seq(loop("c", self.columns, unpack), products))

    def rows(self, panel: Buffer, at: Expr) -> Stmt:
        """The pairs at `at` and behind it, past the last that one again."""
        side = gcd(self.columns, _SIDE)
        last = self.end - 1

        def named(pairs: tuple[Expr, ...]) -> Stmt:
            if len(pairs) < _SIDE:
                place = minimum(at + len(pairs), last)
                return let(
                    f"pair_{len(pairs)}", self.order[place], lambda p: named((*pairs, p)), lo=0
                )
            return loop(
                "c", self.columns // side, lambda c: self.tile(panel, pairs, at, c * side, side)
            )

        return named(())

    def tile(
        self, panel: Buffer, pairs: tuple[Expr, ...], at: Expr, column: Expr, side: int
    ) -> Stmt:
        s, lanes = self.spec, gcd(self.spec.depth, LANES)
        sums = Buffer("sums", F32, (wrap(_SIDE * side), wrap(lanes)), "register")
        spilled = Buffer("spilled", F32, (wrap(_SIDE * side), wrap(lanes)), "local")

        def every(body: Callable[[int, int], Stmt]) -> Stmt:
            return seq(*(body(r, c) for r in range(_SIDE) for c in range(side)))

        def step(j: Var) -> Stmt:
            def one(r: int, c: int) -> Stmt:
                row, base = s.own(pairs[r])

                def add(lane: Var) -> Stmt:
                    k = j * lanes + lane
                    own = sums[r * side + c, lane]
                    value = fma(cast(F32, s.x[row, base + k]), panel[column + c, k], own)
                    return store(sums, (r * side + c, lane), value)

                return vector("lane", lanes, add)

            return every(one)

        def clear(r: int, c: int) -> Stmt:
            return vector("lane", lanes, lambda lane: store(sums, (r * side + c, lane), 0.0))

        def spill(r: int, c: int) -> Stmt:
            at = r * side + c
            return vector("lane", lanes, lambda lane: store(spilled, (at, lane), sums[at, lane]))

        def finish(r: int, c: int) -> Stmt:
            return If(at + r < self.end, self.finish(spilled, r * side + c, pairs[r], column + c))

        run = seq(every(clear), loop("j", s.depth // lanes, step), every(spill), every(finish))
        return Alloc(sums, Alloc(spilled, run))

    def finish(self, sums: Buffer, at: int, pair: Expr, column: Expr) -> Stmt:
        """The partial sums of one result, added up in order and stored."""
        s, total = self.spec, Buffer("total", F32, (wrap(1),), "register")
        lanes = int(const_value(sums.shape[1]) or 1)
        add = unroll("lane", lanes, lambda lane: store(total, 0, total[0] + sums[at, lane]))
        value: Expr = total[0]
        own = self.column + column
        if s.bias is not None:
            value = value + cast(F32, s.bias[self.expert * s.size + own])
        place = (pair // s.slots, pair % s.slots * s.size + own)
        result = store(s.out, place, cast(s.out.dtype, value))
        return Alloc(total, seq(store(total, 0, 0.0), add, result))
