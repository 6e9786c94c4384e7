"""Who makes a value of a Function and who reads it: what every graph pass asks first.

In: a Function. Out: maps over its values, or the Function with some values replaced. It knows no
operator.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from sterna.ir.graph import Binding, Function, Value


def makers(function: Function) -> dict[Value, Binding]:
    """The binding that defines each value; parameters and weights have none."""
    return {out: binding for binding in function.bindings for out in binding.outs}


def readers(function: Function) -> dict[Value, list[tuple[Binding, int]]]:
    """(binding, argument position) of every read of a value; returning it is not a read."""
    found: dict[Value, list[tuple[Binding, int]]] = {}
    for binding in function.bindings:
        for position, arg in enumerate(binding.call.args):
            found.setdefault(arg, []).append((binding, position))
    return found


def with_args(binding: Binding, args: Iterable[Value]) -> Binding:
    """The same call on other values."""
    return replace(binding, call=replace(binding.call, args=tuple(args)))


def substituted(binding: Binding, values: Mapping[Value, Value]) -> Binding:
    """The binding, reading `values[arg]` in place of each arg that is a key."""
    if not any(arg in values for arg in binding.call.args):
        return binding
    return with_args(binding, (values.get(arg, arg) for arg in binding.call.args))
