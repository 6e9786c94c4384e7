"""Types of SPIR-V: how large they are, where their parts lie, and what C++ calls their values."""

from __future__ import annotations

from dataclasses import dataclass

from spirv_words import SpirvError


@dataclass(frozen=True, slots=True)
class Void:
    def __str__(self) -> str:
        return "void"


@dataclass(frozen=True, slots=True)
class Scalar:
    """`kind`: bool, int, uint or float."""

    kind: str
    bits: int

    def __str__(self) -> str:
        return "bool" if self.kind == "bool" else f"{self.kind}{self.bits}"


@dataclass(frozen=True, slots=True)
class Vector:
    of: Scalar
    lanes: int

    def __str__(self) -> str:
        return f"{self.of} x {self.lanes}"


@dataclass(frozen=True, slots=True)
class Matrix:
    """Of a subgroup. `use`: 0 is a, 1 is b, 2 is c."""

    of: Scalar
    rows: int
    columns: int
    use: int

    def __str__(self) -> str:
        return f"a matrix {'abc'[self.use]} of {self.rows} x {self.columns} {self.of}"


@dataclass(frozen=True, slots=True)
class Array:
    """`length`: None where it is the buffer's. `stride`: None where none is told."""

    of: Type
    length: int | None
    stride: int | None


@dataclass(frozen=True, slots=True)
class Struct:
    """`offsets`: None where none is told."""

    members: tuple[Type, ...]
    offsets: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Pointer:
    storage: int
    to: Type


@dataclass(frozen=True, slots=True)
class Function:
    result: Type
    arguments: tuple[Type, ...]


Type = Void | Scalar | Vector | Matrix | Array | Struct | Pointer | Function

BOOL, F16, F32 = Scalar("bool", 8), Scalar("float", 16), Scalar("float", 32)
_NUMBERS = {"int": "int{}_t", "uint": "uint{}_t", "bool": "bool"}


def cpp(kind: Type) -> str:
    """The C++ type of a value."""
    match kind:
        case Void():
            return "void"
        case Scalar("float", bits):
            return "float" if bits == 32 else "_Float16"
        case Scalar(name, bits):
            return _NUMBERS[name].format(bits)
        case Vector(of, lanes):
            return f"spirv::Vec<{cpp(of)}, {lanes}>"
        case Matrix(of, rows, columns, use):
            return f"spirv::Matrix<{cpp(of)}, {rows}, {columns}, {use}>"
        case Pointer():
            return "spirv::Place"
    raise SpirvError(f"a value of {kind} is not simulated")


def size_of(kind: Type, lanes: int) -> int:
    """Bytes that a value takes where SPIR-V tells no layout; of a matrix, a thread's part."""
    match kind:
        case Scalar():
            return kind.bits // 8
        case Vector():
            return kind.lanes * size_of(kind.of, lanes)
        case Matrix():
            if kind.rows * kind.columns % lanes:
                raise SpirvError(f"{kind} has no equal parts for {lanes} threads")
            return kind.rows * kind.columns // lanes * size_of(kind.of, lanes)
        case Array(of, int(length), _):
            return length * size_of(of, lanes)
    raise SpirvError(f"{kind} has no size")
