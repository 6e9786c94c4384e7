"""One traced function for each range of the symbolic dims: prefill, decode, verify.

The graph is the same; only the bounds of its dims differ, and with them the schedules that suit.
A step may run through any specialization whose bounds hold it, with the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sterna.ir.expr import Expr, Var
from sterna.ir.graph import Binding, Call, Function, IRModule, TensorType, Value
from sterna.ir.rewrite import substitute


def specialize(module: IRModule, most: Mapping[str, int]) -> IRModule:
    """The module with `most[dim]` as upper bound of the dims named there."""
    narrowed: dict[Var, Expr] = {
        d: replace(d, hi=most[d.name]) for d in module.dims if d.name in most
    }
    values: dict[Value, Value] = {}  # shared: a kernel's parameters are its caller's values
    functions = {n: _function(f, narrowed, values) for n, f in module.functions.items()}
    dims = tuple(v for d in module.dims if isinstance(v := narrowed.get(d, d), Var))
    return replace(module, functions=functions, dims=dims)


def _function(function: Function, dims: Mapping[Var, Expr], values: dict[Value, Value]) -> Function:
    def narrow(value: Value) -> Value:
        if value not in values:
            shape = tuple(substitute(d, dims) for d in value.shape)
            values[value] = Value(value.name, TensorType(shape, value.dtype))
        return values[value]

    def each(group: tuple[Value, ...]) -> tuple[Value, ...]:
        return tuple(narrow(v) for v in group)

    bindings = tuple(
        Binding(each(b.outs), Call(b.call.op, each(b.call.args), b.call.attrs))
        for b in function.bindings
    )
    return replace(
        function,
        params=each(function.params),
        weights=each(function.weights),
        bindings=bindings,
        results=each(function.results),
    )
