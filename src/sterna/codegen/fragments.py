"""Loops that a matrix unit does at once, taken for what they are.

In: a MATRIX loop, the thread loops around it, and the unit. Out: the size of the unit that they
are, which elements of c each thread keeps, in the unit's order, and where the first elements of a
and b lie; CodegenError where the loops are anything else than the unit's product, for nothing but
the unit is rendered for them.
"""

from __future__ import annotations

from dataclasses import dataclass

from sterna.base.dtype import F32
from sterna.base.errors import CodegenError
from sterna.base.target import MatrixUnit
from sterna.codegen.lanes import Nest
from sterna.ir.expr import Buffer, Cast, Expr, Intrin, Load, Var, const_value, wrap
from sterna.ir.loop import For, ForKind, Stmt, Store
from sterna.ir.rewrite import substitute, visit
from sterna.ir.simplify import Simplifier


@dataclass(frozen=True, slots=True)
class Fragments:
    """c[kept[i]] += sum over k of a[row, k] * b[column, k], from the first elements on."""

    unit: MatrixUnit  # of this size
    c: Buffer
    kept: tuple[tuple[Expr, ...], ...]
    a: Load
    b: Load


def has_matrix(stmt: Stmt) -> bool:
    """Whether a unit takes part in a statement."""
    return any(isinstance(n, For) and n.kind is ForKind.MATRIX for n in visit(stmt))


def fragments(loop: For, nest: Nest, unit: MatrixUnit, simplifier: Simplifier) -> Fragments:
    """The operands of a MATRIX loop inside the thread loops `nest`."""
    loops = [loop]
    while isinstance(loops[-1].body, For):
        loops.append(loops[-1].body)
    *own, depth = loops
    store = depth.body
    a, b = _factors(store, unit)
    assert isinstance(store, Store), "checked by _factors"
    unit = _size(own, depth, unit)
    weights = _weights(_lanes(nest, unit), own, unit)
    for what, index, row, column, along in (
        ("a", a.index, (1, 0), (0, 0), (0, 1)),
        ("b", b.index, (0, 0), (1, 0), (0, 1)),
        ("c", store.index[:2], (1, 0), (0, 1), (0, 0)),
    ):
        for dim, e in enumerate(index):
            terms = simplifier.sum(e).terms
            wanted = {v: row[dim] * r + column[dim] * c for v, (r, c) in weights.items()}
            wanted[depth.var] = along[dim]
            if any(terms.get(v, 0) != weight for v, weight in wanted.items()):
                raise _unfit(f"{what} does not lie as the unit has it")
    if const_value(depth.extent) != unit.depth:
        raise _unfit(f"sums of {unit.depth} products are the unit's")
    first = {v: wrap(0) for v in (*weights, depth.var)}
    kept = tuple(
        tuple(simplifier.expr(substitute(e, _turn(own, i))) for e in store.index)
        for i in range(unit.kept)
    )

    def corner(x: Load) -> Load:
        return Load(x.buffer, tuple(simplifier.expr(substitute(e, first)) for e in x.index))

    return Fragments(unit, store.buffer, kept, corner(a), corner(b))


def operands(stmt: Stmt) -> frozenset[Buffer]:
    """What units multiply in a statement."""
    loops = (n for n in visit(stmt) if isinstance(n, For) and n.kind is ForKind.MATRIX)
    loads = (n for loop in loops for n in visit(loop) if isinstance(n, Load))
    return frozenset(n.buffer for n in loads if n.buffer.scope == "shared")


def _size(own: list[For], depth: For, unit: MatrixUnit) -> MatrixUnit:
    """The unit of the size that the loops have; where they have none of its, of another."""
    kept = 1
    for loop in own:
        kept *= int(const_value(loop.extent) or 0)
    return unit.fitted(kept * unit.lanes // unit.columns, int(const_value(depth.extent) or 0))


def _unfit(why: str) -> CodegenError:
    return CodegenError(f"these loops are no product of the target's matrix unit: {why}")


def _factors(store: Stmt, unit: MatrixUnit) -> tuple[Load, Load]:
    """a and b of `c = fma(f32(a), f32(b), c)`, shared by the group."""
    if isinstance(store, Store) and isinstance(store.value, Intrin) and store.value.name == "fma":
        *pair, total = store.value.args
        loads = [e.a for e in pair if isinstance(e, Cast) and e.dtype == F32]
        a, b = (e if isinstance(e, Load) else None for e in (*loads, None, None)[:2])
        same = isinstance(total, Load) and total.buffer is store.buffer
        if a and b and same and isinstance(total, Load) and total.index == store.index:
            known = a.dtype == b.dtype and a.dtype.name in unit.operands
            shared = all(x.buffer.scope == "shared" for x in (a, b))
            if known and shared and len(a.index) == len(b.index) == 2 and store.buffer.dtype == F32:
                return a, b
    dtypes = " or ".join(unit.operands)
    raise _unfit(f"they are not c += a * b, of {dtypes} that the group shares")


def _lanes(nest: Nest, unit: MatrixUnit) -> list[For]:
    """The innermost thread loops, a subgroup together."""
    lanes: list[For] = []
    size = 1
    for loop in reversed(nest):
        if size < unit.lanes:
            lanes.insert(0, loop)
            size *= int(const_value(loop.extent) or 0)
    if size != unit.lanes:
        raise _unfit(f"{unit.lanes} threads are a subgroup")
    return lanes


def _weights(lanes: list[For], own: list[For], unit: MatrixUnit) -> dict[Var, tuple[int, int]]:
    """What a turn of each loop adds to row and column of an element of c, as the unit has it."""
    places: dict[str, tuple[int, int]] = {}
    for power, bit in enumerate(reversed(unit.row_bits.split())):
        places[bit] = (1 << power, 0)
    for power, bit in enumerate(reversed(unit.column_bits.split())):
        places[bit] = (0, 1 << power)
    result: dict[Var, tuple[int, int]] = {}
    for kind, loops in (("l", lanes), ("s", own)):
        number = 0
        for loop in reversed(loops):
            size = int(const_value(loop.extent) or 0)
            row, column = result[loop.var] = places.get(f"{kind}{number}", (0, 0))
            for i in range(size.bit_length() - 1):
                if places.pop(f"{kind}{number}", None) != (row << i, column << i):
                    raise _unfit("threads keep other elements of c")
                number += 1
            if size.bit_count() != 1:
                raise _unfit("threads keep other elements of c")
    if places:
        raise _unfit("threads keep other elements of c")
    return result


def _turn(own: list[For], i: int) -> dict[Var, Expr]:
    """The variables of a thread's own loops in their `i`-th turn together."""
    values: dict[Var, Expr] = {}
    for loop in reversed(own):
        size = int(const_value(loop.extent) or 1)
        values[loop.var], i = wrap(i % size), i // size
    return values
