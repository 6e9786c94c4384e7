"""What four threads side by side read alike: each reads one of four elements and hands it on.

In: a kernel without group level, a thread for each item, and buffers that are read by fours. Out:
those of them that all four threads of a quad read at the same places, while all four are there: a
quad begins at a multiple of four, so a test that leaves out items from such a multiple on takes
whole quads. What threads count, or decide, by their own numbers or by what they keep may differ.
Knows no language.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field

from sterna.codegen.simt import GroupKernel
from sterna.ir.expr import Binary, Buffer, Expr, Load, Var, const_value
from sterna.ir.loop import For, ForKind, If, Let, Stmt
from sterna.ir.rewrite import children, free_vars, loads
from sterna.ir.simplify import Simplifier

QUAD = 4


def read_alike(
    kernel: GroupKernel, buffers: Set[Buffer], simplifier: Simplifier
) -> frozenset[Buffer]:
    """The buffers whose every load is one that a quad's threads do together, at one place."""
    if kernel.threads % QUAD:
        return frozenset()
    walk = _Walk(simplifier, set(buffers))
    walk.node(kernel.body, whole=True)
    return frozenset(walk.alike)


@dataclass(slots=True)
class _Walk:
    simplifier: Simplifier
    alike: set[Buffer]
    own: set[Var] = field(default_factory=set)  # that differ within a quad
    numbers: set[Var] = field(default_factory=set)  # of them, thread numbers but for whole quads

    def node(self, node: Expr | Stmt, *, whole: bool) -> None:
        """Look at a node's loads; `whole`: all of a quad come here."""
        match node:
            case Load(buffer=buffer):
                if not whole or self.differs(*node.index):
                    self.alike.discard(buffer)
            case For(kind=ForKind.THREAD):
                self.own.add(node.var)
                self.numbers.add(node.var)
                whole = whole and _in_line(node)
            case For() if self.differs(node.extent):
                whole = False
            case Let() if self.differs(node.value):
                self.own.add(node.var)
                if self.numbered(node.value):
                    self.numbers.add(node.var)
            case If() if self.differs(node.cond) and not self.quads(node.cond):
                whole = False
            case Binary(op="and" | "or") if self.differs(node.a):
                whole = False
        for child in children(node):
            self.node(child, whole=whole)

    def differs(self, *exprs: Expr) -> bool:
        return any(
            not self.own.isdisjoint(free_vars(e))
            or any(load.buffer.scope != "global" for load in loads(e))
            for e in exprs
        )

    def numbered(self, e: Expr) -> bool:
        """Whether a quad's threads have this number and the next three, from a multiple of four."""
        sum_ = self.simplifier.sum(self.simplifier.expr(e))
        rest = dict(sum_.terms)
        mine = [rest.pop(atom) for atom in sum_.terms if atom in self.numbers]
        steps = [*rest.values(), sum_.constant]
        return mine == [1] and not self.differs(*rest) and not any(s % QUAD for s in steps)

    def quads(self, cond: Expr) -> bool:
        """Whether a test has one answer for all of a quad."""
        if not isinstance(cond, Binary) or cond.op != "<":
            return False
        end = const_value(cond.b)
        return end is not None and int(end) % QUAD == 0 and self.numbered(cond.a)


def _in_line(threads: For) -> bool:
    """Whether a loop's threads are numbered one after another, in whole quads."""
    many = const_value(threads.extent)
    nested = isinstance(threads.body, For) and threads.body.kind is ForKind.THREAD
    return many is not None and int(many) % QUAD == 0 and not nested
