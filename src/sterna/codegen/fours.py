"""Languages in which a buffer's elements have one type: numbers, or vectors of four.

In: a kernel's body. Out: the buffers that are arrays of vectors, which are those that are read by
fours and touched in no other way, and the text of a copy that reads one. A copy out of another
buffer is a loop. Knows no language.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sterna.base.dtype import I32
from sterna.base.errors import CodegenError
from sterna.codegen.cstyle import CStyle
from sterna.codegen.vectors import Copy, in_vectors
from sterna.ir.expr import Buffer, Expr
from sterna.ir.linear import Sum
from sterna.ir.loop import For

FOUR = 4


@dataclass(slots=True)
class FoursStyle(CStyle):
    """Renders one phase; VECTORS are of four."""

    fours: frozenset[Buffer] = field(init=False)

    def __post_init__(self) -> None:
        self.fours = in_vectors(self.kernel.body, self.VECTORS, self.simplifier)

    def four(self, buffer: Buffer, at: str) -> tuple[str, ...]:
        """The elements of the vector with this number, once it is read."""
        raise NotImplementedError

    def keep(self, own: Buffer, index: tuple[Expr, ...], text: str) -> None:
        """Store a value that is written already, in registers."""
        raise NotImplementedError

    def copy(self, loop: For) -> Copy | None:
        found = CStyle.copy(self, loop)
        return found if found is not None and found.source in self.fours else None

    def copied(self, copy: Copy) -> None:
        *rows, column = copy.here
        for i, text in enumerate(self.four(copy.source, self.vector(copy.first))):
            self.keep(copy.own, (*rows, column + i), text)

    def vector(self, element: Sum) -> str:
        """The number of the vector that an element is in."""
        return self.text(self.simplifier.build(element.split(FOUR)[0], I32))

    def part_vectors(self, buffer: Buffer, size: int) -> int:
        """How many vectors a part of `size` bytes has, which none may lie across."""
        many, rest = divmod(size, FOUR * buffer.dtype.bytes)
        if rest:
            raise CodegenError(f"parts of {size} bytes would cut vectors of {buffer.name}")
        return many
