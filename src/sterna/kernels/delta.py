"""The generalized delta rule, token by token: RWKV-7's recurrence, and the gated delta rule.

`ops.recurrence` says what is computed. A work item is a few neighbouring value channels of a head
of a sequence, whose rows of the state no other needs; `kernels.recurrence` walks the tokens. Both
sums over keys, what the state has for `a` and what it gives for q, have the order of the keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd

from sterna.base.dtype import F32
from sterna.ir.expr import Buffer, Expr, Var, cast, const_value, wrap
from sterna.ir.loop import Alloc, PrimFunc, Stmt, seq, store
from sterna.kernels.build import let, loop, parallel, vector
from sterna.kernels.kv_cache import LAYER
from sterna.kernels.recurrence import States


@dataclass(frozen=True, slots=True)
class Delta:
    """Operands of delta_scan: v and out are [n, heads * value], the others [n, heads * key]."""

    q: Buffer
    k: Buffer
    v: Buffer
    w: Buffer
    a: Buffer
    b: Buffer
    out: Buffer
    heads: int

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        return (self.q, self.k, self.v, self.w, self.a, self.b, self.out)

    @property
    def key(self) -> int:
        return int(const_value(self.q.shape[1]) or 0) // self.heads

    @property
    def value(self) -> int:
        return int(const_value(self.v.shape[1]) or 0) // self.heads


def delta_scan(
    name: str, delta: Delta, states: States, dims: tuple[Var, ...], lanes: int
) -> PrimFunc:
    """The state of a head lies as [key, value]: neighbouring value channels side by side."""
    lanes = gcd(delta.value, lanes)
    blocks = delta.heads * (delta.value // lanes)

    def block(w: Var) -> Stmt:
        item = _Item(delta, states, w % blocks, lanes)
        walk = states.walk(w // blocks, item.clear, item.token)
        return Alloc(item.found, Alloc(item.sums, walk))

    body = parallel("w", states.sequences * blocks, block)
    return PrimFunc(name, (*delta.buffers, *states.buffers), (*dims, LAYER), body)


class _Item:
    """Channels `lanes` of a head: `found` is S a of each, `sums` S q."""

    def __init__(self, delta: Delta, states: States, block: Expr, lanes: int) -> None:
        across = delta.value // lanes
        self.delta, self.states, self.lanes = delta, states, lanes
        self.head, self.base = block // across, (block % across) * lanes
        self.found = Buffer("found", F32, (wrap(lanes),), "local")
        self.sums = Buffer("sums", F32, (wrap(lanes),), "local")

    def clear(self, page: Expr) -> Stmt:
        return self._rows(lambda k, i: self.states.put(page, self._place(k, i), wrap(0.0)))

    def token(self, page: Expr, n: Expr) -> Stmt:
        return seq(
            self._lanes(lambda i: seq(*(store(s, i, wrap(0.0)) for s in (self.found, self.sums)))),
            loop("k", self.delta.key, lambda k: self._find(page, n, k)),
            loop("k", self.delta.key, lambda k: self._update(page, n, k)),
            self._lanes(lambda i: self._result(n, i)),
        )

    def _find(self, page: Expr, n: Expr, k: Var) -> Stmt:
        def row(a: Var) -> Stmt:
            def one(i: Var) -> Stmt:
                seen = self.states.at(page, self._place(k, i)) * a
                return store(self.found, i, self.found[i] + seen)

            return self._lanes(one)

        return let("a", self._key(self.delta.a, n, k), row)

    def _update(self, page: Expr, n: Expr, k: Var) -> Stmt:
        given = {name: self._key(getattr(self.delta, name), n, k) for name in ("w", "b", "k", "q")}

        def row(w: Var, b: Var, key: Var, q: Var) -> Stmt:
            def one(i: Var) -> Stmt:
                place = self._place(k, i)
                v = cast(F32, self.delta.v[n, self._column(i)])
                new = self.states.at(page, place) * w + self.found[i] * b + v * key
                stored = self.states.put(page, place, new)
                seen = self.states.at(page, place) * q
                return seq(stored, store(self.sums, i, self.sums[i] + seen))

            return self._lanes(one)

        return _lets(given, row)

    def _result(self, n: Expr, i: Expr) -> Stmt:
        out = self.delta.out
        return store(out, (n, self._column(i)), cast(out.dtype, self.sums[i]))

    def _lanes(self, body: Callable[[Var], Stmt]) -> Stmt:
        return vector("i", self.lanes, body)

    def _rows(self, body: Callable[[Var, Var], Stmt]) -> Stmt:
        return loop("k", self.delta.key, lambda k: self._lanes(lambda i: body(k, i)))

    def _key(self, buffer: Buffer, n: Expr, k: Expr) -> Expr:
        return cast(F32, buffer[n, self.head * self.delta.key + k])

    def _column(self, i: Expr) -> Expr:
        return self.head * self.delta.value + self.base + i

    def _place(self, k: Expr, i: Expr) -> Expr:
        return (self.head * self.delta.key + k) * self.delta.value + self.base + i


def _lets(given: dict[str, Expr], body: Callable[..., Stmt], *known: Var) -> Stmt:
    """body(*variables) with a variable for each value."""
    if not given:
        return body(*known)
    (name, value), *rest = given.items()
    return let(name, value, lambda var: _lets(dict(rest), body, *known, var))
