"""One SPIR-V module as it is written: types, constants and variables once each, code in order.

In: instructions, in the order in which they run. Out: the module's text, which people read and
`spirv_assembly` turns into words. Values are the names of results; the types of values are `f32`,
`i32`, `u32` and `bool`, and memory knows whole numbers of 8 and 16 bits, and f16, besides. Vectors
of these are types too.
Variables that change live in memory, so that no value has two origins and blocks need no phi.
Knows no loop IR.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from sterna.codegen.c_names import Names

_INTEGERS = {"i32": (32, 1), "u32": (32, 0), "i16": (16, 1), "u16": (16, 0), "i8": (8, 1),
             "u8": (8, 0)}  # fmt: skip
_SMALL = {16: "StorageBuffer16BitAccess", 8: "StorageBuffer8BitAccess"}
_EXACT = frozenset({"OpFAdd", "OpFSub", "OpFMul"})  # must not be contracted


@dataclass(slots=True)
class Module:
    """Sections of a module, in the order that the specification wants."""

    unique: Names
    capabilities: list[str] = field(default_factory=lambda: ["OpCapability Shader"])
    decorations: list[str] = field(default_factory=list)
    globals: list[str] = field(default_factory=list)  # types, constants, variables
    functions: list[str] = field(default_factory=list)
    variables: list[str] = field(default_factory=list)  # of the function being written
    code: list[str] = field(default_factory=list)  # of the function being written
    interface: list[str] = field(default_factory=list)
    extensions: list[str] = field(default_factory=list)
    memory: str = "GLSL450"  # its model
    known: dict[str, str] = field(default_factory=dict)  # what is declared, by its definition
    count: int = 0

    # What is there once.

    def once(self, title: str, definition: str) -> str:
        """The name of a type or constant, declared when first asked for."""
        if definition not in self.known:
            name = self.known[definition] = "%" + self.unique.new(title)
            self.globals.append(f"{name} = {definition}")
        return self.known[definition]

    def require(self, *capabilities: str) -> None:
        """What the device must have for this module."""
        lines = [f"OpCapability {each}" for each in capabilities]
        self.capabilities += [line for line in lines if line not in self.capabilities]

    def extend(self, extension: str) -> None:
        """What of SPIR-V's extensions this module uses."""
        line = f'OpExtension "{extension}"'
        self.extensions += [line] if line not in self.extensions else []

    def type(self, title: str) -> str:
        """A type by its name: of a scalar, or of a vector such as `u32_v4`."""
        scalar, vector, lanes = title.partition("_v")
        if vector:
            return self.once(title, f"OpTypeVector {self.type(scalar)} {lanes}")
        if title in ("void", "bool"):
            return self.once(title, f"OpType{title.capitalize()}")
        if title == "f32":
            return self.once(title, "OpTypeFloat 32")
        if title == "f16":
            self.require("Float16")
            return self.once(title, "OpTypeFloat 16")
        bits, signed = _INTEGERS[title]
        if bits in _SMALL:
            self.require(_SMALL[bits])
        return self.once(title, f"OpTypeInt {bits} {signed}")

    def pointer(self, storage: str, title: str, to: str) -> str:
        return self.once(f"{storage}_{title}", f"OpTypePointer {storage} {to}")

    def number(self, title: str, value: float) -> str:
        """A constant of a scalar type. Floats are finite."""
        kind = self.type(title)
        if title == "bool":
            return self.once(str(bool(value)).lower(), f"OpConstant{bool(value)} {kind}")
        name = f"{title}_{value!r}".replace("-", "m").replace("+", "")
        text = _rounded(value).hex() if title == "f32" else str(int(value))
        return self.once(name, f"OpConstant {kind} {text}")

    def array(self, title: str, size: int) -> str:
        length = self.number("u32", size)
        return self.once(f"{title}_x{size}", f"OpTypeArray {self.type(title)} {length}")

    def function_type(self, result: str, *arguments: str) -> str:
        kinds = " ".join(self.type(title) for title in (result, *arguments))
        return self.once(f"to_{result}", f"OpTypeFunction {kinds}")

    def variable(self, name: str, storage: str, title: str, to: str) -> str:
        """A variable outside functions."""
        self.globals.append(f"{name} = OpVariable {self.pointer(storage, title, to)} {storage}")
        self.interface.append(name)
        return name

    def builtin(self, title: str, kind: str, to: str) -> str:
        """A variable in which the device tells a thread who it is."""
        name = "%" + self.unique.new(title)
        self.decorations.append(f"OpDecorate {name} BuiltIn {title}")
        return self.variable(name, "Input", kind, to)

    def decorate(self, name: str, what: str, *, member: int | None = None) -> None:
        """Say something of a result once."""
        head = f"OpDecorate {name}" if member is None else f"OpMemberDecorate {name} {member}"
        if f"{head} {what}" not in self.decorations:
            self.decorations.append(f"{head} {what}")

    # Code.

    def fresh(self) -> str:
        self.count += 1
        return f"%{self.count}"

    def emit(self, line: str) -> None:
        self.code.append(line)

    def op(self, name: str, title: str, *operands: str | int) -> str:
        """An instruction with a result of a type that `type` knows."""
        result = self.fresh()
        self.emit(" ".join([f"{result} = {name} {self.type(title)}", *map(str, operands)]))
        if name in _EXACT:
            self.decorations.append(f"OpDecorate {result} NoContraction")
        return result

    def extended(self, name: str, *operands: str) -> str:
        """An instruction of GLSL.std.450 whose result is f32."""
        return self.op("OpExtInst", "f32", "%glsl", name, *operands)

    def begin(self, name: str, head: str, parameters: list[str]) -> None:
        """Open a function; code is written into it until `close`."""
        label = self.fresh()
        self.variables = [f"{name} = OpFunction {head}", *parameters, f"{label} = OpLabel"]
        self.code = []

    def close(self) -> None:
        self.functions += ["", *self.variables, *self.code, "OpFunctionEnd"]

    def call(self, title: str, make: Callable[[str], str], x: str) -> str:
        """`title`(x), an f32 of an f32; `make` writes the body where it is not there yet."""
        if title not in self.known:
            name = self.known[title] = "%" + self.unique.new(title)
            held = self.variables, self.code
            argument, kind = self.fresh(), self.type("f32")
            head = f"{kind} None {self.function_type('f32', 'f32')}"
            self.begin(name, head, [f"{argument} = OpFunctionParameter {kind}"])
            self.emit(f"OpReturnValue {make(argument)}")
            self.close()
            self.variables, self.code = held
        return self.op("OpFunctionCall", "f32", self.known[title], x)

    def text(self, entry: str, symbol: str, threads: int) -> str:
        """The whole module."""
        used = " ".join(self.interface)
        lines = [
            *self.capabilities,
            *self.extensions,
            '%glsl = OpExtInstImport "GLSL.std.450"',
            f"OpMemoryModel Logical {self.memory}",
            f'OpEntryPoint GLCompute {entry} "{symbol}" {used}'.rstrip(),
            f"OpExecutionMode {entry} LocalSize {threads} 1 1",
            *self.decorations,
            *self.globals,
            *self.functions,
        ]
        return "\n".join(lines)


def bytes_of(title: str) -> int:
    """What a number or a vector of this type takes in memory."""
    scalar, _, lanes = title.partition("_v")
    return int(scalar[1:]) // 8 * int(lanes or 1)


def _rounded(value: float) -> float:
    """The nearest f32."""
    (found,) = struct.unpack("<f", struct.pack("<f", value))
    return float(found)
