"""Tensors that record what is done to them, and the trace that makes a Function of it.

A Tensor belongs to one Trace; operators on it append bindings. Shapes are inferred by the op
table as each call is recorded, so an error names the line of the model that made it. There is
no global state: what a module may know of the step comes to it as arguments.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sterna.base.dtype import DType
from sterna.ir.expr import Expr, ExprLike, wrap
from sterna.ir.graph import Attr, Binding, Function, TensorType, Value, call
from sterna.ops import op


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A symbolic value while tracing."""

    trace: Trace
    value: Value

    @property
    def shape(self) -> tuple[Expr, ...]:
        return self.value.shape

    @property
    def dtype(self) -> DType:
        return self.value.dtype

    def __add__(self, other: Tensor) -> Tensor:
        return self.trace.emit("add", self, other)

    def __mul__(self, other: Tensor) -> Tensor:
        return self.trace.emit("multiply", self, other)

    def scaled(self, factor: float) -> Tensor:
        """The tensor times a constant."""
        return self if factor == 1.0 else self.trace.emit("scale", self, factor=factor)

    def softcapped(self, cap: float) -> Tensor:
        """cap * tanh(x / cap); 0 is no cap."""
        return self.trace.emit("softcap", self, cap=cap) if cap else self

    def part(self, start: int, size: int) -> Tensor:
        """Channels start..start + size of the last dim."""
        return self.trace.emit("slice", self, start=start, size=size)

    def cast(self, dtype: DType) -> Tensor:
        return self if self.dtype == dtype else self.trace.emit("cast", self, dtype=dtype.name)


@dataclass(slots=True)
class Trace:
    """Records one Function. Weights appear in the order in which they are first read."""

    name: str
    params: list[Value] = field(default_factory=list)
    weights: dict[str, Value] = field(default_factory=dict)
    constants: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    bindings: list[Binding] = field(default_factory=list)
    functions: dict[str, Function] = field(default_factory=dict)

    def param(self, name: str, shape: tuple[ExprLike, ...], dtype: DType) -> Tensor:
        value = Value(name, TensorType(tuple(wrap(d) for d in shape), dtype))
        self.params.append(value)
        return Tensor(self, value)

    def weight(self, name: str, shape: tuple[int, ...], dtype: DType) -> Tensor:
        """A weight by its name in the model folder."""
        if name not in self.weights:
            self.weights[name] = Value(name, TensorType(tuple(wrap(d) for d in shape), dtype))
        return Tensor(self, self.weights[name])

    def constant(self, name: str, array: NDArray[np.float32], dtype: DType) -> Tensor:
        """A small array known at compile time; it travels inside the library."""
        self.constants[name] = array
        return self.weight(name, array.shape, dtype)

    def emit(self, op_name: str, *args: Tensor, **attrs: Attr) -> Tensor:
        """Record an operator with one result."""
        return self.emit_all(op_name, *args, **attrs)[0]

    def emit_all(self, op_name: str, *args: Tensor, **attrs: Attr) -> tuple[Tensor, ...]:
        """Record an operator."""
        types = op(op_name).infer(tuple(a.value.type for a in args), attrs)
        return self.bind(op_name, types, *args, **attrs)

    def bind(
        self, target: str, types: tuple[TensorType, ...], *args: Tensor, **attrs: Attr
    ) -> tuple[Tensor, ...]:
        """Record a call whose result types are known."""
        index = len(self.bindings)
        outs = tuple(
            Value(f"v{index}" if i == 0 else f"v{index}_{i}", t) for i, t in enumerate(types)
        )
        self.bindings.append(Binding(outs, call(target, *(a.value for a in args), **attrs)))
        return tuple(Tensor(self, out) for out in outs)

    def function(self, *results: Tensor) -> Function:
        """The Function recorded so far."""
        return Function(
            self.name,
            tuple(self.params),
            tuple(self.weights.values()),
            tuple(self.bindings),
            tuple(r.value for r in results),
        )
