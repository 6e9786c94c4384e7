"""exp, log, tanh, sine and cosine, and conversions of small floats, as SPIR-V instructions.

The same polynomials, in the same order, as `c_math`, whose comments explain them. Where a device
fuses its Fma they give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from sterna.codegen.spirv_module import Module

_LETTERS = {"f32": "F", "i32": "I", "u32": "I"}
_SHIFTER = 12582912.0  # 1.5 * 2^23
_INFINITY = 0x7F800000


@dataclass(frozen=True, slots=True)
class Value:
    """A result in a module, with operators that write instructions."""

    module: Module
    id: str
    type: str

    def of(self, value: float | Value) -> Self:
        """A number in this value's type."""
        if isinstance(value, Value):
            return self.like(value.id)
        return self.like(self.module.number(self.type, value))

    def like(self, found: str) -> Self:
        return type(self)(self.module, found, self.type)

    def op(self, name: str, other: float | Value) -> Self:
        return self.like(self.module.op(name, self.type, self.id, self.of(other).id))

    def __add__(self, other: float | Value) -> Self:
        return self.op(f"Op{_LETTERS[self.type]}Add", other)

    def __sub__(self, other: float | Value) -> Self:
        return self.op(f"Op{_LETTERS[self.type]}Sub", other)

    def __mul__(self, other: float | Value) -> Self:
        return self.op(f"Op{_LETTERS[self.type]}Mul", other)

    def __truediv__(self, other: float | Value) -> Self:
        return self.op("OpFDiv", other)

    def __and__(self, other: int | Value) -> Self:
        return self.op("OpBitwiseAnd", other)

    def __or__(self, other: int | Value) -> Self:
        return self.op("OpBitwiseOr", other)

    def __xor__(self, other: int | Value) -> Self:
        return self.op("OpBitwiseXor", other)

    def __lshift__(self, bits: int) -> Self:
        return self.op("OpShiftLeftLogical", bits)

    def __rshift__(self, bits: int) -> Self:
        signed = self.type == "i32"
        return self.op("OpShiftRightArithmetic" if signed else "OpShiftRightLogical", bits)

    def test(self, name: str, other: float | Value) -> str:
        """A truth value, e.g. test("FOrdLessThan", 2.0)."""
        return self.module.op(f"Op{name}", "bool", self.id, self.of(other).id)

    def where(self, cond: str, other: float | Value) -> Self:
        """This value where `cond`, else the other."""
        return self.like(self.module.op("OpSelect", self.type, cond, self.id, self.of(other).id))

    def fma(self, a: float | Value, b: float | Value) -> Self:
        """This value * a + b."""
        return self.like(self.module.extended("Fma", self.id, self.of(a).id, self.of(b).id))

    def horner(self, x: Value, *coefficients: float) -> Self:
        """A polynomial in x whose first coefficient is this value."""
        result = self
        for c in coefficients:
            result = result.fma(x, c)
        return result

    def bits(self, to: str = "u32") -> Value:
        """The same bits as another type."""
        return Value(self.module, self.module.op("OpBitcast", to, self.id), to)

    def converted(self, to: str) -> Value:
        """A whole number as a float."""
        name = "OpConvertSToF" if self.type == "i32" else "OpConvertUToF"
        return Value(self.module, self.module.op(name, to, self.id), to)


def _abs(x: Value) -> Value:
    return (x.bits() & 0x7FFFFFFF).bits("f32")


def _bits(x: Value, bits: int) -> Value:
    """The f32 that has these bits."""
    return x.bits().of(bits).bits("f32")


def _exp(x: Value) -> Value:
    t = x.where(x.test("FOrdGreaterThan", -87.5), -87.5)
    t = t.where(t.test("FOrdLessThan", 88.72283), 88.72283)
    shifted = t * 1.44269504088896341 + _SHIFTER
    n = shifted - _SHIFTER
    r = n.fma(-0.693359375, t)
    r = n.fma(2.12194440e-4, r)
    p = x.of(1.9875691500e-4).horner(
        r, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1
    )
    p = p.fma(r * r, r) + 1.0
    p = (p.bits() + (shifted.bits() << 23)).bits("f32")
    p = p.where(x.test("FOrdLessThanEqual", 88.72283), x + _bits(x, _INFINITY))
    return x.of(0.0).where(x.test("FOrdLessThan", -87.33654), p)


def _log(x: Value) -> Value:
    least = _bits(x, 0x00800000)
    u = least.where(x.test("FOrdLessThan", least), x).bits()
    offset = u - 0x3F3504F3
    n = (offset.bits("i32") >> 23).converted("f32")
    m = ((offset & 0x007FFFFF) + 0x3F3504F3).bits("f32") - 1.0
    s = m * m
    p = x.of(7.0376836292e-2).horner(
        m, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
        2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
    )  # fmt: skip
    p = p * m * s
    p = n.fma(-2.12194440e-4, p)
    p = s.fma(-0.5, p)
    p = n.fma(0.693359375, m + p)
    p = p.where(x.test("FOrdLessThan", _bits(x, _INFINITY)), x)
    p = _bits(x, 0xFF800000).where(x.test("FOrdEqual", 0.0), p)
    return _bits(x, 0x7FC00000).where(x.test("FOrdLessThan", 0.0), p)


def _tanh(x: Value) -> Value:
    a = _abs(x)
    a = a.where(a.test("FOrdLessThan", 9.5), 9.5)
    a = x.where(x.test("FUnordNotEqual", x), a)
    e = Value(x.module, call(x.module, "exp", (a + a).id), "f32")
    large = x.of(1.0) - x.of(2.0) / (e + 1.0)
    s = x * x
    p = x.of(-5.70498872745e-3).horner(
        s, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1
    )
    small = (p * s).fma(x, x)
    signed = (large.bits() | (x.bits() & 0x80000000)).bits("f32")
    return small.where(a.test("FOrdLessThan", 0.625), signed)


def _sine_quarter(x: Value, quarter: int) -> Value:
    """Sine of x + quarter * pi / 2."""
    shifted = x * 0.636619772367581343 + _SHIFTER
    n = shifted - _SHIFTER
    r = x
    for part in (
        "0x1.9p+0", "0x1.0cp-7", "0x1.ecp-14", "0x1.5p-22", "0x1.1p-30", "0x1.4p-39", "0x1.44p-42"
    ):  # fmt: skip
        r = r - n * float.fromhex(part)
    q = shifted.bits() - 0x4B400000 + quarter
    s = r * r
    sine = x.of(-1.9515295891e-4).horner(s, 8.3321608736e-3, -1.6666654611e-1)
    sine = (sine * s).fma(r, r)
    cosine = x.of(2.443315711809948e-5).horner(s, -1.388731625493765e-3, 4.166664568298827e-2)
    cosine = cosine.fma(s * s, s.fma(-0.5, 1.0))
    value = sine.where((q & 1).test("IEqual", 0), cosine)
    return (value.bits() ^ ((q & 2) << 30)).bits("f32")


_FUNCTIONS: dict[str, Callable[[Value], Value]] = {
    "exp": _exp,
    "log": _log,
    "tanh": _tanh,
    "sin": lambda x: _sine_quarter(x, 0),
    "cos": lambda x: _sine_quarter(x, 1),
}
_INSTRUCTIONS = {"sqrt": "Sqrt", "floor": "Floor", "abs": "FAbs"}


def call(module: Module, op: str, x: str) -> str:
    """A unary operator on an f32, by the name that the loop IR gives it."""
    if op == "neg":
        return module.op("OpFNegate", "f32", x)
    if op in _INSTRUCTIONS:
        return module.extended(_INSTRUCTIONS[op], x)
    make = _FUNCTIONS[op]
    return module.call(f"{op}_f32", lambda id: make(Value(module, id, "f32")).id, x)


def widened(module: Module, half: str, bits: str) -> str:
    """The f32 of an f16 or bf16, given as its bits in a u32."""
    x = Value(module, bits, "u32")
    if half == "bf16":
        return (x << 16).bits("f32").id
    pair = module.fresh()
    vector = module.once("f32_v2", f"OpTypeVector {module.type('f32')} 2")
    module.emit(f"{pair} = OpExtInst {vector} %glsl UnpackHalf2x16 {bits}")
    return module.op("OpCompositeExtract", "f32", pair, 0)


def narrowed(module: Module, half: str, number: str) -> str:
    """The bits of the f16 or bf16 nearest to an f32, ties to even, in a u32; a NaN stays one."""
    x = Value(module, number, "f32")
    u = x.bits()
    known = x.test("FOrdEqual", x)
    if half == "bf16":
        rounded = (u + 0x7FFF + ((u >> 16) & 1)) >> 16
        return rounded.where(known, (u >> 16) | 0x40).id
    sign = u & 0x80000000
    a = u ^ sign
    tiny = (a.bits("f32") + 0.5).bits() - 0x3F000000
    normal = (a - 0x38000000 + 0xFFF + ((a >> 13) & 1)) >> 13
    r = tiny.where(a.test("ULessThan", 0x38800000), normal)
    r = r.where(a.test("ULessThan", 0x47800000), 0x7C00)
    r = r.where(known, ((a >> 13) & 0x3FF) | 0x7E00)
    return (r | (sign >> 16)).id
