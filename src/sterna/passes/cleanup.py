"""Leave out what does nothing: equal work done twice, changes of nothing, values nobody reads.

In: any module. Out: one with the same results and the same effects in the same order. Calls whose
operator, or some operator below, has an effect are neither dropped nor shared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from sterna.base.dtype import DType
from sterna.ir.expr import const_value
from sterna.ir.graph import Attr, Binding, Call, Function, IRModule, Value, call
from sterna.ops import OPS
from sterna.passes.def_use import substituted

_Key = tuple[str, tuple[Value, ...], tuple[tuple[str, str], ...]]


def cleanup(module: IRModule) -> IRModule:
    """Fold casts and slices, share equal calls, and drop what no result or effect needs.

    A result stays a tensor of its own: no two of them, and no parameter, become one.

    Before:
        n = dim(1, 64)

        @function
        def f(x: f16[n, 8]):
            unread = weight("unread.weight", f16[8])
            wide: f32[n, 8] = cast(x, dtype="f32")
            same: f16[n, 8] = cast(wide, dtype="f16")
            right: f16[n, 4] = slice(same, size=4, start=4)
            a: f16[n, 2] = slice(right, size=2, start=1)
            b: f16[n, 2] = slice(x, size=2, start=5)
            y: f16[n, 2] = multiply(a, b)
            z: f16[8] = silu(unread)
            return y

        entry("f")
    After:
        n = dim(1, 64)

        @function
        def f(x: f16[n, 8]):
            a: f16[n, 2] = slice(x, size=2, start=5)
            y: f16[n, 2] = multiply(a, a)
            return y

        entry("f")
    """
    effects = _with_effects(module)
    cleaned = module.map(lambda f: _without_dead(_shared(f, effects), effects))
    functions = _called(cleaned.functions, module.entry)
    read = {weight.name for f in functions.values() for weight in f.weights}
    constants = {name: array for name, array in module.constants.items() if name in read}
    return replace(module, functions=functions, constants=constants)


def _with_effects(module: IRModule) -> set[str]:
    """Functions of the module that change state, themselves or in what they call."""

    def changes(name: str) -> bool:
        called = module.functions.get(name)
        if called is None:
            return _changes_state(name, set())
        return any(changes(op_name) for op_name in {b.call.op for b in called.bindings})

    return {name for name in module.functions if changes(name)}


def _changes_state(name: str, effects: set[str]) -> bool:
    return name in effects or (name in OPS and OPS[name].effect)


def _shared(function: Function, effects: set[str]) -> Function:
    """Folded, and with equal calls made once."""
    stands_for: dict[Value, Value] = {}
    made: dict[Value, Call] = {}
    seen: dict[_Key, tuple[Value, ...]] = {}
    bindings: list[Binding] = []
    for old in function.bindings:
        binding, same = substituted(old, stands_for), old.outs
        if not _changes_state(old.call.op, effects):
            binding = replace(binding, call=_folded(binding.call, made))
            same = _unchanged(binding) or seen.setdefault(_key(binding.call), old.outs)
        if same is old.outs or not set(old.outs).isdisjoint(function.results):
            made.update(dict.fromkeys(old.outs, binding.call))
            bindings.append(binding)
        else:
            stands_for.update(zip(old.outs, same, strict=True))
    return replace(function, bindings=tuple(bindings))


def _key(call: Call) -> _Key:
    """Equal for calls that compute the same; repr tells 1 from 1.0 and True."""
    return call.op, call.args, tuple((name, repr(value)) for name, value in call.attrs)


def _folded(old: Call, made: dict[Value, Call]) -> Call:
    """A cast of a cast, or a slice of a slice, as one where that gives the same values."""
    inner = made.get(old.args[0]) if old.args else None
    if inner is None or inner.op != old.op:
        return old
    if old.op == "slice":
        start = _int(inner.attr("start")) + _int(old.attr("start"))
        return call("slice", inner.args[0], start=start, size=old.attr("size"))
    if old.op == "cast" and _holds(old.args[0].dtype, inner.args[0].dtype):
        return Call("cast", inner.args, old.attrs)
    return old


def _unchanged(binding: Binding) -> tuple[Value, ...] | None:
    """The argument that a cast to its own type or a slice of the whole returns as it is."""
    op, args = binding.call.op, binding.call.args
    if op == "cast" and args[0].dtype == binding.outs[0].dtype:
        return args
    if op == "slice" and const_value(args[0].shape[-1]) == binding.call.attr("size"):
        return args
    return None


def _holds(wide: DType, narrow: DType) -> bool:
    """Whether every value of `narrow` is a value of `wide`."""
    return bool(np.can_cast(narrow.numpy, wide.numpy, "safe"))


def _int(value: Attr) -> int:
    assert isinstance(value, int), "slice: start is an integer, by the operator's infer"
    return value


def _without_dead(function: Function, effects: set[str]) -> Function:
    """Without bindings and weights that no result and no effect needs."""
    live, kept = set(function.results), list[Binding]()
    for binding in reversed(function.bindings):
        if _changes_state(binding.call.op, effects) or not live.isdisjoint(binding.outs):
            live.update(binding.call.args)
            kept.append(binding)
    weights = tuple(weight for weight in function.weights if weight in live)
    return replace(function, bindings=tuple(reversed(kept)), weights=weights)


def _called(functions: Mapping[str, Function], entry: str) -> dict[str, Function]:
    """The functions that a run of the entry can reach, in their order."""
    reached, new = set[str](), {entry}
    while new:
        reached |= new
        ops = {binding.call.op for name in new for binding in functions[name].bindings}
        new = ops & functions.keys() - reached
    return {name: f for name, f in functions.items() if name in reached}
