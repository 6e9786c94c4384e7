"""The record of an operator and the few helpers that rules are written with.

One record holds all there is to know: how types follow (`infer`), which value stands at each
index (`compute`, which is also the reference when evaluated by the interpreter), and how it may
fuse (`kind`). Rules get Buffers and static attributes; they know nothing of schedules or targets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from sterna.base.dtype import DType
from sterna.base.errors import InvalidIR
from sterna.ir.compute import Compute, axis
from sterna.ir.expr import Buffer, Const, Expr
from sterna.ir.graph import Attr, TensorType

Attrs = Mapping[str, Attr]


class Kind(Enum):
    """How an operator fuses."""

    ELEMENTWISE = "elementwise"  # out[i] from in[i] (broadcast): any group's epilogue or prologue
    INJECTIVE = "injective"  # out[i] from in[f(i)]: goes into its readers
    REDUCE = "reduce"  # has a reduction: at most one heads a group
    OPAQUE = "opaque"  # a loop program written by hand


@dataclass(frozen=True, slots=True)
class Op:
    """infer(types, attrs) -> result types; compute(name, args, types, attrs) -> Computes.

    `compute` receives the argument Buffers and the result types and returns Computes in order,
    those named by `result_names(name, ...)` being its results. OPAQUE ops have none: their loop
    program is in `kernels`, found by the op's name. `effect` marks ops that change state.
    """

    name: str
    kind: Kind
    infer: Callable[[tuple[TensorType, ...], Attrs], tuple[TensorType, ...]]
    compute: (
        Callable[[str, tuple[Buffer, ...], tuple[TensorType, ...], Attrs], tuple[Compute, ...]]
        | None
    ) = None
    effect: bool = False


def result_names(name: str, count: int) -> tuple[str, ...]:
    """Names of the Buffers that hold an operator's results: "y", then "y_1" and so on."""
    return (name, *(f"{name}_{i}" for i in range(1, count)))


def define(
    name: str,
    type: TensorType,
    names: str,
    body: Callable[..., Expr],
) -> Compute:
    """A Compute over the whole of `type`, `names` being its axes: "n h"."""
    axes = tuple(axis(a, extent) for a, extent in zip(names.split(), type.shape, strict=True))
    out = Buffer(name, type.dtype, type.shape)
    return Compute(out, axes, body(*(a.var for a in axes)))


def static(extent: Expr, what: str) -> int:
    """A dim that must be known at compile time."""
    if not isinstance(extent, Const):
        raise InvalidIR(f"{what} must be static")
    return int(extent.value)


def expect(condition: bool, message: str) -> None:
    """InvalidIR(message) unless the condition holds."""
    if not condition:
        raise InvalidIR(message)


def tensor(shape: tuple[Expr, ...], dtype: DType) -> TensorType:
    return TensorType(shape, dtype)


def same_dim(a: Expr, b: Expr) -> bool:
    """Dims are equal if they are the same symbol or the same number."""
    return a is b or (isinstance(a, Const) and isinstance(b, Const) and a.value == b.value)


def integer(attrs: Attrs, name: str) -> int:
    """An attribute that must be an integer."""
    value = attrs.get(name)
    if not isinstance(value, int):
        raise InvalidIR(f"attribute {name} must be an integer, found {value!r}")
    return value


def number(attrs: Attrs, name: str) -> float:
    """An attribute that must be a number."""
    value = attrs.get(name)
    if not isinstance(value, int | float):
        raise InvalidIR(f"attribute {name} must be a number, found {value!r}")
    return float(value)
