"""Shorthand for writing loop programs: loops and lets whose variable goes to a function."""

from __future__ import annotations

from collections.abc import Callable

from sterna.base.dtype import I32
from sterna.ir.expr import Expr, ExprLike, Var, const_value, wrap
from sterna.ir.loop import For, ForKind, Let, Stmt


def loop(
    name: str,
    extent: ExprLike,
    body: Callable[[Var], Stmt],
    kind: ForKind = ForKind.SERIAL,
) -> For:
    """for name in 0..extent: body(name)."""
    size = wrap(extent)
    known = const_value(size)
    var = Var(name, I32, 0, None if known is None else int(known) - 1)
    return For(var, size, body(var), kind)


def unroll(name: str, extent: int, body: Callable[[Var], Stmt]) -> For:
    return loop(name, extent, body, ForKind.UNROLL)


def vector(name: str, lanes: int, body: Callable[[Var], Stmt]) -> For:
    return loop(name, lanes, body, ForKind.VECTOR)


def threads(name: str, extent: int, body: Callable[[Var], Stmt]) -> For:
    return loop(name, extent, body, ForKind.THREAD)


def parallel(name: str, extent: ExprLike, body: Callable[[Var], Stmt]) -> For:
    return loop(name, extent, body, ForKind.PARALLEL)


def let(name: str, value: Expr, body: Callable[[Var], Stmt], *, lo: int | None = None) -> Let:
    """name = value; body(name). `lo` is a lower bound the caller vouches for."""
    var = Var(name, value.dtype, lo)
    return Let(var, value, body(var))
