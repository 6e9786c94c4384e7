"""Scalar expressions as text in languages of C's family.

In: an expression, with the names of what it reads. Out: its text. A language overrides what it
spells otherwise. Values are scalars; f16 and bf16 are carried as their bits until they are
converted; indices are 32-bit but where `wide` asks for more. Knows no statements and no memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from struct import pack, unpack
from typing import ClassVar

from sterna.base.dtype import (
    BF16,
    BOOL,
    F16,
    F32,
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
    DType,
)
from sterna.base.errors import CodegenError
from sterna.codegen.c_expr import literal
from sterna.ir.bounds import Interval, Intervals
from sterna.ir.expr import (
    Binary,
    Cast,
    Const,
    Expr,
    Intrin,
    Load,
    Select,
    Unary,
    Var,
    binary,
    const_value,
)

_HALF = (F16, BF16)
_ONES = 1024  # from here to twice of it a step of f16 is 1
_LOGICAL = {"and": "&&", "or": "||"}


def _written_out(dot: Intrin) -> Expr:
    """A dot product of integers side by side, in i32 alone: every language has that."""
    a, b = dot.args
    parts = 2 if dot.name == "dot2" else 4
    width = 32 // parts
    sign, mask = 1 << (width - 1), (1 << width) - 1

    def part(e: Expr, i: int) -> Expr:
        if i == parts - 1:
            return e >> i * width
        return binary("^", (e >> i * width) & mask, sign) - sign

    total = part(a, 0) * part(b, 0)
    for i in range(1, parts):
        total = total + part(a, i) * part(b, i)
    return total


@dataclass(slots=True, kw_only=True)
class ExprStyle:
    """Text of expressions; `names` and `ranges` of the variables in force."""

    TYPES: ClassVar[dict[DType, str]] = {
        F32: "f32", F16: "u16", BF16: "u16", I8: "i8", U8: "u8", I16: "i16", U16: "u16",
        I32: "i32", U32: "u32", I64: "i64", U64: "u64", BOOL: "u8",
    }  # fmt: skip
    HALVES: ClassVar[bool] = False  # whether f16_from_whole is there: one subtraction of f16
    WIDE: ClassVar[str] = "i64"  # of indices into buffers of unknown size; "" where there is none

    names: dict[Var, str] = field(default_factory=dict)
    ranges: dict[Var, Interval] = field(default_factory=dict)
    wide: bool = False

    def load(self, e: Load) -> str:
        """The element that is read."""
        raise NotImplementedError

    def text(self, e: Expr) -> str:
        match e:
            case Const():
                return self.literal(e)
            case Var():
                if e not in self.names:
                    raise CodegenError(f"variable {e.name} is not bound")
                found = self.names[e]
                return f"(({self.WIDE}){found})" if self.wide and e.dtype == I32 else found
            case Load():
                return self.load(e)
            case Cast(dtype=dtype, a=Cast(a=a)) if dtype == F16 and self.is_small(a):
                return self.small_half(a)
            case Cast(dtype=dtype, a=a):
                return self.converted(self.text(a), a.dtype, dtype)
            case Select(cond=cond, a=a, b=b):
                return self.choice(e.dtype, self.text(cond), self.text(a), self.text(b))
            case Intrin(name="fma", args=args) if e.dtype == F32:
                return self.fma(*map(self.text, args))
            case Intrin(name="dot2" | "dot4"):
                return self.text(_written_out(e))
            case Unary(op=op, a=a):
                return self.unary(op, self.text(a), a.dtype)
            case Binary():
                return self.binary(e)
        what = f"{e.name} of {e.dtype}" if isinstance(e, Intrin) else type(e).__name__
        raise CodegenError(f"kernels for work groups have no {what}")

    def is_small(self, whole: Expr) -> bool:
        """Whether it is a whole number that `small_half` makes an f16 of."""
        if not (self.HALVES and whole.dtype.is_int):
            return False
        lo, hi = Intervals(self.ranges)(whole)
        return lo >= -_ONES and hi - lo < _ONES

    def small_half(self, whole: Expr) -> str:
        """The f16 of a whole number: what is added to the bits of 1024 counts ones, so that one
        subtraction gives it, where two conversions take several times as long."""
        lo = int(Intervals(self.ranges)(whole)[0])
        above = self.text(whole + -lo)
        (base,) = unpack("<H", pack("<e", _ONES - lo))
        return f"f16_from_whole({above}, {base})"

    def literal(self, c: Const) -> str:
        if c.dtype == F32 and c.value != c.value:
            return "bits_f32(0x7fc00000u)"
        if c.dtype == F32 and abs(c.value) == float("inf"):
            return f"bits_f32({'0x7f' if c.value > 0 else '0xff'}800000u)"
        return literal(c)

    def fma(self, a: str, b: str, c: str) -> str:
        return f"fma_f32({a}, {b}, {c})"

    def choice(self, dtype: DType, cond: str, a: str, b: str) -> str:
        return f"({cond} ? {a} : {b})"

    def cast(self, dtype: DType, text: str) -> str:
        return f"(({self.TYPES[dtype]}){text})"

    def binary(self, e: Binary) -> str:
        x, y, op, dtype = self.text(e.a), self.text(e.b), e.op, e.a.dtype
        if dtype in _HALF or dtype not in self.TYPES:
            raise CodegenError(f"{op!r} of {dtype}; convert first")
        if op in _LOGICAL:
            return f"({x} {_LOGICAL[op]} {y})"
        if op in ("//", "%"):
            return self.division(e, x, y)
        if op in ("min", "max"):
            if dtype == F32:
                return f"{op}_f32({x}, {y})"
            return self.choice(dtype, f"({x} {'<' if op == 'min' else '>'} {y})", x, y)
        text = self.shift(op, x, y, dtype) if op in ("<<", ">>") else f"({x} {op} {y})"
        small = dtype.is_int and dtype.bits < 32 and op not in ("<", "<=", "==", "!=")
        return self.cast(dtype, text) if small else text

    def shift(self, op: str, x: str, y: str, dtype: DType) -> str:
        if op == "<<" and dtype.kind == "int":  # a negative number has no << in C
            return self.cast(dtype, f"({self.cast(U64 if dtype.bits == 64 else U32, x)} << {y})")
        return f"({x} {op} {y})"

    def division(self, e: Binary, x: str, y: str) -> str:
        """Floor division: shifts and masks for powers of two, C's own where nothing is negative."""
        dtype, divisor = e.a.dtype, const_value(e.b)
        if not dtype.is_int:
            raise CodegenError(f"{e.op!r} of {dtype}; use '/' and floor")
        if divisor is not None and divisor > 0 and int(divisor) & (int(divisor) - 1) == 0:
            shift, mask = int(divisor).bit_length() - 1, int(divisor) - 1
            return self.power_division(e.op, x, shift, mask, dtype)
        interval = Intervals(self.ranges)
        if dtype.kind == "uint" or (interval(e.a)[0] >= 0 and interval(e.b)[0] >= 0):
            return self.quotient(e.op, x, y, dtype)
        return self.floored(e.op, x, y)

    def quotient(self, op: str, x: str, y: str, dtype: DType) -> str:
        """Of numbers that are not negative."""
        return f"({x} {'/' if op == '//' else '%'} {y})"

    def floored(self, op: str, x: str, y: str) -> str:
        return f"{'floor_div' if op == '//' else 'floor_mod'}({x}, {y})"

    def power_division(self, op: str, x: str, shift: int, mask: int, dtype: DType) -> str:
        return f"({x} >> {shift})" if op == "//" else f"({x} & {mask})"

    def unary(self, op: str, x: str, dtype: DType) -> str:
        if op == "not":
            return f"(!{x})"
        if dtype == F32:
            return f"(-{x})" if op == "neg" else f"{op}_f32({x})"
        if not dtype.is_int or op not in ("neg", "invert", "abs"):
            raise CodegenError(f"{op} of {dtype}; convert to f32 first")
        if op == "invert":
            return self.cast(dtype, f"(~{x})")
        if op == "neg":
            return self.cast(dtype, f"(-{x})")
        return x if dtype.kind == "uint" else self.choice(dtype, f"({x} < 0)", f"(-{x})", x)

    def converted(self, text: str, source: DType, to: DType) -> str:
        """A Cast. Floats to integers go toward zero."""
        if source == to:
            return text
        if source in _HALF and to == F32:
            return f"f32_from_{source}({text})"
        if source == F32 and to in _HALF:
            return f"{to}_from_f32({text})"
        if source in _HALF or to in _HALF or {source.kind, to.kind} == {"float", "bool"}:
            raise CodegenError(f"no direct conversion from {source} to {to}")
        if to not in self.TYPES or source not in self.TYPES:
            raise CodegenError(f"kernels for work groups do not convert {source} to {to}")
        if to == BOOL:
            return f"({text} != 0)"
        return self.cast(to, text)
