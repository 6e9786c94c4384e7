"""Counts what a kernel moves: elements that each turn of its parallel loops reads and writes.

In: a kernel's loop program and arguments. Out: bytes of every parameter that came from memory and
that went there, when a work item (a turn of a PARALLEL loop: a CPU's chunk, a GPU's work group)
fetches an element once, however often it uses it; bytes that its loads have asked for, each time;
and bytes that come where it keeps the few elements of a parameter that it used last (`NEAR`), as in
registers. The interpreter runs the kernel; nothing is timed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.ir.expr import Buffer, Var
from sterna.ir.interpret import _bind, _Program
from sterna.ir.loop import For, ForKind, PrimFunc
from sterna.ir.values import Region

NEAR = 16  # elements


@dataclass
class Traffic:
    """Bytes by parameter name."""

    read: Counter[str] = field(default_factory=Counter)
    written: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)
    fetched: Counter[str] = field(default_factory=Counter)


class _Seen(np.ndarray):
    """Memory that remembers which elements were touched."""

    loads: Counter[int]
    stores: set[int]
    near: dict[int, None]  # what was used last, the latest behind
    fetches: Counter[int]

    def __getitem__(self, at: Any) -> Any:
        for element in np.asarray(at).reshape(-1).tolist():
            self.loads[element] += 1
            if element not in self.near:
                self.fetches[element] += 1
            self.near.pop(element, None)
            self.near[element] = None
            if len(self.near) > NEAR:
                del self.near[next(iter(self.near))]
        return np.asarray(self)[at]

    def __setitem__(self, at: Any, value: Any) -> None:
        self.stores.update(np.asarray(at).reshape(-1).tolist())
        np.asarray(self)[at] = value


class _Counting(_Program):
    def __init__(self, env: dict[Var, Any], memory: dict[Buffer, Region]) -> None:
        super().__init__(env, memory)
        self.traffic = Traffic()
        self.params = dict(memory)

    def loop(self, stmt: For) -> Callable[[], None]:
        if stmt.kind != ForKind.PARALLEL:
            return super().loop(stmt)
        extent, body = self.value(stmt.extent), self.stmt(stmt.body)

        def run() -> None:
            for turn in range(int(extent())):
                self.env[stmt.var] = turn
                body()
                self.end_turn()
            self.env.pop(stmt.var, None)

        return run

    def end_turn(self) -> None:
        for buffer, where in self.params.items():
            seen, size = where.flat, int(np.prod(where.shape, dtype=np.int64))
            assert isinstance(seen, _Seen)
            inside = [n for at, n in seen.loads.items() if at < size]  # vector tails may run over
            self.traffic.read[buffer.name] += len(inside) * buffer.dtype.bytes
            self.traffic.asked[buffer.name] += sum(inside) * buffer.dtype.bytes
            far = sum(n for at, n in seen.fetches.items() if at < size)
            self.traffic.fetched[buffer.name] += far * buffer.dtype.bytes
            self.traffic.written[buffer.name] += len(seen.stores) * buffer.dtype.bytes
            for touched in (seen.loads, seen.stores, seen.near, seen.fetches):
                touched.clear()


def traffic_of(
    func: PrimFunc, arrays: Mapping[str | Buffer, NDArray[Any]], dims: Mapping[Var, int]
) -> Traffic:
    """Run a kernel on copies of its arguments and count."""
    memory = _bind(func, arrays, dims)
    for buffer, where in memory.items():
        seen = where.flat.view(_Seen)
        seen.loads, seen.stores, seen.near, seen.fetches = Counter(), set(), {}, Counter()
        memory[buffer] = Region(seen, where.shape, where.slack)
    program = _Counting(dict(dims), memory)
    with np.errstate(all="ignore"):
        program.stmt(func.body)()
    program.end_turn()  # what lies outside of any parallel loop
    return program.traffic
