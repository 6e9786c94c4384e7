"""Runs loop programs: what a PrimFunc means, statement by statement.

In: a PrimFunc, numpy arrays for its buffers and numbers for its dims. Out: the arrays, changed in
place. Loops run one turn after another, whatever their kind; a loop whose turns provably touch
disjoint elements is run as one numpy operation, which is a matter of speed alone. A buffer has
SLACK elements of poison after its end that may be read (kernels over-read vector tails) and never
stored to; fresh allocations are poison too. Knows no target and no threads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sterna.base.errors import InvalidIR
from sterna.ir.expr import Buffer, Expr, Load, Var
from sterna.ir.loop import Alloc, For, If, Let, Prefetch, PrimFunc, Seq, Stmt, Store, Sync
from sterna.ir.rewrite import visit
from sterna.ir.simplify import depends_on, linear
from sterna.ir.values import Array, Memory, Region, Values, offset, poison, region, whole, wide

SLACK = 64
_Run = Callable[[], None]


class _Program:
    """One run: environment, memory, and statements compiled to closures."""

    def __init__(self, env: dict[Var, Any], memory: Memory) -> None:
        self.env = env
        self.memory = memory
        self.value = Values(env, memory)

    def stmt(self, stmt: Stmt) -> _Run:
        if isinstance(stmt, For):
            return self.loop(stmt)
        if isinstance(stmt, Store):
            return self.store(stmt)
        if isinstance(stmt, Seq):
            return self.sequence(stmt)
        if isinstance(stmt, Let):
            return self.let(stmt)
        if isinstance(stmt, If):
            return self.branch(stmt)
        if isinstance(stmt, Alloc):
            return self.alloc(stmt)
        if isinstance(stmt, Sync | Prefetch):
            return _nothing  # the loop before it is done; there is no cache
        raise InvalidIR(f"{type(stmt).__name__} is not a statement that can be run")

    def sequence(self, stmt: Seq) -> _Run:
        runs = [self.stmt(part) for part in stmt.stmts]

        def run() -> None:
            for part in runs:
                part()

        return run

    def loop(self, stmt: For) -> _Run:
        env, var = self.env, stmt.var
        extent, body = self.value(stmt.extent), self.stmt(stmt.body)
        at_once = _turns_are_disjoint(stmt)

        def run() -> None:
            turns = int(extent())
            if at_once and turns > 1 and not any(isinstance(v, np.ndarray) for v in env.values()):
                env[var] = np.arange(turns)
                body()
            else:
                for turn in range(turns):
                    env[var] = turn
                    body()
            env.pop(var, None)

        return run

    def store(self, stmt: Store) -> _Run:
        memory, buffer = self.memory, stmt.buffer
        index, value = [self.value(i) for i in stmt.index], self.value(stmt.value)
        target = buffer.dtype.numpy

        def run() -> None:
            where = memory.get(buffer)
            if where is None:
                raise InvalidIR(f"buffer {buffer.name} is stored to but holds no memory here")
            at = offset(buffer, where, [i() for i in index], slack=0)
            where.flat[at] = np.asarray(value()).astype(target)

        return run

    def let(self, stmt: Let) -> _Run:
        env, var = self.env, stmt.var
        value, body = self.value(stmt.value), self.stmt(stmt.body)

        def run() -> None:
            env[var] = wide(value(), var.dtype)
            body()
            env.pop(var, None)

        return run

    def branch(self, stmt: If) -> _Run:
        cond, then = self.value(stmt.cond), self.stmt(stmt.then)
        orelse = self.stmt(stmt.orelse) if stmt.orelse is not None else None

        def run() -> None:
            if cond():
                then()
            elif orelse is not None:
                orelse()

        return run

    def alloc(self, stmt: Alloc) -> _Run:
        memory, buffer, body = self.memory, stmt.buffer, self.stmt(stmt.body)
        shape = [self.value(extent) for extent in buffer.shape]

        def run() -> None:
            memory[buffer] = region(buffer, tuple(int(extent()) for extent in shape), SLACK)
            body()
            del memory[buffer]

        return run


def _nothing() -> None:
    """What a Sync does between loops that run one after another."""


def _turns_are_disjoint(loop: For) -> bool:
    """Whether each element stored in the loop belongs to one turn: one dimension's index is
    c * var + invariant, c not 0, wherever the buffer is touched."""
    inside = list(visit(loop.body))
    if any(isinstance(part, If | Alloc | Sync) for part in inside):
        return False
    inner = {part.var for part in inside if isinstance(part, For | Let)}
    extents = [part.extent for part in inside if isinstance(part, For)]
    if any(depends_on(extent, v) for extent in extents for v in (loop.var, *inner)):
        return False
    touched: dict[Buffer, list[tuple[Expr, ...]]] = {
        part.buffer: [] for part in inside if isinstance(part, Store)
    }
    for part in inside:
        if isinstance(part, Load | Store) and part.buffer in touched:
            touched[part.buffer].append(part.index)
    return all(_separated(indices, loop.var, inner) for indices in touched.values())


def _separated(indices: list[tuple[Expr, ...]], var: Var, inner: set[Var]) -> bool:
    return any(
        _same_line([index[dim] for index in indices], var, inner)
        for dim in range(min(map(len, indices)))
    )


def _same_line(parts: list[Expr], var: Var, inner: set[Var]) -> bool:
    first = linear(parts[0])
    atoms = first[0]
    if var not in atoms or not all(isinstance(a, Var) and a not in inner for a in atoms):
        return False
    return all(part is parts[0] or linear(part) == first for part in parts[1:])


def checked_argument(
    name: str, buffer: Buffer, array: Array | None, shape: tuple[int, ...]
) -> Array:
    """The array given for a buffer, if it is one of its dtype and shape."""
    if array is None:
        raise InvalidIR(f"{name} needs an array for buffer {buffer.name}; none was given")
    if array.shape != shape or array.dtype != buffer.dtype.numpy:
        raise InvalidIR(
            f"{name} takes {buffer.name} as {buffer.dtype}{list(shape)}, not as"
            f" {array.dtype}{list(array.shape)}"
        )
    return array


def _bind(func: PrimFunc, arrays: Mapping[str | Buffer, Array], dims: Mapping[Var, int]) -> Memory:
    """Copies of the arguments, flat, with slack behind them."""
    memory: Memory = {}
    for buffer in func.params:
        shape = tuple(whole(extent, dims) for extent in buffer.shape)
        given = arrays.get(buffer, arrays.get(buffer.name))
        array = checked_argument(func.name, buffer, given, shape)
        tail = np.full(SLACK, poison(buffer.dtype), array.dtype)
        memory[buffer] = Region(np.concatenate([array.reshape(-1), tail]), shape, SLACK)
    return memory


def evaluate_primfunc(
    func: PrimFunc, arrays: Mapping[str | Buffer, Array], dims: Mapping[Var, int]
) -> None:
    """Run a kernel. `arrays` (by Buffer or by name) are read, and changed in place.

    Raises InvalidIR for a missing or ill-shaped argument, an access out of bounds or a variable
    without a value; the arrays are then unchanged.
    """
    missing = [var.name for var in func.dims if var not in dims]
    if missing:
        raise InvalidIR(f"{func.name} needs values for the dims {', '.join(missing)}")
    memory = _bind(func, arrays, dims)
    with np.errstate(all="ignore"):
        _Program(dict(dims), memory).stmt(func.body)()
    for buffer in func.params:
        array = arrays[buffer] if buffer in arrays else arrays[buffer.name]
        array[...] = memory[buffer].flat[: array.size].reshape(array.shape)
