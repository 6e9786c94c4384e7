"""Statements that constants have decided: loops without turns or with one, branches never taken.

In: one statement whose parts are simplified. Out: what is left of it, an empty Seq if nothing.
The variable of a loop of one turn must have been replaced by 0 already; see `simplify_stmt`.
"""

from sterna.ir.expr import Const
from sterna.ir.loop import Alloc, For, If, Let, Seq, Stmt


def simplify_structure(stmt: Stmt) -> Stmt:
    """The statement without what can never run; itself if all of it can."""
    if isinstance(stmt, For) and isinstance(stmt.extent, Const):
        if stmt.extent.value == 1:
            return stmt.body
        if stmt.extent.value <= 0:
            return Seq(())
    if isinstance(stmt, If):
        return _decided(stmt)
    if isinstance(stmt, For | Let | Alloc) and _is_empty(stmt.body):
        return Seq(())
    if isinstance(stmt, Seq) and any(map(_is_empty, stmt.stmts)):
        kept = tuple(part for part in stmt.stmts if not _is_empty(part))
        return kept[0] if len(kept) == 1 else Seq(kept)
    return stmt


def _decided(stmt: If) -> Stmt:
    if isinstance(stmt.cond, Const):
        return stmt.then if stmt.cond.value else stmt.orelse or Seq(())
    orelse = None if stmt.orelse is None or _is_empty(stmt.orelse) else stmt.orelse
    if _is_empty(stmt.then) and orelse is None:
        return Seq(())
    return stmt if orelse is stmt.orelse else If(stmt.cond, stmt.then, orelse)


def _is_empty(stmt: Stmt) -> bool:
    return isinstance(stmt, Seq) and not stmt.stmts
