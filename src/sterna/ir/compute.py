"""What value stands at each index of a tensor: no order across elements, no storage, no target.

A Compute defines one buffer over named axes. The order *inside* its reduction is part of its
meaning (DESIGN section 7): `over` axes run in lexicographic order, one accumulator an element,
starting from the identity or from `start`, and a sum of products accumulates with fma. A schedule
may compute elements in any order, anywhere, but never reassociates a reduction: two schedules of
one Compute give the same bits. The exception is a sum that a matrix unit makes (`UNIT_SUM`): in
which order it adds, and how it rounds, is the hardware's, the same for every element and however
many there are. In order, as the interpreter makes it, is one of the ways.

A Group is a short list of Computes that become one kernel: later ones read earlier ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from sterna.base.dtype import DType
from sterna.ir.expr import Binary, Buffer, Const, Expr, ExprLike, Intrin, Var, binary, node, wrap


@node
class Axis:
    """A named axis: `var` runs over 0..extent."""

    var: Var
    extent: Expr

    @property
    def name(self) -> str:
        return self.var.name


@dataclass(frozen=True, slots=True)
class Combine:
    """An associative operation in name, applied in order in fact."""

    op: str  # a BINARY operator: "+" or "max"
    identity: float
    by_unit: bool = False  # applied in whatever order the target's matrix unit has


SUM = Combine("+", 0.0)
UNIT_SUM = Combine("+", 0.0, by_unit=True)
MAX = Combine("max", -3.0e38)


@node
class Compute:
    """out[axes] = body, or combine over `over` of body when `over` is not empty.

    `start`, over `axes` alone, is what the accumulator begins with instead of the identity.
    """

    out: Buffer
    axes: tuple[Axis, ...]
    body: Expr
    over: tuple[Axis, ...] = ()
    combine: Combine | None = None
    start: Expr | None = None

    @property
    def name(self) -> str:
        return self.out.name

    @property
    def values(self) -> tuple[Expr, ...]:
        """The body, and the start if there is one."""
        return (self.body,) if self.start is None else (self.body, self.start)

    def rewritten(self, change: Callable[[Expr], Expr]) -> Compute:
        """The Compute with both values changed."""
        start = None if self.start is None else change(self.start)
        return replace(self, body=change(self.body), start=start)


@node
class Group:
    """Computes that become one kernel. Buffers neither in inputs nor outputs are its own."""

    name: str
    inputs: tuple[Buffer, ...]
    outputs: tuple[Buffer, ...]
    computes: tuple[Compute, ...]

    def stage(self, name: str) -> Compute | None:
        return next((c for c in self.computes if c.name == name), None)


def axis(name: str, extent: ExprLike) -> Axis:
    """An axis over 0..extent; its Var knows its bounds when the extent does."""
    size = wrap(extent)
    hi = size.value if isinstance(size, Const) else size.hi if isinstance(size, Var) else None
    return Axis(Var(name, lo=0, hi=None if hi is None else int(hi) - 1), size)


def elementwise(
    name: str, dtype: DType, shape: tuple[ExprLike, ...], names: str, body: Callable[..., Expr]
) -> Compute:
    """A Compute without reduction: `names` are its axes, e.g. "n h"; body maps Vars to a value."""
    axes = tuple(axis(a, extent) for a, extent in zip(names.split(), shape, strict=True))
    out = Buffer(name, dtype, tuple(a.extent for a in axes))
    return Compute(out, axes, body(*(a.var for a in axes)))


def combine_step(combine: Combine, accumulator: Expr, body: Expr) -> Expr:
    """One step of a reduction: what the accumulator becomes. Sums of products use fma.

    A sum of `pair4` is one of pairs: each half of an i32 is a sum of its own.
    """
    if combine.op == "+" and isinstance(body, Binary) and body.op == "*" and body.dtype.is_float:
        return Intrin("fma", (body.a, body.b, accumulator))
    if isinstance(body, Intrin) and adds_pairs(combine, body):
        return Intrin("pair4_add", (*body.args, accumulator))
    return binary(combine.op, accumulator, body)


def adds_pairs(combine: Combine, body: Expr) -> bool:
    """Whether what is summed are pairs of 16 bits."""
    return combine.op == "+" and isinstance(body, Intrin) and body.name == "pair4"
