"""Expressions as C text, for one element or for all lanes of a vector loop.

In: an expression, with the C names of what it reads. Out: its text and how many lanes that has;
one lane is spread where a neighbour has more. Indices are 64-bit scalars. A truth value is an int
for one lane and an i32 mask for several. Knows no statements.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sterna.base.dtype import BF16, BOOL, F16, F32, I32, I64, U32, U64, DType
from sterna.base.errors import CodegenError
from sterna.codegen.c_codes import Code, packed_code
from sterna.codegen.c_math import C_NAMES
from sterna.ir.bounds import Interval, Intervals
from sterna.ir.expr import (
    BINARY,
    Binary,
    Buffer,
    Cast,
    Const,
    Expr,
    Intrin,
    Load,
    Select,
    Unary,
    Var,
    const_value,
    row_major,
    wrap,
)
from sterna.ir.linear import Sum
from sterna.ir.rewrite import free_vars, substitute
from sterna.ir.simplify import Simplifier, simplify

_INDEX = (I32, I64)
_HALF = (F16, BF16)
_DOTS = ("dot2", "dot4", "dot2_bf16")  # sums of which are one instruction where there is one
_PACKED = ("dot2", "dot4", "pair4", "pair4_add", "pair_bf16", "codes_bf16", "nibbles_bf16")
_LOGICAL = {"and": ("&&", "&"), "or": ("||", "|")}

Value = tuple[str, int]  # C text, lanes


def c_type(dtype: DType, lanes: int = 1) -> str:
    """The C type of a value; CodegenError for types that C kernels do not compute in."""
    if dtype not in C_NAMES or (lanes > 1 and dtype.bits > 32):
        raise CodegenError(f"C kernels have no {lanes} lanes of {dtype}; known: {list(C_NAMES)}")
    if lanes == 1:
        return "i64" if dtype in _INDEX else C_NAMES[dtype]
    return f"{'i32' if dtype == BOOL else C_NAMES[dtype]}x{lanes}"


def suffix(lanes: int) -> str:
    """What the names of functions and types end with."""
    return "" if lanes == 1 else f"x{lanes}"


def whole_number(e: Expr, what: str) -> int:
    value = const_value(simplify(e))
    if value is None:
        raise CodegenError(f"{what} must have a size known at compile time")
    return int(value)


@dataclass(slots=True)
class ExprWriter:
    """Names in force, and the vector loop being written: `lanes` > 1 while inside one."""

    names: dict[Var, str] = field(default_factory=dict)
    buffers: dict[Buffer, str] = field(default_factory=dict)
    registers: dict[Buffer, int] = field(default_factory=dict)  # lanes that a variable holds
    wide: dict[Var, int] = field(default_factory=dict)  # lanes of Let-bound vectors
    ranges: dict[Var, Interval] = field(default_factory=dict)
    lane: Var | None = None
    lanes: int = 1
    simplifier: Simplifier = field(default_factory=Simplifier)
    variables: dict[Expr, set[Var]] = field(default_factory=dict)  # of atoms of indices

    def text(self, e: Expr, lanes: int = 1) -> str:
        """C text of `e` with exactly `lanes` lanes."""
        return self.spread(self.value(e), e.dtype, lanes)

    def scalar(self, e: Expr) -> str:
        """An expression that the lane does not enter."""
        lane, lanes = self.lane, self.lanes
        self.lane, self.lanes = None, 1
        text = self.text(e)
        self.lane, self.lanes = lane, lanes
        return text

    def spread(self, value: Value, dtype: DType, lanes: int) -> str:
        text, own = value
        if own == lanes:
            return text
        if own > lanes:
            raise CodegenError(f"a vector of {own} lanes where {lanes} are needed: {text[:80]}")
        if dtype == BOOL:
            return f"splat_i32x{lanes}(-({text}))"
        return f"splat_{c_type(dtype, lanes)}({text})"

    def together(self, *parts: Expr) -> tuple[list[str], int]:
        """Texts of operands, all with the lanes of the widest."""
        values = [self.value(p) for p in parts]
        lanes = max(own for _, own in values)
        texts = [self.spread(v, p.dtype, lanes) for v, p in zip(values, parts, strict=True)]
        return texts, lanes

    def value(self, e: Expr) -> Value:
        match e:
            case Const():
                return literal(e), 1
            case Var():
                return self.variable(e)
            case Load(buffer=buffer, index=index):
                return self.load(buffer, index)
            case Cast(dtype=dtype, a=a):
                text, lanes = self.value(a)
                return converted(text, a.dtype, dtype, lanes), lanes
            case Select():
                return self.choice(e)
            case Intrin(name="fma", args=args) if e.dtype == F32:
                texts, lanes = self.together(*args)
                return f"fma_{c_type(F32, lanes)}({', '.join(texts)})", lanes
            case Intrin(name=name, args=args) if name in _PACKED and e.dtype == I32:
                texts, lanes = self.together(*args)
                return f"{name}_i32{suffix(lanes)}({', '.join(texts)})", lanes
            case Unary(op=op, a=a):
                text, lanes = self.value(a)
                return unary(op, text, a.dtype, lanes), lanes
            case Binary():
                return self.binary(e)
        what = f"{e.name} of {e.dtype}" if isinstance(e, Intrin) else type(e).__name__
        raise CodegenError(f"C kernels have no {what}")

    def variable(self, v: Var) -> Value:
        if v is self.lane:
            return f"lane_numbers{suffix(self.lanes)}()", self.lanes
        if v not in self.names:
            raise CodegenError(f"variable {v.name} is not bound")
        return self.names[v], self.wide.get(v, 1)

    def choice(self, e: Select) -> Value:
        cond, cond_lanes = self.value(e.cond)
        (a, b), lanes = self.together(e.a, e.b)
        if cond_lanes == 1:
            return f"({cond} ? {a} : {b})", lanes
        a, b = (self.spread((x, lanes), e.a.dtype, cond_lanes) for x in (a, b))
        return choose(cond, a, b, e.a.dtype, cond_lanes), cond_lanes

    def binary(self, e: Binary) -> Value:
        code = packed_code(e) if self.lane is not None else None
        if code is not None:
            return self.code(code)
        if e.op == "+" and isinstance(e.b, Intrin) and e.b.name in _DOTS:
            texts, lanes = self.together(*e.b.args, e.a)  # one instruction where there is one
            kind = storage(e.dtype, lanes)
            return f"{e.b.name}_add_{kind}({', '.join(texts)})", lanes
        (x, y), lanes = self.together(e.a, e.b)
        dtype, op = e.a.dtype, e.op
        if dtype in _HALF or (lanes > 1 and dtype.bits > 32) or dtype not in C_NAMES:
            raise CodegenError(f"{op!r} of {lanes} lanes of {dtype}; convert first")
        if op in _LOGICAL:
            return f"({x} {_LOGICAL[op][lanes > 1]} {y})", lanes
        if dtype == BOOL or dtype.is_float or dtype.bits >= 32:
            return self.operation(op, x, y, e, dtype, lanes), lanes
        wider = I32 if dtype.kind == "int" else U32  # C computes small integers as int
        x, y = converted(x, dtype, wider, lanes), converted(y, dtype, wider, lanes)
        text = self.operation(op, x, y, e, wider, lanes)
        return (text if BINARY[op].compares else converted(text, wider, dtype, lanes)), lanes

    def code(self, c: Code) -> Value:
        """A packed code as f32; see c_codes."""
        word, lanes = self.value(c.word)
        wide = suffix(lanes)
        if c.moved:
            word = f"({word} >> {c.moved})"
        return f"(bits_f32{wide}(({word} & {c.mask}u) | {c.exponent}u) - {c.offset}.0f)", lanes

    def operation(self, op: str, x: str, y: str, e: Binary, dtype: DType, lanes: int) -> str:
        if op in ("//", "%"):
            if not dtype.is_int:
                raise CodegenError(f"{op!r} of {dtype}; use '/' and floor")
            return self.division(op, x, y, e, dtype, lanes)
        if op in ("min", "max"):
            if dtype == BOOL:
                raise CodegenError(f"{op} of bools; use and, or")
            if lanes == 1 and (dtype.bits > 32 or dtype in _INDEX):
                return f"({x} {'<' if op == 'min' else '>'} {y} ? {x} : {y})"
            return f"{op}_{c_type(dtype, lanes)}({x}, {y})"
        if op == "<<" and dtype.kind == "int":  # a negative number has no << in C
            unsigned = c_type(U64 if lanes == 1 else U32, lanes)
            return f"(({c_type(dtype, lanes)})(({unsigned}){x} << {y}))"
        return f"({x} {op} {y})"

    def division(self, op: str, x: str, y: str, e: Binary, dtype: DType, lanes: int) -> str:
        """Floor division: shifts and masks for powers of two, C's own where nothing is negative."""
        divisor = const_value(e.b)
        if divisor is not None and divisor > 0 and int(divisor) & (int(divisor) - 1) == 0:
            shift, mask = int(divisor).bit_length() - 1, int(divisor) - 1
            return f"({x} >> {shift})" if op == "//" else f"({x} & {mask})"
        interval = Intervals(self.ranges)
        if dtype.kind == "uint" or (interval(e.a)[0] >= 0 and interval(e.b)[0] >= 0):
            return f"({x} {'/' if op == '//' else '%'} {y})"
        return f"{'floor_div' if op == '//' else 'floor_mod'}{suffix(lanes)}({x}, {y})"

    # Places in memory and in registers.

    def load(self, buffer: Buffer, index: tuple[Expr, ...]) -> Value:
        text, lanes = self.place(buffer, index)
        if buffer.dtype == BOOL and lanes > 1:
            return f"(__builtin_convertvector({text}, i32x{lanes}) != 0)", lanes
        return (f"(i64){text}" if lanes == 1 and buffer.dtype == I32 else text), lanes

    def place(self, buffer: Buffer, index: tuple[Expr, ...]) -> Value:
        """What is read at an index: one element, or one for each lane."""
        flat = self.flat(buffer, index)
        stride = self.stride(flat)
        if buffer in self.registers:
            return self.register(buffer, flat, stride)
        text = self.array(buffer)
        if stride == 0:
            return f"{text}[{self.scalar(self.at_lane(flat, 0))}]", 1
        if stride == 1:
            return self.vector_at(buffer, flat, const=True), self.lanes
        parts = (f"{text}[{self.scalar(self.at_lane(flat, i))}]" for i in range(self.lanes))
        return f"(({storage(buffer.dtype, self.lanes)}){{{', '.join(parts)}}})", self.lanes

    def array(self, buffer: Buffer) -> str:
        if buffer not in self.buffers:
            raise CodegenError(f"buffer {buffer.name} is used where it is not known")
        return self.buffers[buffer]

    def vector_at(self, buffer: Buffer, flat: Expr, *, const: bool = False) -> str:
        """Neighbouring elements in memory, the first one lane 0's."""
        kind = f"{'const ' if const else ''}{storage(buffer.dtype, self.lanes)}u"
        return f"*({kind} *)&{self.array(buffer)}[{self.scalar(self.at_lane(flat, 0))}]"

    def flat(self, buffer: Buffer, index: tuple[Expr, ...]) -> Expr:
        return self.simplifier.expr(row_major(buffer.shape, index))

    def at_lane(self, e: Expr, i: int) -> Expr:
        """An index in one lane."""
        if self.lane is None:
            return e
        terms = self.simplifier.sum(e)
        if self.linear_in_lane(terms):
            step = terms.terms.get(self.lane, 0)
            return self.simplifier.build(terms.drop(self.lane).plus(Sum({}, i * step)), e.dtype)
        return self.simplifier.expr(substitute(e, {self.lane: wrap(i)}))

    def linear_in_lane(self, terms: Sum) -> bool:
        return all(atom is self.lane or self.lane not in self.reads(atom) for atom in terms.terms)

    def reads(self, e: Expr) -> set[Var]:
        found = self.variables.get(e)
        if found is None:
            found = self.variables[e] = free_vars(e)
        return found

    def stride(self, flat: Expr) -> int | None:
        """Distance between the elements of neighbouring lanes; None when it varies."""
        if self.lane is None:
            return 0
        terms = self.simplifier.sum(flat)
        if any(v in self.wide for atom in terms.terms for v in self.reads(atom)):
            raise CodegenError(f"an index that differs from lane to lane by a Let: {flat!r}")
        if self.linear_in_lane(terms):
            return terms.terms.get(self.lane, 0)
        following = substitute(flat, {self.lane: self.lane + 1})
        step = const_value(self.simplifier.expr(following - flat))
        return None if step is None else int(step)

    def register(self, buffer: Buffer, flat: Expr, stride: int | None) -> Value:
        """The variable that holds an element, or one for each lane, of a register buffer."""
        held, text = self.registers[buffer], self.array(buffer)
        first = self.at_lane(flat, 0)
        if stride == 1 and held == self.lanes:
            at = const_value(first)
            if at is not None and int(at) % held == 0:
                return f"{text}_{int(at) // held}", held
        elif stride == 0:
            variable = const_value(self.simplifier.expr(first // held))
            rest = self.simplifier.expr(first % held)
            if variable is not None:
                lane = "" if held == 1 else f"[{self.scalar(rest)}]"
                return f"{text}_{int(variable)}{lane}", 1
        raise CodegenError(f"register buffer {buffer.name} is used at {flat!r}, no constant place")


def storage(dtype: DType, lanes: int) -> str:
    """The C type of elements in memory."""
    c_type(dtype, lanes)
    return C_NAMES[dtype] + suffix(lanes)


def literal(c: Const) -> str:
    if c.dtype in _HALF:
        return f"{int(np.array(c.value, c.dtype.numpy).view(np.uint16))}"
    if c.dtype == F32:
        value = np.float32(c.value)
        if np.isnan(value):
            return '__builtin_nanf("")'
        text = "__builtin_inff()" if np.isinf(value) else f"{abs(value)!s}f"
        return f"(-{text})" if np.signbit(value) else text
    c_type(c.dtype)
    if c.dtype == BOOL:
        return "1" if c.value else "0"
    number = f"{int(c.value)}{'u' if c.dtype.kind == 'uint' else ''}"
    return f"({number})" if int(c.value) < 0 else number


def choose(cond: str, a: str, b: str, dtype: DType, lanes: int) -> str:
    """a in the lanes where the mask is set, else b."""
    if dtype == BOOL or dtype.bits == 32:
        return f"choose_{c_type(dtype, lanes)}({cond}, {a}, {b})"
    kind = c_type(dtype, lanes)
    a, b = (f"__builtin_convertvector({x}, i32x{lanes})" for x in (a, b))
    return f"__builtin_convertvector(choose_i32x{lanes}({cond}, {a}, {b}), {kind})"


def converted(text: str, source: DType, to: DType, lanes: int) -> str:
    """A Cast. Floats to integers go toward zero."""
    kind = c_type(to, lanes)
    if source == to or (lanes == 1 and to in _INDEX and source in _INDEX):
        return text
    if source in _HALF and to == F32:
        return f"f32_from_{source}{suffix(lanes)}({text})"
    if source == F32 and to in _HALF:
        return f"{to}_from_f32{suffix(lanes)}({text})"
    if source in _HALF or to in _HALF or {source.kind, to.kind} == {"float", "bool"}:
        raise CodegenError(f"no direct conversion from {source} to {to}")
    if to == BOOL:
        return f"({text} != 0)" if lanes == 1 else f"(({kind})({text} != 0))"
    if source == BOOL and lanes > 1:
        text, source = f"(-{text})", I32
        if to == I32:
            return text
    if to == I32 and lanes == 1 and not source.is_int:
        return f"((i64){text})"
    if lanes == 1:  # an i32 is held in 64 bits, but keeps the values of 32
        return f"((i64)(i32){text})" if to == I32 and source.bits >= 32 else f"(({kind}){text})"
    if {source, to} <= {I32, U32}:
        return f"(({kind}){text})"
    return f"__builtin_convertvector({text}, {kind})"


def unary(op: str, text: str, dtype: DType, lanes: int) -> str:
    if op == "not":
        return f"(!{text})" if lanes == 1 else f"(~{text})"
    if dtype == F32:
        return f"(-{text})" if op == "neg" else f"{op}_{c_type(F32, lanes)}({text})"
    kind = c_type(dtype, lanes)
    if not dtype.is_int or op not in ("neg", "invert", "abs"):
        raise CodegenError(f"{op} of {dtype}; convert to f32 first")
    if op == "invert":
        return f"(({kind})~{text})"
    if op == "neg":
        return f"(({kind})-{text})"
    if dtype.kind == "uint":
        return text
    if lanes == 1:
        return f"(({kind})({text} < 0 ? -{text} : {text}))"
    wide = f"abs_i32x{lanes}({converted(text, dtype, I32, lanes)})"
    return converted(wide, I32, dtype, lanes)
