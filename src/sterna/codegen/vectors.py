"""Vectors of neighbours that a thread brings from memory into registers with one load.

In: a loop of a program. Out: the copy that it is, if it is one: a VECTOR loop over neighbours, the
first of which surely has a number in its buffer that is a multiple of the vector's length, as a
buffer begins at a multiple of more (`Target.buffer_align`). What is none stays a loop. Where a
buffer has one type of elements, it is an array of vectors if nothing else touches it. Knows no
language.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Set
from dataclasses import dataclass

from sterna.base.dtype import DType
from sterna.ir.expr import Buffer, Expr, Load, const_value, wrap
from sterna.ir.linear import Sum
from sterna.ir.loop import For, ForKind, Stmt, Store
from sterna.ir.rewrite import free_vars, substitute, visit
from sterna.ir.simplify import Simplifier

Kinds = Set[tuple[DType, int]]  # dtypes and lengths of vectors that a language reads


@dataclass(frozen=True, slots=True)
class Copy:
    """`lanes` elements of `source` from number `first` on, kept in `own` from place `here` on."""

    source: Buffer
    first: Sum
    own: Buffer
    here: tuple[Expr, ...]
    lanes: int


def vector_copy(stmt: Stmt, kinds: Kinds, simplifier: Simplifier) -> Copy | None:
    """The copy that a loop is, if it is one of a vector of these kinds."""
    if not isinstance(stmt, For) or stmt.kind is not ForKind.VECTOR:
        return None
    store, lanes = stmt.body, const_value(stmt.extent)
    if not isinstance(store, Store) or not isinstance(store.value, Load) or lanes is None:
        return None
    load, var, own = store.value, stmt.var, store.buffer
    source = load.buffer
    if (source.dtype, int(lanes)) not in kinds or source.scope != "global":
        return None
    if own.dtype != source.dtype or own.scope != "register":
        return None
    kept = simplifier.sum(simplifier.expr(store.index[-1]))
    elsewhere = any(var in free_vars(i) for i in store.index[:-1])
    first = simplifier.sum(simplifier.expr(_number(load)))
    along = (kept.terms.get(var), first.terms.get(var)) == (1, 1)
    _, rest = first.drop(var).split(int(lanes))
    nested = any(var in free_vars(atom) for atom in first.drop(var).terms)
    if not along or elsewhere or nested or rest.terms or rest.constant:
        return None
    here = tuple(substitute(i, {var: wrap(0)}) for i in store.index)
    return Copy(source, first.drop(var), own, here, int(lanes))


def in_vectors(body: Stmt, kinds: Kinds, simplifier: Simplifier) -> frozenset[Buffer]:
    """The buffers that are read by copies of one kind of vector, and touched by nothing else."""
    nodes = list(visit(body))
    times = Counter(n.buffer for n in nodes if isinstance(n, Load | Store))
    found = (vector_copy(n, kinds, simplifier) for n in nodes if isinstance(n, For))
    copies = Counter((copy.source, copy.lanes) for copy in found if copy is not None)
    return frozenset(source for (source, _), count in copies.items() if count == times[source])


def _number(load: Load) -> Expr:
    """An element's number in its buffer."""
    number: Expr = wrap(0)
    for extent, index in zip(load.buffer.shape, load.index, strict=True):
        number = number * extent + index
    return number
