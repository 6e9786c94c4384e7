"""Operands of a matrix unit that takes them in octets: where an element of a shared array lies.

In: a buffer [rows, k] as the loops know it. Out: its shape and indices in memory, [octet of k, row,
k in the octet], so that eight rows of an octet are 128 bytes together: the "core matrix" that the
PTX ISA describes for wgmma. A row more than there are keeps the octets of one row in other banks.
"""

from __future__ import annotations

from sterna.base.errors import CodegenError
from sterna.ir.expr import Buffer, Expr, const_value, wrap

OCTET = 8


def octet_shape(buffer: Buffer) -> tuple[Expr, ...]:
    """The shape in memory; CodegenError where rows of the buffer are no octets."""
    deep = const_value(buffer.shape[-1])
    if len(buffer.shape) != 2 or deep is None or deep % OCTET:
        raise CodegenError(f"{buffer.name} has rows that are not made of {OCTET} elements")
    return wrap(int(deep) // OCTET), octet_column(buffer), wrap(OCTET)


def octet_column(buffer: Buffer) -> Expr:
    """Octets from one of a row to its next."""
    return buffer.shape[0] + 1


def in_octets(index: tuple[Expr, ...]) -> tuple[Expr, ...]:
    """The place in memory of an element."""
    row, k = index
    return k // OCTET, row, k % OCTET
