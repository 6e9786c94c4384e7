"""Loops that a matrix unit does at once, taken for what they are.

In: a MATRIX loop, the thread loops around it, and the unit. Out: the size of the unit that they
are, which elements of c each thread keeps, in the unit's order, and where the first elements of a
and b lie; CodegenError where the loops are anything else than the unit's product, for nothing but
the unit is rendered for them.
The other MATRIX loops clear a tile of c or store it: elements do that one by one where it is known
where they lie, and of an opaque unit the `Whole` of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from sterna.base.dtype import F32
from sterna.base.errors import CodegenError
from sterna.base.target import MatrixUnit
from sterna.codegen.lanes import Nest
from sterna.ir.expr import Buffer, Cast, Const, Expr, Intrin, Load, Var, const_value, wrap
from sterna.ir.loop import For, ForKind, Stmt, Store
from sterna.ir.rewrite import substitute, visit
from sterna.ir.simplify import Simplifier

_Way = tuple[int, int, int]  # steps along the rows of c, its columns, and the depth
_ROW, _COLUMN, _ALONG, _NOWHERE = (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)


@dataclass(frozen=True, slots=True)
class Fragments:
    """c[kept[i]] += sum over k of a[row, k] * b[column, k], from the first elements on."""

    unit: MatrixUnit  # of this size
    c: Buffer
    kept: tuple[tuple[Expr, ...], ...]
    a: Load
    b: Load


@dataclass(frozen=True, slots=True)
class Whole:
    """c[kept[i]] of all threads, cleared (`to` is zero) or stored from the place `to` on."""

    c: Buffer
    kept: tuple[tuple[Expr, ...], ...]
    to: Load | Const


def has_matrix(stmt: Stmt) -> bool:
    """Whether a unit takes part in a statement."""
    return any(isinstance(n, For) and n.kind is ForKind.MATRIX for n in visit(stmt))


def is_move(loop: For) -> bool:
    """Whether a MATRIX loop clears or stores elements."""
    leaf = _nested(loop)[-1].body
    return isinstance(leaf, Store) and isinstance(leaf.value, Const | Load)


def sums(stmt: Stmt) -> frozenset[Buffer]:
    """What units add their products to in a statement."""
    loops = (n for n in visit(stmt) if isinstance(n, For) and n.kind is ForKind.MATRIX)
    stores = (n for loop in loops if not is_move(loop) for n in visit(loop) if isinstance(n, Store))
    return frozenset(n.buffer for n in stores)


def fragments(loop: For, nest: Nest, unit: MatrixUnit, simplifier: Simplifier) -> Fragments:
    """The operands of a MATRIX loop inside the thread loops `nest`."""
    *own, depth = _nested(loop)
    store = depth.body
    a, b = _factors(store)
    assert isinstance(store, Store), "checked by _factors"
    if a.dtype.name not in unit.operands:
        raise _unfit(f"they are not of {' or '.join(unit.operands)}")
    unit = _size(own, depth, unit)
    weights = {**_weights(_lanes(nest, unit), own, unit), depth.var: _ALONG}
    _check_place("a", a.index, (_ROW, _ALONG), weights, simplifier)
    _check_place("b", b.index, (_COLUMN, _ALONG), weights, simplifier)
    _check_place("c", store.index[:2], (_ROW, _COLUMN), weights, simplifier)
    if const_value(depth.extent) != unit.depth:
        raise _unfit(f"sums of {unit.depth} products are the unit's")
    kept = _kept(store.index, own, unit, simplifier)
    corners = (_corner(x, weights, simplifier) for x in (a, b))
    return Fragments(unit, store.buffer, kept, *corners)


def whole(loop: For, nest: Nest, unit: MatrixUnit, simplifier: Simplifier) -> Whole:
    """What a MATRIX loop does that `is_move`: all of a tile, and to rows that the group shares."""
    own = _nested(loop)
    store = own[-1].body
    assert isinstance(store, Store), "checked by is_move"
    weights = _weights(_lanes(nest, unit), own, unit)
    c, to = Load(store.buffer, store.index), store.value
    if isinstance(to, Load):
        c, to = to, c
        apart = (_NOWHERE,) * (len(to.index) - 2)
        _check_place("the copy", to.index, (*apart, _ROW, _COLUMN), weights, simplifier)
        if to.buffer.scope != "shared" or to.dtype != c.dtype:
            raise _unfit("it is stored where the group does not share it")
        to = _corner(to, weights, simplifier)
    elif not isinstance(to, Const) or to.value != 0:
        raise _unfit("a sum begins at zero")
    _check_place("c", c.index[:2], (_ROW, _COLUMN), weights, simplifier)
    return Whole(c.buffer, _kept(c.index, own, unit, simplifier), to)


def _nested(loop: For) -> list[For]:
    """A loop and those directly in it."""
    loops = [loop]
    while isinstance(loops[-1].body, For):
        loops.append(loops[-1].body)
    return loops


def _check_place(
    what: str, index: tuple[Expr, ...], ways: tuple[_Way, ...], weights: dict[Var, _Way],
    simplifier: Simplifier,
) -> None:  # fmt: skip
    """Each dim of an index goes the way it is said to, one step a step of the unit."""
    for e, way in zip(index, ways, strict=True):
        terms = simplifier.sum(e).terms
        for var, weight in weights.items():
            if terms.get(var, 0) != sum(x * y for x, y in zip(way, weight, strict=True)):
                raise _unfit(f"{what} does not lie as the unit has it")


def _corner(x: Load, weights: dict[Var, _Way], simplifier: Simplifier) -> Load:
    """The first element of a tile."""
    first = {v: wrap(0) for v in weights}
    return Load(x.buffer, tuple(simplifier.expr(substitute(e, first)) for e in x.index))


def _kept(
    index: tuple[Expr, ...], own: list[For], unit: MatrixUnit, simplifier: Simplifier
) -> tuple[tuple[Expr, ...], ...]:
    """Where the elements lie that a thread keeps, in the unit's order."""
    return tuple(
        tuple(simplifier.expr(substitute(e, _turn(own, i))) for e in index)
        for i in range(unit.kept)
    )


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


def _factors(store: Stmt) -> tuple[Load, Load]:
    """a and b of `c = fma(f32(a), f32(b), c)`, shared by the group."""
    if isinstance(store, Store) and isinstance(store.value, Intrin) and store.value.name == "fma":
        *pair, total = store.value.args
        loads = [e.a for e in pair if isinstance(e, Cast) and e.dtype == F32]
        a, b = (e if isinstance(e, Load) else None for e in (*loads, None, None)[:2])
        same = isinstance(total, Load) and total.buffer is store.buffer
        if a and b and same and isinstance(total, Load) and total.index == store.index:
            known = a.dtype == b.dtype and store.buffer.dtype == F32
            shared = all(x.buffer.scope == "shared" for x in (a, b))
            if known and shared and len(a.index) == len(b.index) == 2:
                return a, b
    raise _unfit("they are not c += a * b, of a and b in 16 bits that the group shares")


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


def _weights(lanes: list[For], own: list[For], unit: MatrixUnit) -> dict[Var, _Way]:
    """What a turn of each loop adds to row and column of an element of c, as the unit has it."""
    places: dict[str, tuple[int, int]] = {}
    for power, bit in enumerate(reversed(unit.row_bits.split())):
        places[bit] = (1 << power, 0)
    for power, bit in enumerate(reversed(unit.column_bits.split())):
        places[bit] = (0, 1 << power)
    result: dict[Var, _Way] = {}
    for kind, loops in (("l", lanes), ("s", own)):
        number = 0
        for loop in reversed(loops):
            size = int(const_value(loop.extent) or 0)
            row, column = places.get(f"{kind}{number}", (0, 0))
            result[loop.var] = (row, column, 0)
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
