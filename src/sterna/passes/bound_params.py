"""The weights of a fused module, as a library binds them: the manifest's params, in order.

In: a module of primitive Functions and the tiles that `prepack` chose. Out: a Param a weight and
layer. Layers that are traced once are spelled out here; adapters' factors are marked, for no model
folder has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sterna.base.artifact import FACTORS, Param
from sterna.ir.graph import Function, IRModule, Value
from sterna.passes.prepack import RowTile

_AS_IT_IS = RowTile(0)


def bound_params(module: IRModule, tiles: Mapping[str, RowTile]) -> tuple[Param, ...]:
    """Every weight as it is bound: the entry's own, then each repeat's, layer by layer."""
    entry = module.functions[module.entry]
    result = [_param(w, w.name, tiles) for w in _weights(module, entry)]
    for binding in entry.bindings:
        callee = module.functions[binding.call.op]
        if callee.primitive:
            continue
        given: dict[str, Any] = dict(binding.call.attrs)
        for i in range(given.get("repeat", 1)):
            layer = given.get("first", 0) + i * given.get("stride", 1)
            for offset, kind in _kinds(module, callee):
                title = str(layer + offset)
                result += [
                    _param(w, w.name.replace("{i}", title), tiles) for w in _weights(module, kind)
                ]
    return tuple(result)


def _kinds(module: IRModule, body: Function) -> list[tuple[int, Function]]:
    """The kinds of layers that a repeated body runs, in order, each with its place in the body."""
    called = [(dict(b.call.attrs), module.functions[b.call.op]) for b in body.bindings]
    kinds = [(int(attrs["offset"]), f) for attrs, f in called if not f.primitive]  # type: ignore[arg-type]
    return kinds or [(0, body)]


def _weights(module: IRModule, function: Function) -> list[Value]:
    """The weights that a function's kernels read, constants aside, in order of use."""
    kernels = [module.functions[b.call.op] for b in function.bindings]
    used = dict.fromkeys(w.name for k in kernels if k.primitive for w in k.weights)
    values = {w.name: w for k in kernels if k.primitive for w in k.weights}
    return [values[n] for n in used if n not in module.constants]


def _param(weight: Value, title: str, tiles: Mapping[str, RowTile]) -> Param:
    shape = tuple(int(getattr(d, "value", 0)) for d in weight.shape)
    tile = tiles.get(weight.name, _AS_IT_IS)
    return Param(
        name=title,
        dtype=weight.dtype.name,
        shape=shape,
        row_tile=tile.rows,
        streams=tile.streams,
        adapter=title.rpartition(".")[2] in FACTORS,
    )
