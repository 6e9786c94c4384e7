"""The numpy meaning of everything: the oracle that schedules and kernels are compared with.

In: an expression, Compute, Group or PrimFunc, with numpy arrays and values of the symbolic dims.
Out: numpy arrays. Element arithmetic is done in each node's own type. A floating-point reduction
is summed in f64 (products of two f32 exactly) and rounded once to the output's type, so kernels,
which accumulate in order in f32, agree within a tolerance and not to the bit; a PrimFunc is run
in its own order and own types. Knows no operator and no target.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from sterna.base.errors import InvalidIR
from sterna.ir.compute import Axis, Combine, Compute, Group, adds_pairs
from sterna.ir.expr import BINARY, Binary, Buffer, Expr, Var
from sterna.ir.interpret import checked_argument, evaluate_primfunc
from sterna.ir.values import Array, Memory, Region, Values, convert, whole, wide

__all__ = ["evaluate_compute", "evaluate_expr", "evaluate_group", "evaluate_primfunc"]

_AT_ONCE = 1 << 22  # elements of an iteration space evaluated together


def _memory(arrays: Mapping[Buffer, Array]) -> Memory:
    return {b: Region(np.ascontiguousarray(a).reshape(-1), a.shape) for b, a in arrays.items()}


def evaluate_expr(
    expr: Expr, env: Mapping[Var, int | Array], buffers: Mapping[Buffer, Array] | None = None
) -> Any:
    """The value of `expr` in its own numpy dtype; variables that hold arrays broadcast.

    Raises InvalidIR for unbound variables, reads out of bounds and integer division by zero.
    """
    values = Values({v: wide(x, v.dtype) for v, x in env.items()}, _memory(buffers or {}))
    with np.errstate(all="ignore"):
        return convert(values(expr)(), expr.dtype)


def evaluate_compute(
    compute: Compute, arrays: Mapping[Buffer, Array], dims: Mapping[Var, int]
) -> Array:
    """The tensor a Compute defines, of its axes' extents and its out buffer's dtype."""
    axes = (*compute.axes, *compute.over)
    extents = [whole(axis.extent, dims) for axis in axes]
    shape = tuple(extents[: len(compute.axes)])
    out = np.empty(shape, compute.out.dtype.numpy)
    memory = _memory(arrays)
    with np.errstate(all="ignore"):
        for part in _slices(shape, prod(extents)):
            ranges = [*part, *(slice(0, n) for n in extents[len(shape) :])]
            out[part] = _evaluate_part(compute, axes, ranges, memory, dims)
    return out


def _slices(shape: tuple[int, ...], total: int) -> list[tuple[slice, ...]]:
    """The output cut along its longest axis into parts of bounded iteration space."""
    if not shape or total <= _AT_ONCE:
        return [tuple(slice(0, n) for n in shape)]
    longest = max(range(len(shape)), key=lambda i: shape[i])
    step = max(1, shape[longest] * _AT_ONCE // total)
    cuts = [slice(i, min(i + step, shape[longest])) for i in range(0, shape[longest], step)]
    return [
        tuple(cut if i == longest else slice(0, n) for i, n in enumerate(shape)) for cut in cuts
    ]


def _evaluate_part(
    compute: Compute,
    axes: tuple[Axis, ...],
    ranges: list[slice],
    memory: Memory,
    dims: Mapping[Var, int],
) -> Array:
    env: dict[Var, Any] = dict(dims)
    sizes = tuple(cut.stop - cut.start for cut in ranges)
    for dim, (axis, cut) in enumerate(zip(axes, ranges, strict=True)):
        along = [1] * len(axes)
        along[dim] = sizes[dim]
        env[axis.var] = np.arange(cut.start, cut.stop).reshape(along)
    values = Values(env, memory)
    if compute.combine is None:
        return np.broadcast_to(convert(values(compute.body)(), compute.out.dtype), sizes)
    space = np.broadcast_to(_summand(compute.body, values), sizes)
    start = None
    if compute.start is not None:
        kept = sizes[: len(compute.axes)]
        once = (*kept, *[1] * len(compute.over))
        start = np.broadcast_to(values(compute.start)(), once).reshape(kept)
    reduced: Array = np.asarray(convert(_reduce(compute, space, start), compute.out.dtype))
    return reduced


def _summand(body: Expr, values: Values) -> Any:
    """What is combined; a product of floats keeps its exact value, as with fma."""
    if isinstance(body, Binary) and body.op == "*" and body.dtype.is_float:
        return np.float64(values(body.a)()) * np.float64(values(body.b)())
    value: Array = np.asarray(values(body)())
    return value.astype(np.float64) if body.dtype.is_float else value


def _reduce(compute: Compute, space: Array, start: Array | None) -> Any:
    combine, rank = compute.combine, len(compute.axes)
    assert combine is not None
    if not adds_pairs(combine, compute.body):
        return _combined(combine, space, start, rank)
    begun = 0 if start is None else start
    low, high = (
        _combined(combine, _half(space, shift), _half(begun, shift), rank) for shift in (0, 16)
    )
    return (high << 16) | (low & 0xFFFF)


def _half(pair: Any, shift: int) -> Array:
    """What stands from bit `shift` on, with room for sums that wrap only when they are kept."""
    return np.asarray(pair, np.int64) >> shift & 0xFFFF


def _combined(combine: Combine, space: Array, start: Array | None, rank: int) -> Any:
    function, over = BINARY[combine.op].numpy, tuple(range(rank, space.ndim))
    if not isinstance(function, np.ufunc):
        raise InvalidIR(f"{combine.op!r} cannot combine; use + or max")
    initial: Any = combine.identity
    if space.dtype.kind in "iu":
        initial = 0 if combine.op == "+" else np.iinfo(space.dtype).min
    elif combine.op == "max" and start is not None:
        initial = -np.inf  # the start may be less than the identity
    reduced = function.reduce(space, axis=over, initial=initial)
    return reduced if start is None else function(reduced, start)


def evaluate_group(
    group: Group, arrays: Mapping[str | Buffer, Array], dims: Mapping[Var, int]
) -> dict[str, Array]:
    """Outputs by name of a Group run on `arrays`, its inputs by Buffer or by name."""
    known: dict[Buffer, Array] = {}
    for buffer in group.inputs:
        array = arrays.get(buffer, arrays.get(buffer.name))
        shape = tuple(whole(extent, dims) for extent in buffer.shape)
        known[buffer] = checked_argument(group.name, buffer, array, shape)
    for compute in group.computes:
        known[compute.out] = evaluate_compute(compute, known, dims)
    return {buffer.name: known[buffer] for buffer in group.outputs}
