"""A primitive Function becomes a Group: operators are replaced by their Computes and fused.

Fusion is substitution: every element-wise or injective result that stays inside the kernel is
written into its readers. Stages internal to an operator (a matmul's weight panel, a norm's sum)
stay, for the schedule to place. Weights are read in the layout that `prepack` chose.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sterna.base.errors import InvalidIR
from sterna.ir.compute import Compute, Group
from sterna.ir.expr import Buffer, Expr, Load, ceil_div, wrap
from sterna.ir.graph import Binding, Function, Value
from sterna.ir.rewrite import replace_loads
from sterna.ir.simplify import simplify
from sterna.ops import op
from sterna.ops.op import result_names
from sterna.passes.prepack import RowTile
from sterna.passes.regroup import regroup
from sterna.schedule.apply import inline_into


@dataclass(frozen=True, slots=True)
class Lowered:
    """A kernel's Group, and the Function values its buffers stand for, in order."""

    group: Group
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


def lower(function: Function, row_tiles: Mapping[str, RowTile]) -> Lowered:
    """The Group of a primitive Function made of operators that have a compute rule."""
    values = inputs(function)
    logical = {v: Buffer(_short(v.name), v.dtype, v.shape) for v in values}
    computes, known = computes_of(function.bindings, logical)
    outputs = tuple(known[r] for r in function.results)
    storage = Storage.of(logical, row_tiles)
    stored = [storage.compute(c) for c in _inline(computes, outputs)]
    params = tuple(storage.buffer(logical[v]) for v in values)
    group = regroup(Group(function.name, params, outputs, tuple(stored)))
    return Lowered(group, values, function.results)


def inputs(function: Function) -> tuple[Value, ...]:
    """What a kernel reads: parameters, then weights."""
    return (*function.params, *function.weights)


def computes_of(
    bindings: Iterable[Binding], logical: Mapping[Value, Buffer]
) -> tuple[list[Compute], dict[Value, Buffer]]:
    """The Computes of operators in order, and the buffer of every value."""
    known = dict(logical)
    computes: list[Compute] = []
    for i, binding in enumerate(bindings):
        args = tuple(known[a] for a in binding.call.args)
        types = tuple(o.type for o in binding.outs)
        rule = op(binding.call.op).compute
        if rule is None:
            raise InvalidIR(f"{binding.call.op} has no compute rule and cannot be fused")
        made = rule(f"t{i}", args, types, dict(binding.call.attrs))
        by_name = {c.name: c.out for c in made}
        names = result_names(f"t{i}", len(binding.outs))
        known |= {out: by_name[name] for out, name in zip(binding.outs, names, strict=True)}
        computes.extend(made)
    return computes, known


@dataclass(frozen=True, slots=True)
class Storage:
    """Logical tensors as they lie in memory: tiled where `prepack` said so."""

    tiled: Mapping[Buffer, tuple[Buffer, RowTile]]

    @staticmethod
    def of(logical: Mapping[Value, Buffer], row_tiles: Mapping[str, RowTile]) -> Storage:
        tiles = ((b, row_tiles.get(v.name)) for v, b in logical.items())
        return Storage({b: (_tiled_buffer(b, tile), tile) for b, tile in tiles if tile})

    def buffer(self, logical: Buffer) -> Buffer:
        return self.tiled[logical][0] if logical in self.tiled else logical

    def compute(self, compute: Compute) -> Compute:
        return compute.rewritten(lambda value: replace_loads(value, self.load))

    def load(self, load: Load) -> Expr | None:
        """Element [n, w] of a tiled weight is at [n // rows, w, n % rows], or so in a stream."""
        found = self.tiled.get(load.buffer)
        if found is None:
            return None
        buffer, tile = found
        row, column = load.index
        block, inside = row // tile.rows, row % tile.rows
        if tile.streams == 1:
            return buffer[block, column, inside]
        part = tile.rows // tile.streams
        return buffer[inside // part, block, column, row % part]


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


def tiled_shape(shape: tuple[Expr, ...], tile: RowTile) -> tuple[Expr, ...]:
    """[N, W] -> [ceil(N / rows), W, rows], or [streams, ceil(N / rows), W, rows / streams]."""
    blocks, inside = simplify(ceil_div(shape[0], tile.rows)), wrap(tile.rows // tile.streams)
    streams = () if tile.streams == 1 else (wrap(tile.streams),)
    return (*streams, blocks, shape[1], inside)


def _tiled_buffer(buffer: Buffer, tile: RowTile) -> Buffer:
    return Buffer(buffer.name, buffer.dtype, tiled_shape(buffer.shape, tile))
