"""Walking the tokens of each sequence in order, with a state that lies in the sequence's page.

Work items are channels of sequences: they share nothing, and each takes its tokens one after
another, so how a prompt is cut into steps and what else runs in them changes no bit. On a CPU an
item is a few neighbouring channels in a vector, elsewhere (`lanes` 1) one channel. The operators
of `ops.recurrence` say what is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd

from sterna.base.dtype import F32
from sterna.ir.expr import Buffer, Expr, Load, Var, cast, const_value, exp, wrap
from sterna.ir.loop import Alloc, If, PrimFunc, Stmt, seq, store
from sterna.kernels.build import let, loop, parallel, vector
from sterna.kernels.kv_cache import LAYER
from sterna.ops.activation import softplus


@dataclass(frozen=True, slots=True)
class States:
    """The states of one operator in all pages, and the tensors that say whose tokens are where."""

    cache: Buffer  # [pages, layers, 1, 1, elements]
    offset: int
    seq_indptr: Buffer
    positions: Buffer
    page_indptr: Buffer
    page_table: Buffer

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        return (
            self.cache, self.seq_indptr, self.positions, self.page_indptr, self.page_table,
        )  # fmt: skip

    @property
    def sequences(self) -> Expr:
        return self.page_indptr.shape[0] - 1

    def at(self, page: Expr, element: Expr) -> Load:
        return self.cache[page, LAYER, 0, 0, element + self.offset]

    def put(self, page: Expr, element: Expr, value: Expr) -> Stmt:
        return store(self.cache, (page, LAYER, 0, 0, element + self.offset), value)

    def walk(
        self, s: Expr, clear: Callable[[Expr], Stmt], token: Callable[[Expr, Expr], Stmt]
    ) -> Stmt:
        """clear(page) if sequence s begins in this step, then token(page, n) for its tokens."""

        def at_page(page: Var) -> Stmt:
            def from_first(first: Var) -> Stmt:
                count = self.seq_indptr[s + 1] - first
                tokens = loop("t", count, lambda t: let("n", first + t, each, lo=0))
                return seq(If(self.positions[first] < 1, clear(page)), tokens)

            def each(n: Var) -> Stmt:
                return token(page, n)

            return let("first", self.seq_indptr[s], from_first, lo=0)

        return let("page", self.page_table[self.page_indptr[s]], at_page, lo=0)


def causal_conv(
    name: str,
    operands: tuple[Buffer, Buffer, Buffer | None],
    out: Buffer,
    states: States,
    dims: tuple[Var, ...],
    lanes: int,
) -> PrimFunc:
    """out = bias + sum over j of weight[:, 0, j] * input of kernel - 1 - j tokens before."""
    x, weight, bias = operands
    channels, kernel = (int(const_value(weight.shape[i]) or 0) for i in (0, 2))
    lanes = gcd(channels, lanes)
    blocks, kept = channels // lanes, kernel - 1

    def block(w: Var) -> Stmt:
        base = (w % blocks) * lanes

        def clear(page: Expr) -> Stmt:
            return loop(
                "j",
                kept,
                lambda j: vector(
                    "i", lanes, lambda i: states.put(page, j * channels + base + i, wrap(0.0))
                ),
            )

        def token(page: Expr, n: Expr) -> Stmt:
            def one(i: Var) -> Stmt:
                c = base + i
                before = [states.at(page, c + j * channels) for j in range(kept)]
                inputs: list[Expr] = [*before, cast(F32, x[n, c])]
                total: Expr = wrap(0.0) if bias is None else bias[c]
                for j, value in enumerate(inputs):
                    total = total + weight[c, 0, j] * value
                moved = (states.put(page, c + j * channels, inputs[j + 1]) for j in range(kept))
                return seq(store(out, (n, c), cast(out.dtype, total)), *moved)

            return vector("i", lanes, one)

        return states.walk(w // blocks, clear, token)

    given = tuple(b for b in operands if b is not None)
    body = parallel("w", states.sequences * blocks, block)
    return PrimFunc(name, (*given, out, *states.buffers), (*dims, LAYER), body)


def token_shift(
    name: str, x: Buffer, out: Buffer, states: States, dims: tuple[Var, ...], lanes: int
) -> PrimFunc:
    """out = x of the token before."""
    channels = int(const_value(x.shape[1]) or 0)
    lanes = gcd(channels, lanes)
    blocks = channels // lanes

    def block(w: Var) -> Stmt:
        base = (w % blocks) * lanes

        def clear(page: Expr) -> Stmt:
            return vector("i", lanes, lambda i: states.put(page, base + i, wrap(0.0)))

        def token(page: Expr, n: Expr) -> Stmt:
            def one(i: Var) -> Stmt:
                c = base + i
                before = store(out, (n, c), cast(out.dtype, states.at(page, c)))
                return seq(before, states.put(page, c, cast(F32, x[n, c])))

            return vector("i", lanes, one)

        return states.walk(w // blocks, clear, token)

    body = parallel("w", states.sequences * blocks, block)
    return PrimFunc(name, (x, out, *states.buffers), (*dims, LAYER), body)


@dataclass(frozen=True, slots=True)
class Scan:
    """Operands and sizes of ssm_scan."""

    x: Buffer
    b: Buffer
    c: Buffer
    dt: Buffer
    a_log: Buffer
    d: Buffer
    out: Buffer
    heads: int
    state: int

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        return (self.x, self.b, self.c, self.dt, self.a_log, self.d, self.out)

    @property
    def dim(self) -> int:
        """Channels of a head."""
        return int(const_value(self.x.shape[1]) or 0) // self.heads

    def group(self, head: Expr) -> Expr:
        """Where the b and c of a head begin."""
        groups = int(const_value(self.b.shape[1]) or 0) // self.state
        return (head // (self.heads // groups)) * self.state

    def step(self, n: Expr, head: Expr) -> Expr:
        """softplus(dt), without overflow."""
        return softplus(cast(F32, self.dt[n, head]))


def ssm_scan(name: str, scan: Scan, states: States, dims: tuple[Var, ...], lanes: int) -> PrimFunc:
    """The state of a head lies as [state, dim]: neighbouring channels side by side."""
    dim = scan.dim
    lanes = gcd(dim, lanes)
    blocks = scan.heads * (dim // lanes)

    def block(w: Var) -> Stmt:
        head, base = (w % blocks) // (dim // lanes), (w % (dim // lanes)) * lanes
        sums = Buffer("sums", F32, (wrap(lanes),), "local")

        def place(k: Expr, i: Expr) -> Expr:
            return (head * scan.state + k) * dim + base + i

        def clear(page: Expr) -> Stmt:
            def row(k: Var) -> Stmt:
                return vector("i", lanes, lambda i: states.put(page, place(k, i), wrap(0.0)))

            return loop("k", scan.state, row)

        def token(page: Expr, n: Expr) -> Stmt:
            def with_step(step: Var) -> Stmt:
                decay = exp(-(step * exp(scan.a_log[head])))
                return let("decay", decay, lambda d: _advance(scan, n, head, step, d, update))

            def update(k: Var, gain: Var, seen: Var, decay: Var) -> Stmt:
                def one(i: Var) -> Stmt:
                    x = cast(F32, scan.x[n, head * dim + base + i])
                    new = states.at(page, place(k, i)) * decay + gain * x
                    stored = states.put(page, place(k, i), new)
                    return seq(
                        stored, store(sums, i, sums[i] + states.at(page, place(k, i)) * seen)
                    )

                return vector("i", lanes, one)

            def result(i: Var) -> Stmt:
                column = head * dim + base + i
                y = sums[i] + scan.d[head] * cast(F32, scan.x[n, column])
                return store(scan.out, (n, column), cast(scan.out.dtype, y))

            return seq(
                vector("i", lanes, lambda i: store(sums, i, wrap(0.0))),
                let("step", scan.step(n, head), with_step),
                vector("i", lanes, result),
            )

        return Alloc(sums, states.walk(w // blocks, clear, token))

    body = parallel("w", states.sequences * blocks, block)
    return PrimFunc(name, (*scan.buffers, *states.buffers), (*dims, LAYER), body)


def _advance(
    scan: Scan,
    n: Expr,
    head: Expr,
    step: Var,
    decay: Var,
    update: Callable[[Var, Var, Var, Var], Stmt],
) -> Stmt:
    """update(k, step * b[k], c[k], decay) for every row k of the state."""

    def row(k: Var) -> Stmt:
        at = scan.group(head) + k
        gain = step * cast(F32, scan.b[n, at])
        return let(
            "gain",
            gain,
            lambda g: let("seen", cast(F32, scan.c[n, at]), lambda c: update(k, g, c, decay)),
        )

    return loop("k", scan.state, row)
