"""Which tensors: let-bound calls over tensors with symbolic shapes, straight-line and pure.

A Function is a list of bindings; a Call names an operator of the op table, or another Function
of the module: `call` runs it once, `repeat` once for each layer index. Ops that touch state (the
KV cache) are marked so in the op table and keep their order. Weights never enter the IR: a
Function lists the names and types of those it reads, with "{i}" standing for the layer index.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from sterna.base.dtype import DType
from sterna.ir.expr import Expr, Var, node

Attr = int | float | str | bool | tuple[int, ...]


@node
class TensorType:
    """Symbolic shape and element type."""

    shape: tuple[Expr, ...]
    dtype: DType


@node
class Value:
    """A named tensor: a parameter, a weight, a constant or a binding's result."""

    name: str
    type: TensorType

    @property
    def shape(self) -> tuple[Expr, ...]:
        return self.type.shape

    @property
    def dtype(self) -> DType:
        return self.type.dtype


@node
class Call:
    """An operator applied to tensors. `attrs` are static, sorted by name."""

    op: str
    args: tuple[Value, ...]
    attrs: tuple[tuple[str, Attr], ...] = ()

    def attr(self, name: str) -> Attr:
        return dict(self.attrs)[name]


@node
class Binding:
    """outs = call."""

    outs: tuple[Value, ...]
    call: Call


@node
class Function:
    """params and weights in, results out; bindings in order.

    A `primitive` Function is one kernel: fusion made it, lowering turns it into a Group or a
    PrimFunc. The name of a weight is its name in the model folder.
    """

    name: str
    params: tuple[Value, ...]
    weights: tuple[Value, ...]
    bindings: tuple[Binding, ...]
    results: tuple[Value, ...]
    primitive: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class IRModule:
    """Functions by name; `entry` is the one that runs a step.

    `dims` are the symbolic dims with their bounds. `constants` are small arrays known at compile
    time (rotary frequencies), read like weights under their name. `fused` records weights that
    passes made by stacking others along the rows: name -> parts in order.
    """

    functions: dict[str, Function]
    entry: str
    dims: tuple[Var, ...]
    constants: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    fused: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def map(self, transform: Callable[[Function], Function]) -> IRModule:
        """The module with `transform(function)` in place of each function."""
        functions = {name: transform(f) for name, f in self.functions.items()}
        return replace(self, functions=functions)


def call(op: str, *args: Value, **attrs: Attr) -> Call:
    """A Call with its attributes sorted."""
    return Call(op, args, tuple(sorted(attrs.items())))
