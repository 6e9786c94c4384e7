"""SPIR-V in which a matrix unit multiplies: cooperative matrices of a subgroup.

How the elements of such a matrix lie in the threads is the driver's own. So a unit's tiles of c are
variables that are cleared, multiplied into, and stored as a whole to memory that the group shares;
a and b are read from there, where they lie as real f16. A kernel that does anything else with an
element is refused. Threads are numbered by their subgroup, wherever the driver puts them.

Source: SPV_KHR_cooperative_matrix, and the Vulkan memory model, which it wants.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

from sterna.base.errors import CodegenError
from sterna.base.target import MatrixUnit
from sterna.codegen.fragments import (
    Fragments,
    Whole,
    fragments,
    has_matrix,
    is_move,
    operands,
    sums,
    whole,
)
from sterna.codegen.simt import private_shape
from sterna.codegen.sizes import size_of
from sterna.codegen.spirv_kernels import Spirv
from sterna.ir.bounds import Intervals
from sterna.ir.expr import Buffer, Cast, Const, Expr, Load, const_value
from sterna.ir.loop import Alloc, For

_SUBGROUP = 3
_A, _B, _C = 0, 1, 2  # uses of a matrix
_BY_ROWS, _BY_COLUMNS = 0, 1
_EXACT = 1 << 11  # whole numbers up to here are exact in f16
_SHARED = "NonPrivatePointer"  # an access that barriers order


@dataclass(slots=True)
class MatrixSpirv(Spirv):
    """Kernels with MATRIX loops, for targets with an opaque unit."""

    ACCESS: ClassVar[tuple[str, ...]] = (_SHARED,)
    MEETING: ClassVar[int] = Spirv.MEETING | 0x2000 | 0x4000  # and makes available, visible

    operands: frozenset[Buffer] = frozenset()
    sums: frozenset[Buffer] = frozenset()

    def __post_init__(self) -> None:
        Spirv.__post_init__(self)
        self.module.memory = "Vulkan"
        self.module.require("VulkanMemoryModel")
        if self.unit is not None and not self.unit.opaque:
            raise CodegenError("SPIR-V tells of no matrix unit where its elements lie")
        self.operands, self.sums = operands(self.kernel.body), sums(self.kernel.body)

    # Threads.

    def thread_index(self) -> str:
        m = self.module
        if self.unit is None or not has_matrix(self.kernel.body):
            return Spirv.thread_index(self)
        m.require("GroupNonUniform")
        group, lane = (
            m.op("OpLoad", "u32", m.builtin(title, "u32", m.type("u32")))
            for title in ("SubgroupId", "SubgroupLocalInvocationId")
        )
        first = m.op("OpIMul", "u32", group, m.number("u32", self.unit.lanes))
        return m.op("OpBitcast", "i32", m.op("OpIAdd", "u32", first, lane))

    # Memory.

    def shared_bytes(self, buffer: Buffer) -> int:
        return 2 if buffer in self.operands else 4

    def element_type(self, buffer: Buffer) -> str:
        return "f16" if buffer in self.operands else Spirv.element_type(self, buffer)

    def alloc(self, stmt: Alloc, last: bool) -> None:
        buffer, unit = stmt.buffer, self.unit
        if buffer not in self.sums or unit is None:
            Spirv.alloc(self, stmt, last)
            return
        m = self.module
        sizes = tuple(size_of(d, buffer.name) for d in buffer.shape)
        tiles = prod(private_shape(sizes, self.kernel.private[buffer].shares)) // unit.kept
        kind = self.matrix(unit, _C)
        array = m.once(f"sums_x{tiles}", f"OpTypeArray {kind} {m.number('u32', tiles)}")
        name = self.buffers[buffer] = self.identifier(buffer.name)
        pointer = m.pointer("Function", f"sums_x{tiles}", array)
        self.arrays.append(f"{name} = OpVariable {pointer} Function")
        self.statement(stmt.body, last=last)

    def load(self, e: Load) -> str:
        if e.buffer in self.operands or e.buffer in self.sums:
            raise CodegenError(f"an element of {e.buffer.name} is read, which a matrix unit holds")
        return Spirv.load(self, e)

    def store(self, buffer: Buffer, index: tuple[Expr, ...], value: Expr) -> None:
        if buffer in self.sums:
            raise CodegenError(f"an element of {buffer.name} is set, which a matrix unit holds")
        if buffer not in self.operands:
            Spirv.store(self, buffer, index, value)
            return
        text = self.half(value)
        place = self.pointer(buffer, "f16", self.offset(buffer, index))
        self.line(f"OpStore {place} {text} {_SHARED}")

    def half(self, value: Expr) -> str:
        """A number of 16 bits as an f16, not as its bits."""
        m = self.module
        if isinstance(value, Cast) and isinstance(value.a, Cast) and self.exact(value.a.a):
            whole = value.a.a
            signed = self.TYPES[whole.dtype] == "i32"
            return m.op("OpConvertSToF" if signed else "OpConvertUToF", "f16", self.text(whole))
        pair = m.op("OpBitcast", "f16_v2", self.text(value))
        return m.op("OpCompositeExtract", "f16", pair, 0)

    def exact(self, number: Expr) -> bool:
        """Whether it is a whole number that f16 has."""
        if not number.dtype.is_int:
            return False
        lo, hi = Intervals(self.ranges)(number)
        return lo >= -_EXACT and hi <= _EXACT

    # The unit.

    def matrix(self, unit: MatrixUnit, use: int) -> str:
        """The type of a, b or c."""
        m = self.module
        m.require("CooperativeMatrixKHR")
        m.extend("SPV_KHR_cooperative_matrix")
        rows = unit.depth if use == _B else unit.rows
        columns = unit.depth if use == _A else unit.columns
        shape = [m.number("u32", n) for n in (_SUBGROUP, rows, columns, use)]
        kind = m.type("f32" if use == _C else "f16")
        definition = " ".join(["OpTypeCooperativeMatrixKHR", kind, *shape])
        return m.once(f"matrix_{'abc'[use]}", definition)

    def together(self, loop: For) -> None:
        unit = self.working_unit()
        if is_move(loop):
            self.move(whole(loop, self.nest, unit, self.simplifier), unit)
        else:
            self.product(fragments(loop, self.nest, unit, self.simplifier), unit)

    def product(self, found: Fragments, unit: MatrixUnit) -> None:
        a = self.loaded(found.a, unit, _A, _BY_ROWS)
        b = self.loaded(found.b, unit, _B, _BY_COLUMNS)
        place, kind = self.tile(found.c, found.kept, unit), self.matrix(unit, _C)
        before, after = self.module.fresh(), self.module.fresh()
        self.line(f"{before} = OpLoad {kind} {place}")
        self.line(f"{after} = OpCooperativeMatrixMulAddKHR {kind} {a} {b} {before}")
        self.line(f"OpStore {place} {after}")

    def loaded(self, first: Load, unit: MatrixUnit, use: int, layout: int) -> str:
        found, kind, place = self.module.fresh(), self.matrix(unit, use), self.corner(first, "f16")
        lies = self.lies(first.buffer, layout)
        self.line(f"{found} = OpCooperativeMatrixLoadKHR {kind} {place} {lies} {_SHARED}")
        return found

    def move(self, found: Whole, unit: MatrixUnit) -> None:
        m, kind = self.module, self.matrix(unit, _C)
        place = self.tile(found.c, found.kept, unit)
        if isinstance(found.to, Const):
            zero = m.once("no_sums", f"OpConstantComposite {kind} {m.number('f32', 0.0)}")
            self.line(f"OpStore {place} {zero}")
            return
        made, to = m.fresh(), self.corner(found.to, "f32")
        self.line(f"{made} = OpLoad {kind} {place}")
        lies = self.lies(found.to.buffer, _BY_ROWS)
        self.line(f"OpCooperativeMatrixStoreKHR {to} {made} {lies} {_SHARED}")

    def corner(self, first: Load, kind: str) -> str:
        return self.pointer(first.buffer, kind, self.offset(first.buffer, first.index))

    def lies(self, buffer: Buffer, layout: int) -> str:
        """By rows or columns, and how far they are apart."""
        apart = size_of(buffer.shape[-1], buffer.name)
        return f"{self.module.number('u32', layout)} {self.module.number('u32', apart)}"

    def tile(self, c: Buffer, kept: tuple[tuple[Expr, ...], ...], unit: MatrixUnit) -> str:
        """Where the variable is whose elements the loop program has at `kept`."""
        if c not in self.sums:
            raise CodegenError(f"{c.name} has no sums of products by a matrix unit")
        simple = self.simplifier.expr
        first, *others = (self.flat(c, index) for index in kept)
        inside = [simple(first % unit.kept), *(simple(e - first) for e in others)]
        if [const_value(e) for e in inside] != list(range(unit.kept)):
            raise CodegenError(f"tiles of {c.name} do not lie one behind the other")
        m, place = self.module, self.module.fresh()
        pointer = m.pointer("Function", "matrix_c", self.matrix(unit, _C))
        number = self.text(simple(first // unit.kept))
        self.line(f"{place} = OpAccessChain {pointer} {self.buffers[c]} {number}")
        return place
