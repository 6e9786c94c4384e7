"""What a SPIR-V module declares before its functions: what it needs, types, constants, variables.

In: a module's instructions. Out: Declarations. SpirvError where something is not declared that is
used, or is declared in a way that the simulator does not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from spirv_types import (
    BOOL,
    Array,
    Function,
    Matrix,
    Pointer,
    Scalar,
    Struct,
    Type,
    Vector,
    Void,
    cpp,
    size_of,
)
from spirv_words import Instruction, SpirvError, string

CAPABILITIES = {
    1: "Shader", 9: "Float16", 61: "GroupNonUniform", 65: "GroupNonUniformShuffle",
    4433: "StorageBuffer16BitAccess", 4448: "StorageBuffer8BitAccess", 5345: "VulkanMemoryModel",
    6022: "CooperativeMatrixKHR",
}  # fmt: skip
MATRICES = "SPV_KHR_cooperative_matrix"
INPUT, WORKGROUP, FUNCTION, PUSH_CONSTANT, STORAGE_BUFFER = 1, 4, 7, 9, 12
BLOCK, ARRAY_STRIDE, BUILT_IN, COHERENT, NON_WRITABLE = 2, 6, 11, 23, 24
BINDING, DESCRIPTOR_SET, OFFSET, NO_CONTRACTION = 33, 34, 35, 42
_DECORATIONS = {BLOCK, ARRAY_STRIDE, BUILT_IN, COHERENT, NON_WRITABLE, BINDING, DESCRIPTOR_SET,
                OFFSET, NO_CONTRACTION}  # fmt: skip
# By the number of a built-in: what it is here, its type, and the capability that it wants.
_BUILT_INS = {
    26: ("spirv::group_id()", Vector(Scalar("uint", 32), 3), "Shader"),
    29: ("spirv::local_index()", Scalar("uint", 32), "Shader"),
    40: ("spirv::subgroup_id()", Scalar("uint", 32), "GroupNonUniform"),
    41: ("spirv::subgroup_lane()", Scalar("uint", 32), "GroupNonUniform"),
}  # fmt: skip
# Kernels that swap values count on neighbours in a group being neighbours in a subgroup.
_LOCAL_INDEX, _NEIGHBOURS = 29, "simt::now.thread"
_MODELS: tuple[tuple[int, ...], ...] = ((0, 1), (0, 3))  # logical addresses; GLSL's and Vulkan's
_SUBGROUP = 3
_ALIGNED = 64  # where a variable that a group shares begins


@dataclass(frozen=True, slots=True)
class Variable:
    """Outside of functions. `text`: where it is in C++; of a built-in, its value."""

    storage: int
    to: Type
    text: str


@dataclass(slots=True)
class Declarations:
    """`shared_bytes`: of the memory that a group shares. Keys are ids."""

    lanes: int
    capabilities: set[str] = field(default_factory=set)
    extensions: set[str] = field(default_factory=set)
    vulkan: bool = False  # the memory model
    entry: int = 0
    symbol: str = ""
    interface: frozenset[int] = frozenset()
    threads: int = 0
    glsl: int = 0
    shared_bytes: int = 0
    decorations: dict[int, dict[int, tuple[int, ...]]] = field(default_factory=dict)
    members: dict[tuple[int, int], dict[int, tuple[int, ...]]] = field(default_factory=dict)
    types: dict[int, Type] = field(default_factory=dict)
    constants: dict[int, tuple[Type, str]] = field(default_factory=dict)
    numbers: dict[int, int] = field(default_factory=dict)  # of constants that are whole numbers
    variables: dict[int, Variable] = field(default_factory=dict)

    def need(self, capability: str, what: str) -> None:
        if capability not in self.capabilities:
            raise SpirvError(f"{what} wants the capability {capability}")

    def type(self, id: int) -> Type:
        if id not in self.types:
            raise SpirvError(f"%{id} is no type")
        return self.types[id]

    def number(self, id: int) -> int:
        if id not in self.numbers:
            raise SpirvError(f"%{id} is no constant whole number")
        return self.numbers[id]

    def add(self, i: Instruction) -> None:
        """Take in the next instruction."""
        if i.name.startswith("OpType"):
            self.types[i.result] = self._type(i)
        elif i.name.startswith("OpConstant"):
            kind = self.type(i.type)
            self.constants[i.result] = kind, self._constant(i, kind)
        elif i.name == "OpVariable":
            self.variables[i.result] = self._variable(i)
        else:
            self._say(i)

    def _say(self, i: Instruction) -> None:
        """What stands at a module's beginning."""
        first = i.words[0] if i.words else 0
        match i.name:
            case "OpCapability":
                if first not in CAPABILITIES:
                    raise SpirvError(f"capability {first} is not simulated")
                self.capabilities.add(CAPABILITIES[first])
            case "OpExtension":
                self.extensions.add(string(i.words)[0])
                if self.extensions - {MATRICES}:
                    raise SpirvError(f"{self.extensions - {MATRICES}} is not simulated")
            case "OpExtInstImport":
                if string(i.words)[0] != "GLSL.std.450":
                    raise SpirvError(f"instructions of {string(i.words)[0]} are not simulated")
                self.glsl = i.result
            case "OpMemoryModel":
                if tuple(i.words) not in _MODELS:
                    raise SpirvError("a memory model but GLSL's and Vulkan's is not simulated")
                self.vulkan = i.words[1] == 3
                if self.vulkan:
                    self.need("VulkanMemoryModel", "the memory model")
            case "OpEntryPoint":
                self.entry = i.words[1]
                self.symbol, size = string(i.words[2:])
                self.interface = frozenset(i.words[2 + size :])
            case "OpExecutionMode":
                if i.words[1] != 17 or i.words[3:] != (1, 1):
                    raise SpirvError("a mode but LocalSize n 1 1 is not simulated")
                self.threads = i.words[2]
            case "OpDecorate":
                self._decorate(self.decorations.setdefault(first, {}), i.words[1:])
            case "OpMemberDecorate":
                self._decorate(self.members.setdefault((first, i.words[1]), {}), i.words[2:])
            case _:
                raise SpirvError(f"{i.name} stands outside of a function")

    def _decorate(self, known: dict[int, tuple[int, ...]], words: Sequence[int]) -> None:
        if words[0] not in _DECORATIONS:
            raise SpirvError(f"decoration {words[0]} is not simulated")
        known[words[0]] = tuple(words[1:])

    # Types.

    def _type(self, i: Instruction) -> Type:
        w = i.words
        match i.name:
            case "OpTypeVoid":
                return Void()
            case "OpTypeBool":
                return BOOL
            case "OpTypeInt" | "OpTypeFloat":
                return self._scalar(i)
            case "OpTypeVector":
                of = self.type(w[0])
                assert isinstance(of, Scalar)
                return Vector(of, w[1])
            case "OpTypeArray" | "OpTypeRuntimeArray":
                length = self.number(w[1]) if i.name == "OpTypeArray" else None
                stride = self.decorations.get(i.result, {}).get(ARRAY_STRIDE)
                return Array(self.type(w[0]), length, None if stride is None else stride[0])
            case "OpTypeStruct":
                told = [self.members.get((i.result, n), {}).get(OFFSET) for n in range(len(w))]
                members = tuple(map(self.type, w))
                return Struct(members, tuple(None if t is None else t[0] for t in told))
            case "OpTypePointer":
                return Pointer(w[0], self.type(w[1]))
            case "OpTypeFunction":
                return Function(self.type(w[0]), tuple(map(self.type, w[1:])))
        return self._matrix(w)

    def _scalar(self, i: Instruction) -> Scalar:
        bits, *signed = i.words
        kind = "float" if i.name == "OpTypeFloat" else "int" if signed[0] else "uint"
        if (kind == "float" and bits == 8) or bits not in (8, 16, 32):
            raise SpirvError(f"{kind}{bits} is not simulated")
        if bits < 32:
            wants = "Float16" if kind == "float" else f"StorageBuffer{bits}BitAccess"
            self.need(wants, f"{kind}{bits}")
        return Scalar(kind, bits)

    def _matrix(self, w: Sequence[int]) -> Matrix:
        self.need("CooperativeMatrixKHR", "a type of matrices")
        if MATRICES not in self.extensions or not self.vulkan:
            raise SpirvError(f"matrices want {MATRICES} and Vulkan's memory model")
        of, (scope, rows, columns, use) = self.type(w[0]), map(self.number, w[1:])
        if scope != _SUBGROUP or use not in (0, 1, 2) or not isinstance(of, Scalar):
            raise SpirvError("a matrix must be a subgroup's, of numbers, and have a use")
        return Matrix(of, rows, columns, use)

    # Constants.

    def _constant(self, i: Instruction, kind: Type) -> str:
        title = cpp(kind)
        match i.name, kind:
            case "OpConstantTrue" | "OpConstantFalse", Scalar("bool"):
                return "true" if i.name == "OpConstantTrue" else "false"
            case "OpConstant", Scalar("float", bits):
                return f"std::bit_cast<{title}>((uint{bits}_t){i.words[0]}u)"
            case "OpConstant", Scalar("int" | "uint"):
                self.numbers[i.result] = i.words[0]
                return f"({title}){i.words[0]}u"
            case "OpConstantComposite", Matrix():
                (one,) = i.words
                return f"{title}::filled({self._part(one, kind.of)})"
            case "OpConstantNull", Matrix():
                return f"{title}::filled(({cpp(kind.of)})0)"
            case "OpConstantComposite", Vector():
                parts = ", ".join(self._part(word, kind.of) for word in i.words)
                return f"{title}{{{{{parts}}}}}"
            case "OpConstantNull", Scalar() | Vector():
                return f"{title}{{}}"
        raise SpirvError(f"{i.name} of {kind} is not simulated")

    def _part(self, id: int, kind: Type) -> str:
        known, text = self.constants.get(id, (None, ""))
        if known != kind:
            raise SpirvError(f"%{id} is no constant of {kind}")
        return text

    # Variables.

    def _variable(self, i: Instruction) -> Variable:
        kind, storage = self.type(i.type), i.words[0]
        if not isinstance(kind, Pointer) or kind.storage != storage or len(i.words) > 1:
            raise SpirvError(f"the variable %{i.result} has a wrong type or a first value")
        said = self.decorations.get(i.result, {})
        if storage == STORAGE_BUFFER:
            if said.get(DESCRIPTOR_SET) != (0,) or BINDING not in said:
                raise SpirvError(f"the buffer %{i.result} is not bound in set 0")
            return Variable(storage, kind.to, f"spirv::buffer({said[BINDING][0]})")
        if storage == PUSH_CONSTANT:
            return Variable(storage, kind.to, "spirv::dims()")
        if storage == INPUT:
            return self._built_in(i, kind.to, said)
        if storage != WORKGROUP:
            raise SpirvError(f"variables of storage class {storage} are not simulated")
        first, size = self.shared_bytes, size_of(kind.to, self.lanes)
        self.shared_bytes = -(-(first + size) // _ALIGNED) * _ALIGNED
        begin = f"spirv::pool + {first}"
        text = f"spirv::Place{{{begin}, {begin}, {begin} + {size}}}"
        return Variable(storage, kind.to, text)

    def _built_in(self, i: Instruction, kind: Type, said: dict[int, tuple[int, ...]]) -> Variable:
        (number,) = said.get(BUILT_IN, (0,))
        if number not in _BUILT_INS:
            raise SpirvError(f"built-in {number} is not simulated")
        text, wanted, capability = _BUILT_INS[number]
        self.need(capability, f"built-in {number}")
        if kind != wanted:
            raise SpirvError(f"built-in {number} is {wanted}, and not {kind}")
        if number == _LOCAL_INDEX and "GroupNonUniformShuffle" in self.capabilities:
            text = _NEIGHBOURS
        return Variable(INPUT, kind, text)
