"""The only walker: rewriting, substitution and visiting of expressions and statements.

`rewrite` is post-order and memoised on identity; it returns the same object when nothing below
changed, so sharing survives and an untouched program costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar, overload

from sterna.ir.expr import Binary, Buffer, Cast, Const, Expr, Intrin, Load, Select, Unary, Var
from sterna.ir.loop import Alloc, For, If, Let, Prefetch, Seq, Stmt, Store, Sync, seq

Node = Expr | Stmt
N = TypeVar("N", Expr, Stmt)
ExprRule = Callable[[Expr], Expr]
StmtRule = Callable[[Stmt], Stmt]


def _same_expr(expr: Expr) -> Expr:
    return expr


def _same_stmt(stmt: Stmt) -> Stmt:
    return stmt


class Rewriter:
    """One traversal: rules applied after the children."""

    def __init__(self, expr_rule: ExprRule, stmt_rule: StmtRule) -> None:
        self.expr_rule = expr_rule
        self.stmt_rule = stmt_rule
        self.memo: dict[int, tuple[Node, Node]] = {}  # keeps keys alive, so ids stay unique

    def expr(self, old: Expr) -> Expr:
        found = self.memo.get(id(old))
        if found is not None:
            return found[1]  # type: ignore[return-value]
        new = self.expr_rule(self._children(old))
        self.memo[id(old)] = (old, new)
        return new

    def _exprs(self, old: tuple[Expr, ...]) -> tuple[Expr, ...]:
        new = tuple(map(self.expr, old))
        return old if all(a is b for a, b in zip(old, new, strict=True)) else new

    def _children(self, old: Expr) -> Expr:
        kind = type(old)
        if kind is Var or kind is Const:
            return old
        if isinstance(old, Binary):
            a, b = self.expr(old.a), self.expr(old.b)
            return old if a is old.a and b is old.b else Binary(old.op, a, b)
        if isinstance(old, Load):
            index = self._exprs(old.index)
            return old if index is old.index else Load(old.buffer, index)
        if isinstance(old, Cast):
            a = self.expr(old.a)
            return old if a is old.a else Cast(old.dtype, a)
        if isinstance(old, Unary):
            a = self.expr(old.a)
            return old if a is old.a else Unary(old.op, a)
        if isinstance(old, Select):
            c, a, b = self.expr(old.cond), self.expr(old.a), self.expr(old.b)
            return old if c is old.cond and a is old.a and b is old.b else Select(c, a, b)
        if isinstance(old, Intrin):
            args = self._exprs(old.args)
            return old if args is old.args else Intrin(old.name, args)
        raise TypeError(f"{kind.__name__} is not an expression")

    def stmt(self, old: Stmt) -> Stmt:
        return self.stmt_rule(self._stmt_children(old))

    def _stmt_children(self, old: Stmt) -> Stmt:
        if isinstance(old, For):
            extent, body = self.expr(old.extent), self.stmt(old.body)
            same = extent is old.extent and body is old.body
            return old if same else For(old.var, extent, body, old.kind)
        if isinstance(old, Store):
            index, value = self._exprs(old.index), self.expr(old.value)
            same = index is old.index and value is old.value
            return old if same else Store(old.buffer, index, value)
        if isinstance(old, Seq):
            stmts = tuple(map(self.stmt, old.stmts))
            return (
                old if all(a is b for a, b in zip(old.stmts, stmts, strict=True)) else seq(*stmts)
            )
        if isinstance(old, Let):
            value, body = self.expr(old.value), self.stmt(old.body)
            return old if value is old.value and body is old.body else Let(old.var, value, body)
        if isinstance(old, Alloc):
            body = self.stmt(old.body)
            return old if body is old.body else Alloc(old.buffer, body)
        if isinstance(old, If):
            cond, then = self.expr(old.cond), self.stmt(old.then)
            orelse = self.stmt(old.orelse) if old.orelse is not None else None
            same = cond is old.cond and then is old.then and orelse is old.orelse
            return old if same else If(cond, then, orelse)
        if isinstance(old, Prefetch):
            place = self.expr(old.place)
            if not isinstance(place, Load):  # what stood in memory is computed now
                return Seq(())
            return old if place is old.place else Prefetch(place)
        if isinstance(old, Sync):
            return old
        raise TypeError(f"{type(old).__name__} is not a statement")


@overload
def rewrite(node: Expr, expr_rule: ExprRule = ..., stmt_rule: StmtRule = ...) -> Expr: ...
@overload
def rewrite(node: Stmt, expr_rule: ExprRule = ..., stmt_rule: StmtRule = ...) -> Stmt: ...
def rewrite(node: Node, expr_rule: ExprRule = _same_expr, stmt_rule: StmtRule = _same_stmt) -> Node:
    """Apply the rules bottom-up to every expression and statement below (and including) node."""
    walker = Rewriter(expr_rule, stmt_rule)
    return walker.expr(node) if isinstance(node, Expr) else walker.stmt(node)


@overload
def substitute(node: Expr, values: Mapping[Var, Expr]) -> Expr: ...
@overload
def substitute(node: Stmt, values: Mapping[Var, Expr]) -> Stmt: ...
def substitute(node: Node, values: Mapping[Var, Expr]) -> Node:
    """Replace variables (by identity)."""

    def rule(expr: Expr) -> Expr:
        return values.get(expr, expr) if isinstance(expr, Var) else expr

    if not values:
        return node
    walker = Rewriter(rule, _same_stmt)
    return walker.expr(node) if isinstance(node, Expr) else walker.stmt(node)


def replace_loads(node: N, replacement: Callable[[Load], Expr | None]) -> N:
    """Replace loads for which `replacement` returns an expression: how fusion inlines."""

    def rule(expr: Expr) -> Expr:
        if not isinstance(expr, Load):
            return expr
        new = replacement(expr)
        return expr if new is None else new

    return rewrite(node, rule)


def rename_buffers(node: N, buffers: Mapping[Buffer, Buffer]) -> N:
    """Replace buffers in loads, stores and allocations."""

    def on_expr(expr: Expr) -> Expr:
        if isinstance(expr, Load) and expr.buffer in buffers:
            return Load(buffers[expr.buffer], expr.index)
        return expr

    def on_stmt(stmt: Stmt) -> Stmt:
        if isinstance(stmt, Store) and stmt.buffer in buffers:
            return Store(buffers[stmt.buffer], stmt.index, stmt.value)
        if isinstance(stmt, Alloc) and stmt.buffer in buffers:
            return Alloc(buffers[stmt.buffer], stmt.body)
        return stmt

    return rewrite(node, on_expr, on_stmt)


def visit(node: Node) -> Iterator[Node]:
    """Every node below, parents before children, shared expressions once for each use."""
    stack: list[Node] = [node]
    while stack:
        here = stack.pop()
        yield here
        stack.extend(reversed(children(here)))


def children(node: Node) -> tuple[Node, ...]:
    """Direct sub-expressions and sub-statements, in order."""
    if isinstance(node, Binary):
        return (node.a, node.b)
    if isinstance(node, Load):
        return node.index
    if isinstance(node, Cast | Unary):
        return (node.a,)
    if isinstance(node, Select):
        return (node.cond, node.a, node.b)
    if isinstance(node, Intrin):
        return node.args
    if isinstance(node, For):
        return (node.extent, node.body)
    if isinstance(node, Store):
        return (*node.index, node.value)
    if isinstance(node, Seq):
        return node.stmts
    if isinstance(node, Let):
        return (node.value, node.body)
    if isinstance(node, Alloc):
        return (node.body,)
    if isinstance(node, Prefetch):
        return (node.place,)
    if isinstance(node, If):
        return (
            (node.cond, node.then) if node.orelse is None else (node.cond, node.then, node.orelse)
        )
    return ()


def loads(node: Node) -> Iterator[Load]:
    """Every Load below."""
    return (n for n in visit(node) if isinstance(n, Load))


def free_vars(node: Node) -> set[Var]:
    """Variables read below that are not bound there."""
    bound = {n.var for n in visit(node) if isinstance(n, For | Let)}
    return {n for n in visit(node) if isinstance(n, Var)} - bound
