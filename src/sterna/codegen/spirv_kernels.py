"""Kernels as SPIR-V: a module for each launch, written here without any compiler.

What work groups have in common comes from `cstyle`, whose texts of values are names of results
here: whoever asks for the text of an expression gets its instructions written and the name of the
last one. Buffers are bindings of set 0 in the order of the launch, dims are push constants.

Numbers of less than 32 bits are widened where they are read: the device needs to store them, not
to compute with them. Where it cannot store them either, a buffer is an array of words whose parts
are cut out. A buffer that is read by fours alone is an array of vectors. Fma rounds once or twice
as the device likes, so results are close to other targets' and not promised to be the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite, isnan
from typing import ClassVar

import numpy as np

from sterna.base.dtype import BF16, BOOL, F16, F32, I8, I16, I32, U8, U16, U32, DType
from sterna.base.errors import CodegenError
from sterna.codegen.cstyle import TID, Signature
from sterna.codegen.fours import FOUR, FoursStyle
from sterna.codegen.sizes import elements
from sterna.codegen.spirv_math import call, narrowed, widened
from sterna.codegen.spirv_module import Module, bytes_of
from sterna.codegen.vectors import Kinds
from sterna.ir.expr import Binary, Buffer, Const, Expr, Load
from sterna.ir.loop import ForKind
from sterna.ir.rewrite import visit

MODULE = "; module "  # begins the line before each launch's module, with its symbol
_HALF = (F16, BF16)
_IN_MEMORY = {F16: "u16", BF16: "u16", U16: "u16", I16: "i16", U8: "u8", I8: "i8", BOOL: "u8"}
_ARITHMETIC = {"+": "Add", "-": "Sub", "*": "Mul"}
_BITWISE = {"&": "OpBitwiseAnd", "|": "OpBitwiseOr", "^": "OpBitwiseXor",
            "<<": "OpShiftLeftLogical", "and": "OpLogicalAnd", "or": "OpLogicalOr"}  # fmt: skip
_DIVISIONS = {"i32": ("OpSDiv", "OpSRem"), "u32": ("OpUDiv", "OpUMod")}
_ORDER = {"<": "LessThan", "<=": "LessThanEqual"}
_EQUAL = {
    ("==", "float"): "OpFOrdEqual", ("!=", "float"): "OpFUnordNotEqual",
    ("==", "bool"): "OpLogicalEqual", ("!=", "bool"): "OpLogicalNotEqual",
    ("==", "int"): "OpIEqual", ("!=", "int"): "OpINotEqual",
}  # fmt: skip
_SUBGROUP = 3
_WORKGROUP = 2


@dataclass(slots=True)
class Spirv(FoursStyle):
    """SPIR-V 1.5 in the notation of its assembler."""

    TYPES: ClassVar[dict[DType, str]] = {
        F32: "f32", I32: "i32", I16: "i32", I8: "i32", BOOL: "bool",
        U32: "u32", U16: "u32", U8: "u32", F16: "u32", BF16: "u32",
    }  # fmt: skip
    VECTORS: ClassVar[Kinds] = frozenset((d, FOUR) for d in (U32, I32, F32, F16, BF16))
    WIDE: ClassVar[str] = ""
    WORDS: ClassVar[bool] = False  # memory has no numbers of less than 32 bits
    ACCESS: ClassVar[tuple[str, ...]] = ()  # said of each access to what threads share
    MEETING: ClassVar[int] = 0x148  # acquire and release, of buffers and of the group's memory

    module: Module = field(init=False)
    ends: list[tuple[str, ...]] = field(default_factory=list)  # what closes each open block
    split: dict[Buffer, tuple[Sequence[str], int]] = field(default_factory=dict)  # parts, bytes

    def __post_init__(self) -> None:
        FoursStyle.__post_init__(self)
        self.module = Module(self.unique)
        for title in ("void", "bool", "f32", "i32", "u32"):
            self.module.type(title)

    def shared_bytes(self, buffer: Buffer) -> int:
        return 4  # held as the values that they are computed with

    # The function.

    def function(self, s: Signature) -> str:
        m = self.module
        entry = self.identifier(s.symbol)
        void = m.type("void")
        for i, (buffer, title, writes) in enumerate(s.buffers):
            self.bind(s.symbol, i, buffer, title, writes)
        m.begin(entry, f"{void} None {m.once('kernel', f'OpTypeFunction {void}')}", [])
        self.push_constants(s.dims)
        self.constant(I32, self.declare(self.kernel.group), self.group_index())
        self.ranges[self.kernel.group] = (0, float("inf"))
        if self.kernel.threads > 1:
            self.constant(I32, self.declare(TID), self.thread_index())
        for buffer in self.kernel.shared:
            name = self.buffers[buffer] = self.identifier(buffer.name)
            kind, size = self.element_type(buffer), elements(buffer.shape, buffer.name)
            m.variable(name, "Workgroup", f"{kind}_x{size}", m.array(kind, size))
        self.statement(self.kernel.body, last=True)
        m.emit("OpReturn")
        m.variables += self.arrays
        m.close()
        return f"{MODULE}{s.symbol}\n{m.text(entry, s.symbol, s.threads)}"

    def bind(self, symbol: str, i: int, buffer: Buffer, title: str, writes: bool) -> None:
        """A buffer of the launch."""
        m, kind = self.module, self.element_type(buffer)
        words = self.WORDS and buffer.dtype in _IN_MEMORY
        if words and writes:
            raise CodegenError(
                f"kernel {symbol} stores {buffer.dtype}, and memory has no such numbers there; "
                "choose a scheme that computes in f32, such as q4f32_1"
            )
        kind = "u32" if words else kind
        kind = f"{kind}_v{FOUR}" if buffer in self.fours else kind
        array = m.once(f"{kind}_array", f"OpTypeRuntimeArray {m.type(kind)}")
        block = m.once(f"{kind}_buffer", f"OpTypeStruct {array}")
        m.decorate(array, f"ArrayStride {bytes_of(kind)}")
        m.decorate(block, "Block")
        m.decorate(block, "Offset 0", member=0)
        name = m.variable(title, "StorageBuffer", f"{kind}_buffer", block)
        m.decorate(name, "DescriptorSet 0")
        m.decorate(name, f"Binding {i}")
        loaded = any(isinstance(n, Load) and n.buffer is buffer for n in visit(self.kernel.body))
        if not writes:
            m.decorate(name, "NonWritable")
        elif loaded and not self.ACCESS:
            m.decorate(name, "Coherent")  # one thread may read what another has written

    def push_constants(self, dims: tuple[str, ...]) -> None:
        if not dims:
            return
        m, kind = self.module, self.module.type("i32")
        block = m.once("dims_block", f"OpTypeStruct {' '.join([kind] * len(dims))}")
        m.decorate(block, "Block")
        for i in range(len(dims)):
            m.decorate(block, f"Offset {4 * i}", member=i)
        held = m.variable(self.identifier("dims"), "PushConstant", "dims_block", block)
        pointer = m.pointer("PushConstant", "i32", kind)
        for i, title in enumerate(dims):
            at = m.fresh()
            m.emit(f"{at} = OpAccessChain {pointer} {held} {m.number('i32', i)}")
            m.emit(f"{title} = OpLoad {kind} {at}")

    def group_index(self) -> str:
        m = self.module
        held = m.builtin("WorkgroupId", "u32_v3", m.type("u32_v3"))
        whole = m.op("OpLoad", "u32_v3", held)
        return m.op("OpBitcast", "i32", m.op("OpCompositeExtract", "u32", whole, 0))

    def thread_index(self) -> str:
        m = self.module
        held = m.builtin("LocalInvocationIndex", "u32", m.type("u32"))
        return m.op("OpBitcast", "i32", m.op("OpLoad", "u32", held))

    def barrier(self) -> str:
        scope = self.module.number("u32", _WORKGROUP)
        return f"OpControlBarrier {scope} {scope} {self.module.number('u32', self.MEETING)}"

    def swapped(self, value: str, distance: int) -> str:
        m = self.module
        m.require("GroupNonUniform", "GroupNonUniformShuffle")
        scope, bit = m.number("u32", _SUBGROUP), m.number("u32", distance)
        return m.op("OpGroupNonUniformShuffleXor", "f32", scope, value, bit)

    def line(self, text: str) -> None:
        self.module.emit(text)

    def identifier(self, text: str) -> str:
        return "%" + self.unique.new(text)

    def constant(self, dtype: DType, title: str, value: str) -> None:
        self.line(f"{title} = OpCopyObject {self.module.type(self.TYPES[dtype])} {value}")

    def array(self, dtype: DType, title: str, size: int) -> str:
        kind = self.TYPES[dtype]
        whole = self.module.array(kind, size)
        pointer = self.module.pointer("Function", f"{kind}_x{size}", whole)
        return f"{title} = OpVariable {pointer} Function"

    # Blocks.

    def scope(self) -> None:
        self.ends.append(())

    def when(self, cond: str) -> None:
        then, other, merge = (self.module.fresh() for _ in range(3))
        self.line(f"OpSelectionMerge {merge} None")
        self.line(f"OpBranchConditional {cond} {then} {other}")
        self.line(f"{then} = OpLabel")
        goes_on = f"OpBranch {merge}"
        self.ends.append((goes_on, f"{other} = OpLabel", goes_on, f"{merge} = OpLabel"))

    def otherwise(self) -> None:
        *first, goes_on, merge = self.ends.pop()
        for text in first:
            self.line(text)
        self.ends.append((goes_on, merge))

    def count(self, var: str, end: str, kind: ForKind) -> None:
        m = self.module
        integer, zero, one = m.type("i32"), m.number("i32", 0), m.number("i32", 1)
        head, test, body, again, merge, more = (m.fresh() for _ in range(6))
        place = self.identifier(f"{var[1:]}_at")
        self.arrays.append(f"{place} = OpVariable {m.pointer('Function', 'i32', integer)} Function")
        control = "Unroll" if kind in (ForKind.UNROLL, ForKind.VECTOR) else "None"
        for text in (
            f"OpStore {place} {zero}",
            f"OpBranch {head}",
            f"{head} = OpLabel",
            f"OpLoopMerge {merge} {again} {control}",
            f"OpBranch {test}",
            f"{test} = OpLabel",
            f"{var} = OpLoad {integer} {place}",
        ):
            self.line(text)
        self.line(f"OpBranchConditional {m.op('OpSLessThan', 'bool', var, end)} {body} {merge}")
        self.line(f"{body} = OpLabel")
        self.ends.append(
            (
                f"OpBranch {again}",
                f"{again} = OpLabel",
                f"{more} = OpIAdd {integer} {var} {one}",
                f"OpStore {place} {more}",
                f"OpBranch {head}",
                f"{merge} = OpLabel",
            )
        )

    def end(self) -> None:
        for text in self.ends.pop():
            self.line(text)

    # Memory.

    def element_type(self, buffer: Buffer) -> str:
        """The type of a buffer's elements where they lie: as their values, but for arguments."""
        value = self.TYPES[buffer.dtype]
        return _IN_MEMORY.get(buffer.dtype, value) if self.is_argument(buffer) else value

    def access(self, buffer: Buffer) -> tuple[str, ...]:
        return () if buffer in self.kernel.private else self.ACCESS

    def is_argument(self, buffer: Buffer) -> bool:
        return buffer not in self.kernel.private and buffer not in self.kernel.shared

    def joined(self, buffer: Buffer, title: str, parts: Sequence[str], size: int) -> None:
        """Nothing is declared: each load chooses among the parts."""
        self.split[buffer] = parts, size

    def fetched(self, buffer: Buffer, kind: str, at: str) -> str:
        """The element `at` as it lies in memory; of an array of vectors, the vector.

        Of a buffer in parts, each is read, at its first element where `at` lies in another.
        """
        m = self.module
        if buffer not in self.split:
            return m.op("OpLoad", kind, self.pointer(buffer, kind, at), *self.access(buffer))
        parts, size = self.split[buffer]
        each = self.part_vectors(buffer, size) if buffer in self.fours else size // bytes_of(kind)
        zero, found = m.number("u32", 0), ""
        for i, part in enumerate(parts):
            away = m.op("OpISub", "i32", at, m.number("i32", i * each))
            near = m.op("OpBitcast", "u32", away)  # large before the part
            inside = m.op("OpULessThan", "bool", near, m.number("u32", each))
            near = m.op("OpSelect", "u32", inside, near, zero)
            place = self.pointer(buffer, kind, near, part)
            value = m.op("OpLoad", kind, place, *self.access(buffer))
            found = m.op("OpSelect", kind, inside, value, found) if found else value
        return found

    def pointer(self, buffer: Buffer, kind: str, at: str, part: str = "") -> str:
        """Where the element `at` of a buffer, or of a part of it, lies."""
        if buffer not in self.buffers:
            raise CodegenError(f"buffer {buffer.name} is used where it is not known")
        m, place = self.module, self.module.fresh()
        if self.is_argument(buffer):
            storage, path = "StorageBuffer", f"{m.number('i32', 0)} {at}"
        else:
            storage, path = ("Function" if buffer in self.kernel.private else "Workgroup"), at
        pointer = m.pointer(storage, kind, m.type(kind))
        self.line(f"{place} = OpAccessChain {pointer} {part or self.buffers[buffer]} {path}")
        return place

    def four(self, buffer: Buffer, at: str) -> tuple[str, ...]:
        m, kind, value = self.module, self.element_type(buffer), self.TYPES[buffer.dtype]
        found = self.fetched(buffer, f"{kind}_v{FOUR}", at)
        if kind != value:
            found = m.op("OpUConvert", f"{value}_v{FOUR}", found)
        return tuple(m.op("OpCompositeExtract", value, found, i) for i in range(FOUR))

    def keep(self, own: Buffer, index: tuple[Expr, ...], text: str) -> None:
        place = self.pointer(own, self.TYPES[own.dtype], self.offset(own, index))
        self.line(f"OpStore {place} {text}")

    def load(self, e: Load) -> str:
        m, at, kind = self.module, self.offset(e.buffer, e.index), self.element_type(e.buffer)
        value = self.TYPES[e.dtype]
        if kind == value:
            return self.fetched(e.buffer, kind, at)
        if self.WORDS:
            found = self.cut(e.buffer, at, kind)
        else:
            small = self.fetched(e.buffer, kind, at)
            name, to = ("OpSConvert", "i32") if kind.startswith("i") else ("OpUConvert", "u32")
            found = m.op(name, to, small)
        return self.converted(found, U32, BOOL) if value == "bool" else found

    def cut(self, buffer: Buffer, at: str, kind: str) -> str:
        """A number of 8 or 16 bits out of the word that it lies in."""
        m, bits, signed = self.module, int(kind[1:]), kind.startswith("i")
        many = 32 // bits
        shift, mask = m.number("i32", many.bit_length() - 1), m.number("i32", many - 1)
        where = m.op("OpShiftRightArithmetic", "i32", at, shift)
        word = self.fetched(buffer, "u32", where)
        first = m.op("OpBitwiseAnd", "i32", at, mask)
        first = m.op("OpIMul", "i32", first, m.number("i32", bits))
        size = m.number("i32", bits)
        if signed:
            word = m.op("OpBitcast", "i32", word)
        name, to = ("OpBitFieldSExtract", "i32") if signed else ("OpBitFieldUExtract", "u32")
        return m.op(name, to, word, first, size)

    def store(self, buffer: Buffer, index: tuple[Expr, ...], value: Expr) -> None:
        m, text = self.module, self.text(value)
        kind, held = self.element_type(buffer), self.TYPES[buffer.dtype]
        if kind != held:
            if held == "bool":
                text = self.converted(text, BOOL, U32)
            text = m.op("OpSConvert" if kind.startswith("i") else "OpUConvert", kind, text)
        place = self.pointer(buffer, kind, self.offset(buffer, index))
        self.line(" ".join(["OpStore", place, text, *self.access(buffer)]))

    # Expressions.

    def literal(self, c: Const) -> str:
        m, value = self.module, c.value
        if c.dtype in _HALF:
            return m.number("u32", int(np.asarray(value, c.dtype.numpy).view(np.uint16)))
        if c.dtype == F32 and not isfinite(value):
            bits = 0x7FC00000 if isnan(value) else 0x7F800000 if value > 0 else 0xFF800000
            return m.op("OpBitcast", "f32", m.number("u32", bits))
        if c.dtype not in self.TYPES:
            raise CodegenError(f"kernels for work groups have no {c.dtype}")
        return m.number(self.TYPES[c.dtype], value)

    def fma(self, a: str, b: str, c: str) -> str:
        return self.module.extended("Fma", a, b, c)

    def choice(self, dtype: DType, cond: str, a: str, b: str) -> str:
        return self.module.op("OpSelect", self.TYPES[dtype], cond, a, b)

    def binary(self, e: Binary) -> str:
        x, y, op, dtype = self.text(e.a), self.text(e.b), e.op, e.a.dtype
        if dtype in _HALF or dtype not in self.TYPES:
            raise CodegenError(f"{op!r} of {dtype}; convert first")
        if op in ("//", "%"):
            return self.division(e, x, y)
        if op in ("min", "max"):
            return self.least(op, x, y, dtype)
        if op in _ORDER or op in ("==", "!="):
            return self.module.op(_comparison(op, dtype), "bool", x, y)
        text = self.module.op(_operation(op, dtype), self.TYPES[dtype], x, y)
        return self.cast(dtype, text) if dtype.is_int and dtype.bits < 32 else text

    def least(self, op: str, x: str, y: str, dtype: DType) -> str:
        """min and max; a NaN on the left stays, as on other targets."""
        a, b = (x, y) if op == "min" else (y, x)
        first = self.module.op(_comparison("<", dtype), "bool", a, b)
        if dtype == F32:
            unknown = self.module.op("OpFUnordNotEqual", "bool", x, x)
            first = self.module.op("OpLogicalOr", "bool", first, unknown)
        return self.choice(dtype, first, x, y)

    def power_division(self, op: str, x: str, shift: int, mask: int, dtype: DType) -> str:
        kind = self.TYPES[dtype]
        if op == "%":
            return self.module.op("OpBitwiseAnd", kind, x, self.module.number(kind, mask))
        return self.module.op(_operation(">>", dtype), kind, x, self.module.number(kind, shift))

    def quotient(self, op: str, x: str, y: str, dtype: DType) -> str:
        division, rest = _DIVISIONS[self.TYPES[dtype]]
        return self.module.op(division if op == "//" else rest, self.TYPES[dtype], x, y)

    def floored(self, op: str, x: str, y: str) -> str:
        # By hand: what OpSRem and OpSMod give of negative numbers, Vulkan leaves open.
        m, zero = self.module, self.module.number("i32", 0)
        quotient = m.op("OpSDiv", "i32", x, y)
        rest = m.op("OpISub", "i32", x, m.op("OpIMul", "i32", quotient, y))
        other_sign = m.op("OpSLessThan", "bool", m.op("OpBitwiseXor", "i32", rest, y), zero)
        inexact = m.op("OpINotEqual", "bool", rest, zero)
        off = m.op("OpLogicalAnd", "bool", inexact, other_sign)
        change, amount = ("OpISub", m.number("i32", 1)) if op == "//" else ("OpIAdd", y)
        found = quotient if op == "//" else rest
        return m.op("OpSelect", "i32", off, m.op(change, "i32", found, amount), found)

    def unary(self, op: str, x: str, dtype: DType) -> str:
        m = self.module
        if op == "not":
            return m.op("OpLogicalNot", "bool", x)
        if dtype == F32:
            return call(m, op, x)
        if not dtype.is_int or op not in ("neg", "invert", "abs"):
            raise CodegenError(f"{op} of {dtype}; convert to f32 first")
        kind = self.TYPES[dtype]
        if op == "abs":
            if dtype.kind == "uint":
                return x
            below = m.op("OpSLessThan", "bool", x, m.number(kind, 0))
            return self.choice(dtype, below, m.op("OpSNegate", kind, x), x)
        return self.cast(dtype, m.op("OpNot" if op == "invert" else "OpSNegate", kind, x))

    def cast(self, dtype: DType, text: str) -> str:
        """A number in the type that it is computed with, cut to the bits of its own."""
        m, kind = self.module, self.TYPES[dtype]
        if dtype.bits == 32:
            return text
        if kind == "u32":
            return m.op("OpBitwiseAnd", kind, text, m.number(kind, (1 << dtype.bits) - 1))
        return m.op("OpBitFieldSExtract", kind, text, m.number(kind, 0), m.number(kind, dtype.bits))

    def converted(self, text: str, source: DType, to: DType) -> str:
        m = self.module
        if source == to:
            return text
        if source in _HALF and to == F32:
            return widened(m, source.name, text)
        if source == F32 and to in _HALF:
            return narrowed(m, to.name, text)
        if source in _HALF or to in _HALF or {source.kind, to.kind} == {"float", "bool"}:
            raise CodegenError(f"no direct conversion from {source} to {to}")
        if to not in self.TYPES or source not in self.TYPES:
            raise CodegenError(f"kernels for work groups do not convert {source} to {to}")
        have, want = self.TYPES[source], self.TYPES[to]
        if want == "bool":
            return m.op("OpINotEqual", "bool", text, m.number(have, 0))
        if have == "bool":
            return m.op("OpSelect", want, text, m.number(want, 1), m.number(want, 0))
        if want == "f32":
            return m.op("OpConvertSToF" if have == "i32" else "OpConvertUToF", want, text)
        if have == "f32":
            text = m.op("OpConvertFToS" if want == "i32" else "OpConvertFToU", want, text)
        elif have != want:
            text = m.op("OpBitcast", want, text)
        return self.cast(to, text)


def _comparison(op: str, dtype: DType) -> str:
    if op in _ORDER:
        sign = "FOrd" if dtype == F32 else "S" if dtype.kind == "int" else "U"
        return f"Op{sign}{_ORDER[op]}"
    return _EQUAL[op, "int" if dtype.is_int else dtype.kind]


def _operation(op: str, dtype: DType) -> str:
    """The instruction of an arithmetic or bitwise operator."""
    if op in _BITWISE:
        return _BITWISE[op]
    if op == ">>":
        return "OpShiftRightArithmetic" if dtype.kind == "int" else "OpShiftRightLogical"
    if op == "/":
        return "OpFDiv"
    return f"Op{'F' if dtype == F32 else 'I'}{_ARITHMETIC[op]}"


class WordSpirv(Spirv):
    """For devices whose memory has no numbers of less than 32 bits."""

    VECTORS: ClassVar[Kinds] = frozenset((d, FOUR) for d in (U32, I32, F32))
    WORDS: ClassVar[bool] = True
