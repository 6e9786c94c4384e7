"""A primitive Function becomes a Group: operators are replaced by their Computes and fused.

Fusion is substitution: every element-wise or injective result that stays inside the kernel is
written into its readers. Stages internal to an operator (a matmul's weight panel, a norm's sum)
stay, for the schedule to place. Weights are read in the layout that `prepack` chose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sterna.ir.compute import Compute, Group
from sterna.ir.expr import Buffer, Expr, Load, ceil_div, wrap
from sterna.ir.graph import Function, Value
from sterna.ir.rewrite import replace_loads
from sterna.ir.simplify import simplify
from sterna.ops import op
from sterna.passes.regroup import regroup
from sterna.schedule.apply import inline_into


@dataclass(frozen=True, slots=True)
class Lowered:
    """A kernel's Group, and the Function values its buffers stand for, in order."""

    group: Group
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


def lower(function: Function, row_tiles: Mapping[str, int]) -> Lowered:
    """The Group of a primitive Function made of operators that have a compute rule."""
    buffers = {v: Buffer(_short(v.name), v.dtype, v.shape) for v in _inputs(function)}
    storage, tiled = dict(buffers), {}
    for value in function.weights:
        tile = row_tiles.get(value.name, 0)
        if tile:
            storage[value] = _tiled_buffer(buffers[value], tile)
            tiled[buffers[value]] = (storage[value], tile)
    known = dict(buffers)
    computes: list[Compute] = []
    for i, binding in enumerate(function.bindings):
        name = f"t{i}"
        args = tuple(known[a] for a in binding.call.args)
        types = tuple(o.type for o in binding.outs)
        rule = op(binding.call.op).compute
        assert rule is not None, f"{binding.call.op} has no compute rule; fusion keeps it apart"
        made = rule(name, args, types, dict(binding.call.attrs))
        known[binding.outs[0]] = made[-1].out
        computes.extend(made)
    outputs = tuple(known[r] for r in function.results)
    computes = _inline(computes, outputs)
    computes = [_read_tiled(c, tiled) for c in computes]
    inputs = tuple(storage[v] for v in _inputs(function))
    group = regroup(Group(function.name, inputs, outputs, tuple(computes)))
    return Lowered(group, _inputs(function), function.results)


def _inputs(function: Function) -> tuple[Value, ...]:
    return (*function.params, *function.weights)


def _short(name: str) -> str:
    """The last components of a weight's path: kernels do not know which layer they serve."""
    return "_".join(name.split(".")[-2:]) if "." in name else name


def _inline(computes: list[Compute], outputs: tuple[Buffer, ...]) -> list[Compute]:
    producers: dict[Buffer, Compute] = {}
    result = []
    for compute in computes:
        new = inline_into(compute, producers)
        internal = "." in compute.name
        if new.over or internal or new.out in outputs:
            result.append(new)
        else:
            producers[new.out] = new
    return result


def tiled_shape(shape: tuple[Expr, ...], tile: int) -> tuple[Expr, ...]:
    """[N, W] -> [ceil(N / tile), W, tile]."""
    return (simplify(ceil_div(shape[0], tile)), shape[1], wrap(tile))


def _tiled_buffer(buffer: Buffer, tile: int) -> Buffer:
    return Buffer(buffer.name, buffer.dtype, tiled_shape(buffer.shape, tile))


def _read_tiled(compute: Compute, tiled: Mapping[Buffer, tuple[Buffer, int]]) -> Compute:
    """Element [n, w] of a tiled weight stands at [n // tile, w, n % tile]."""

    def rule(load: Load) -> Expr | None:
        found = tiled.get(load.buffer)
        if found is None:
            return None
        buffer, tile = found
        row, column = load.index
        return buffer[row // tile, column, row % tile]

    body = replace_loads(compute.body, rule)
    return Compute(compute.out, compute.axes, body, compute.over, compute.combine)
