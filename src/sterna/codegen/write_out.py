"""Loops written out, and what their turns have in common computed once.

For compilers that take a kernel as it is told: they keep an array whose index is not a number in
memory, and load again what was loaded a line before. In: a loop program. Out: one of equal
meaning, in which loops that number registers, or are to be unrolled, are sequences; in each
sequence of stores, what accumulates in a register is one expression, and choices and what is read
from memory that the program does not write have a name where they are needed twice. Slow operations
on whole numbers are avoided (see `whole_numbers`), and products with codes share what they can (see
`code_sums`, which alone changes bits, in the last places). No other sum changes its order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sterna.codegen.code_sums import CodeSums
from sterna.codegen.folded import folded
from sterna.codegen.whole_numbers import by_masks, hoisted
from sterna.ir.expr import (
    Binary,
    Buffer,
    Cast,
    Expr,
    Intrin,
    Load,
    Select,
    Unary,
    Var,
    const_value,
    wrap,
)
from sterna.ir.loop import Alloc, For, ForKind, Let, Seq, Stmt, Store, seq
from sterna.ir.rewrite import children, free_vars, rewrite, substitute, visit
from sterna.ir.simplify import simplify, simplify_stmt

MOST = 256  # stores of a loop that is to be unrolled
FEW = 32  # stores and functions of another: long kernels take long to compile
_FUNCTIONS = frozenset({"exp", "log", "tanh", "sin", "cos"})  # as long as many operations


def write_out(stmt: Stmt) -> Stmt:
    """The program with registers by number, and common values named."""
    registers = frozenset(n.buffer for n in visit(stmt) if isinstance(n, Alloc))
    flat = simplify_stmt(rewrite(stmt, stmt_rule=lambda s: _unrolled(s, registers)))
    flat = hoisted(by_masks(flat))
    stored = frozenset(n.buffer for n in visit(flat) if isinstance(n, Store)) | registers
    return rewrite(flat, stmt_rule=lambda s: _shared(s, registers, stored))


def unrolled(stmt: Stmt) -> Stmt:
    """The program with those loops written out alone that are to be unrolled."""
    return simplify_stmt(rewrite(stmt, stmt_rule=lambda s: _unrolled(s, frozenset())))


def _unrolled(stmt: Stmt, registers: frozenset[Buffer]) -> Stmt:
    if not isinstance(stmt, For) or stmt.kind in (ForKind.PARALLEL, ForKind.THREAD):
        return stmt
    turns = const_value(simplify(stmt.extent))
    below = list(visit(stmt.body))
    size = sum(isinstance(n, Store) or _is_function(n) for n in below)
    most = MOST if stmt.kind is ForKind.UNROLL else FEW
    loops = any(isinstance(n, For) and n.kind is not ForKind.VECTOR for n in below)
    if turns is None or turns * size > most or loops:
        return stmt
    numbers = any(
        isinstance(n, Load | Store) and n.buffer in registers and stmt.var in _vars(n.index)
        for n in below
    )
    if stmt.kind is not ForKind.UNROLL and not numbers:
        return stmt
    return seq(*(substitute(stmt.body, {stmt.var: wrap(i)}) for i in range(int(turns))))


def _is_function(node: Expr | Stmt) -> bool:
    return isinstance(node, Unary) and node.op in _FUNCTIONS


def _vars(exprs: Sequence[Expr]) -> set[Var]:
    return {v for e in exprs for v in free_vars(e)}


def _shared(stmt: Stmt, registers: frozenset[Buffer], stored: frozenset[Buffer]) -> Stmt:
    """Runs of neighbouring stores, folded, with their common values named."""
    if not isinstance(stmt, Seq):
        return stmt
    result: list[Stmt] = []
    run: list[Store] = []
    for part in (*stmt.stmts, None):
        if isinstance(part, Store):
            run.append(part)
            continue
        if run:
            sums = CodeSums()
            result.append(_named([sums.store(s) for s in folded(run, registers)], stored))
        run = []
        if part is not None:
            result.append(part)
    return seq(*result)


def _named(run: list[Store], stored: frozenset[Buffer]) -> Stmt:
    values = _Values(stored)
    for store in run:
        for expr in (*store.index, store.value):
            values.use(expr)
    placed: list[tuple[list[tuple[Var, Expr]], Store]] = []
    for store in run:
        values.fresh = []
        index = tuple(map(values.renamed, store.index))
        new = Store(store.buffer, index, values.renamed(store.value))
        placed.append((values.fresh, new))
    rest: list[Stmt] = []
    for fresh, store in reversed(placed):
        rest.insert(0, store)
        for var, value in reversed(fresh):
            rest = [Let(var, value, seq(*rest))]
    return seq(*rest)


@dataclass(slots=True)
class _Values:
    """Expressions of a run of stores, how often each is used, and their names, by identity."""

    stored: frozenset[Buffer]
    fresh: list[tuple[Var, Expr]] = field(default_factory=list)  # named since it was emptied
    uses: dict[int, int] = field(default_factory=dict)
    done: dict[int, Expr] = field(default_factory=dict)

    def use(self, e: Expr) -> None:
        self.uses[id(e)] = self.uses.get(id(e), 0) + 1
        if self.uses[id(e)] == 1:
            for operand in _operands(e):
                self.use(operand)

    def lasting(self, e: Expr) -> bool:
        """Whether it reads memory or decides something, and reads none that the program writes."""
        read = {n.buffer for n in visit(e) if isinstance(n, Load)}
        return (bool(read) or isinstance(e, Select)) and not read & self.stored

    def renamed(self, e: Expr) -> Expr:
        found = self.done.get(id(e))
        if found is not None:
            return found
        new = _with_operands(e, tuple(map(self.renamed, _operands(e))))
        if self.uses[id(e)] > 1 and self.lasting(e):
            var = Var("value", e.dtype)
            self.fresh.append((var, new))
            new = var
        self.done[id(e)] = new
        return new


def _operands(e: Expr) -> tuple[Expr, ...]:
    return tuple(child for child in children(e) if isinstance(child, Expr))


def _with_operands(e: Expr, new: tuple[Expr, ...]) -> Expr:
    """The same operation on others."""
    if all(a is b for a, b in zip(_operands(e), new, strict=True)):
        return e
    match e:
        case Load(buffer=buffer):
            return Load(buffer, new)
        case Intrin(name=name):
            return Intrin(name, new)
        case Binary(op=op):
            return Binary(op, *new)
        case Unary(op=op):
            return Unary(op, *new)
        case Cast(dtype=dtype):
            return Cast(dtype, *new)
        case Select():
            return Select(*new)
    raise TypeError(f"{type(e).__name__} has no operands")
