"""Sizes of buffers, where kernels need to know them at compile time."""

from __future__ import annotations

from sterna.base.errors import CodegenError
from sterna.ir.expr import Expr, const_value
from sterna.ir.simplify import simplify


def size_of(e: Expr, title: str) -> int:
    """A dim of the buffer `title`; CodegenError where it is not known."""
    value = const_value(simplify(e))
    if value is None:
        raise CodegenError(f"a dim of {title} must have a size known at compile time")
    return int(value)


def elements(shape: tuple[Expr, ...], title: str) -> int:
    """How many a buffer has; CodegenError where that is not known at compile time."""
    size = 1
    for d in shape:
        size *= size_of(d, title)
    return size
