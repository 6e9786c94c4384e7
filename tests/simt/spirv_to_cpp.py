"""SPIR-V modules as C++ over spirv.h, for tests that execute them.

In: a module's words, the threads of a subgroup, and the shapes of matrices that are multiplied.
Out: the C++ of a kernel. Blocks are labels, branches are gotos, and every result is a variable.
SpirvError where the module does what the simulator does not know, what it did not declare that it
would do, or what leaves a device free to give other bits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from spirv_declarations import (
    COHERENT,
    FUNCTION,
    INPUT,
    NO_CONTRACTION,
    NON_WRITABLE,
    PUSH_CONSTANT,
    STORAGE_BUFFER,
    WORKGROUP,
    Declarations,
)
from spirv_types import (
    F16,
    F32,
    Array,
    Function,
    Matrix,
    Pointer,
    Scalar,
    Struct,
    Type,
    Vector,
    cpp,
    size_of,
)
from spirv_words import Instruction, SpirvError, instructions

from sterna.runtime.vulkan_code import Shape

# Operands, results. U, S: whole numbers of 32 bits, taken as unsigned or signed; F: f32; B: bool;
# R, of results alone: f32 or f16.
_OPERATIONS = {
    "OpIAdd": ("UU", "{} + {}", "U"), "OpISub": ("UU", "{} - {}", "U"),
    "OpIMul": ("UU", "{} * {}", "U"), "OpSNegate": ("U", "0u - {}", "U"),
    "OpUDiv": ("UU", "spirv::udiv({}, {})", "U"), "OpUMod": ("UU", "spirv::umod({}, {})", "U"),
    "OpSDiv": ("SS", "spirv::sdiv({}, {})", "U"), "OpSRem": ("SS", "spirv::srem({}, {})", "U"),
    "OpBitwiseAnd": ("UU", "{} & {}", "U"), "OpBitwiseOr": ("UU", "{} | {}", "U"),
    "OpBitwiseXor": ("UU", "{} ^ {}", "U"), "OpNot": ("U", "~{}", "U"),
    "OpShiftLeftLogical": ("UU", "spirv::left({}, {})", "U"),
    "OpShiftRightLogical": ("UU", "spirv::right({}, {})", "U"),
    "OpShiftRightArithmetic": ("SU", "spirv::right_signed({}, {})", "U"),
    "OpBitFieldUExtract": ("UUU", "spirv::field({}, {}, {})", "U"),
    "OpBitFieldSExtract": ("SUU", "spirv::field_signed({}, {}, {})", "U"),
    "OpFAdd": ("FF", "{} + {}", "F"), "OpFSub": ("FF", "{} - {}", "F"),
    "OpFMul": ("FF", "{} * {}", "F"), "OpFDiv": ("FF", "{} / {}", "F"),
    "OpFNegate": ("F", "-{}", "F"),
    "OpConvertFToU": ("F", "spirv::whole<uint32_t>({})", "U"),
    "OpConvertFToS": ("F", "spirv::whole<int32_t>({})", "U"),
    "OpConvertSToF": ("S", "{}", "R"), "OpConvertUToF": ("U", "{}", "R"),
    "OpIEqual": ("UU", "{} == {}", "B"), "OpINotEqual": ("UU", "{} != {}", "B"),
    "OpULessThan": ("UU", "{} < {}", "B"), "OpULessThanEqual": ("UU", "{} <= {}", "B"),
    "OpUGreaterThan": ("UU", "{} > {}", "B"), "OpSLessThan": ("SS", "{} < {}", "B"),
    "OpSLessThanEqual": ("SS", "{} <= {}", "B"), "OpSGreaterThan": ("SS", "{} > {}", "B"),
    "OpFOrdEqual": ("FF", "{} == {}", "B"), "OpFUnordNotEqual": ("FF", "{} != {}", "B"),
    "OpFOrdLessThan": ("FF", "{} < {}", "B"), "OpFOrdLessThanEqual": ("FF", "{} <= {}", "B"),
    "OpFOrdGreaterThan": ("FF", "{} > {}", "B"),
    "OpLogicalEqual": ("BB", "{} == {}", "B"), "OpLogicalNotEqual": ("BB", "{} != {}", "B"),
    "OpLogicalAnd": ("BB", "{} && {}", "B"), "OpLogicalOr": ("BB", "{} || {}", "B"),
    "OpLogicalNot": ("B", "!{}", "B"),
}  # fmt: skip
_EXTENDED = {
    4: ("F", "__builtin_fabsf({})"), 8: ("F", "__builtin_floorf({})"),
    31: ("F", "__builtin_sqrtf({})"), 50: ("FFF", "__builtin_fmaf({}, {}, {})"),
}  # fmt: skip
_UNPACK_HALVES = 62
_CASTS = {"U": "(uint32_t)", "S": "(int32_t)", "F": "", "B": ""}
_CONTRACTED = ("OpFAdd", "OpFSub", "OpFMul")  # a device may, where nothing forbids it
_SUBGROUP, _WORKGROUP = 3, 2  # scopes
_NON_PRIVATE = 0x20  # of an access
_ORDERED, _OF_WORKGROUP, _SEEN = 0x8, 0x100, 0x6000  # of a barrier: acquire and release; available
_IGNORED = ("OpLoopMerge", "OpSelectionMerge", "OpFunctionEnd")
_FORMAT = {"U": ("int", "uint"), "S": ("int", "uint"), "F": ("float",), "B": ("bool",)}


@dataclass(frozen=True, slots=True)
class Kernel:
    symbol: str
    shared_bytes: int
    text: str


def kernel_of(module: bytes, number: int, lanes: int, shapes: frozenset[Shape]) -> Kernel:
    """A module as C++, with `run_<symbol>` as what a device calls. `number`: in its library."""
    declared, functions = Declarations(lanes), list[list[Instruction]]()
    for i in instructions(module):
        if i.name == "OpFunction":
            functions.append([])
        if functions:
            functions[-1].append(i)
        else:
            declared.add(i)
    if not re.fullmatch(r"[A-Za-z_]\w*", declared.symbol):
        raise SpirvError(f"{declared.symbol!r} is no name of an entry point")
    made = _Code(declared, f"m{number}_", shapes)
    text = made.functions(functions)
    call = f"spirv::launch(m{number}_f{declared.entry}, groups, {declared.threads}, given)"
    entry = f'extern "C" const char *run_{declared.symbol}(unsigned groups, spirv::Bound given)'
    return Kernel(declared.symbol, declared.shared_bytes, f"{text}\n{entry} {{ return {call}; }}\n")


def _is(kind: Type, letter: str) -> bool:
    """Whether operands of this letter may have the type."""
    if letter == "R":
        return kind in (F16, F32)
    bits = 8 if letter == "B" else 32
    return isinstance(kind, Scalar) and kind.bits == bits and kind.kind in _FORMAT[letter]


@dataclass(slots=True)
class _Code:
    """The functions of a module as they are written."""

    d: Declarations
    prefix: str
    shapes: frozenset[Shape]
    values: dict[int, tuple[Type, str]] = field(default_factory=dict)
    roots: dict[int, int] = field(default_factory=dict)  # the variable that a pointer is of
    direct: set[int] = field(default_factory=set)  # variables that are C++'s own
    chained: set[int] = field(default_factory=set)
    stored: set[int] = field(default_factory=set)
    loaded: set[int] = field(default_factory=set)
    private: set[int] = field(default_factory=set)  # buffers with an access that barriers skip
    known: dict[int, tuple[str, Function]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    sites: int = 0

    def functions(self, found: Sequence[Sequence[Instruction]]) -> str:
        for id, (kind, text) in self.d.constants.items():
            self.values[id] = kind, text
        for id, variable in self.d.variables.items():
            self.values[id] = Pointer(variable.storage, variable.to), variable.text
            self.roots[id] = id
        self.chained = {i.words[0] for f in found for i in f if i.name == "OpAccessChain"}
        for function in found:
            kind = self.d.type(function[0].words[1])
            assert isinstance(kind, Function)
            arguments = ", ".join(map(cpp, kind.arguments))
            title = f"static {cpp(kind.result)} {self.prefix}f{function[0].result}"
            self.known[function[0].result] = f"{title}({arguments});", kind
        heads = [head for head, _ in self.known.values()]
        bodies = [self.function(each) for each in found]
        self.check_buffers()
        return "\n".join([*heads, *bodies])

    def function(self, found: Sequence[Instruction]) -> str:
        first, kind = found[0], self.known[found[0].result][1]
        parameters = [i for i in found if i.name == "OpFunctionParameter"]
        for i in parameters:
            self.values[i.result] = self.d.type(i.type), f"x{i.result}"
        given = ", ".join(f"{cpp(self.d.type(i.type))} x{i.result}" for i in parameters)
        self.names, self.lines = [], []
        for i in found[1 + len(parameters) :]:
            try:
                self.instruction(i)
            except SpirvError as error:
                raise SpirvError(f"{i.name} %{i.result or i.words}: {error}") from error
        title = f"static {cpp(kind.result)} {self.prefix}f{first.result}({given}) {{"
        enter = ["spirv::enter();"] if first.result == self.d.entry else []
        return "\n".join([title, *self.names, *enter, *self.lines, "}"])

    def check_buffers(self) -> None:
        """What threads write and read has to be seen by others, though not all of it must."""
        for root in self.stored & self.loaded:
            if self.d.variables[root].storage != STORAGE_BUFFER:
                continue
            coherent = COHERENT in self.d.decorations.get(root, {})
            if root in self.private if self.d.vulkan else not coherent:
                raise SpirvError(f"%{root} is read and written, and may not be seen by others")

    # Values.

    def value(self, id: int) -> tuple[Type, str]:
        if id not in self.values:
            raise SpirvError(f"%{id} is no value that is known here")
        return self.values[id]

    def operand(self, id: int, letter: str) -> str:
        kind, text = self.value(id)
        if not _is(kind, letter):
            raise SpirvError(f"%{id} is {kind}")
        return f"{_CASTS[letter]}{text}"

    def set(self, i: Instruction, text: str, kind: Type | None = None) -> None:
        """The result of an instruction; `kind`: what its type must be."""
        told = self.d.type(i.type)
        if kind is not None and told != kind:
            raise SpirvError(f"the result is {told}, and should be {kind}")
        title = f"x{i.result}"
        self.names.append(f"{cpp(told)} {title};")
        self.lines.append(f"{title} = {text};")
        self.values[i.result] = told, title

    def site(self) -> int:
        self.sites += 1
        return self.sites

    # Instructions.

    def instruction(self, i: Instruction) -> None:
        w = i.words
        if i.name in _OPERATIONS:
            self.operation(i)
        elif i.name in _IGNORED:
            pass
        elif i.name == "OpLabel":
            self.lines.append(f"L{i.result}: ;")
        elif i.name == "OpBranch":
            self.lines.append(f"goto L{w[0]};")
        elif i.name == "OpBranchConditional":
            cond = self.operand(w[0], "B")
            self.lines.append(f"if ({cond}) goto L{w[1]}; else goto L{w[2]};")
        elif i.name == "OpReturn":
            self.lines.append("return;")
        elif i.name == "OpReturnValue":
            self.lines.append(f"return {self.value(w[0])[1]};")
        elif i.name == "OpControlBarrier":
            self.barrier(*map(self.d.number, w))
        elif i.name == "OpVariable":
            self.variable(i)
        elif i.name == "OpAccessChain":
            self.chain(i)
        elif i.name == "OpLoad":
            self.load(i)
        elif i.name == "OpStore":
            self.store(w[0], w[1], w[2:])
        elif "Matrix" in i.name:
            self.matrices(i)
        else:
            self.other(i)

    def operation(self, i: Instruction) -> None:
        letters, form, result = _OPERATIONS[i.name]
        kind = self.d.type(i.type)
        if len(letters) != len(i.words) or not _is(kind, result):
            raise SpirvError(f"a result of {kind} of {len(i.words)} operands")
        decorated = self.d.decorations.get(i.result, {})
        if i.name in _CONTRACTED and NO_CONTRACTION not in decorated:
            raise SpirvError("a device may contract it")
        operands = [self.operand(id, each) for id, each in zip(i.words, letters, strict=True)]
        self.set(i, f"({cpp(kind)})({form.format(*operands)})")

    def other(self, i: Instruction) -> None:
        """Instructions of more than one type of operand."""
        w, kind = i.words, self.d.type(i.type) if i.type else None
        match i.name:
            case "OpCopyObject":
                self.set(i, self.value(w[0])[1], self.value(w[0])[0])
            case "OpSelect":
                (a, x), (b, y) = self.value(w[1]), self.value(w[2])
                if a != b:
                    raise SpirvError(f"a choice of {a} and {b}")
                self.set(i, f"{self.operand(w[0], 'B')} ? {x} : {y}", a)
            case "OpCompositeExtract":
                whole, text = self.value(w[0])
                if not isinstance(whole, Vector) or len(w) != 2 or w[1] >= whole.lanes:
                    raise SpirvError(f"part {w[1:]} of {whole}")
                self.set(i, f"{text}.v[{w[1]}]", whole.of)
            case "OpBitcast":
                have, text = self.value(w[0])
                assert kind is not None
                if size_of(have, 1) != size_of(kind, 1):
                    raise SpirvError(f"the bits of {have} as {kind}")
                self.set(i, f"spirv::bitcast<{cpp(kind)}>({text})")
            case "OpUConvert" | "OpSConvert":
                self.convert(i, signed=i.name == "OpSConvert")
            case "OpExtInst":
                self.extended(i)
            case "OpFunctionCall":
                self.call(i)
            case "OpGroupNonUniformShuffleXor":
                self.d.need("GroupNonUniformShuffle", "it")
                if self.d.number(w[0]) != _SUBGROUP:
                    raise SpirvError("a scope but the subgroup's")
                x, distance = self.operand(w[1], "F"), self.operand(w[2], "U")
                self.set(i, f"simt::swap({self.site()}, {x}, {distance})", F32)
            case _:
                raise SpirvError("is not simulated")

    def convert(self, i: Instruction, *, signed: bool) -> None:
        have, text = self.value(i.words[0])
        to = self.d.type(i.type)
        parts = [k.of if isinstance(k, Vector) else k for k in (have, to)]
        if any(not isinstance(p, Scalar) or p.kind not in ("int", "uint") for p in parts):
            raise SpirvError(f"{have} to {to}")
        if signed != (isinstance(parts[0], Scalar) and parts[0].kind == "int"):
            raise SpirvError(f"{have} is extended otherwise than its type says")
        self.set(i, f"spirv::converted<{cpp(to)}>({text})")

    def extended(self, i: Instruction) -> None:
        glsl, number, *given = i.words
        if glsl != self.d.glsl or number not in (*_EXTENDED, _UNPACK_HALVES):
            raise SpirvError(f"instruction {number} of GLSL.std.450 is not simulated")
        if number == _UNPACK_HALVES:
            text = self.operand(given[0], "U")
            self.set(i, f"spirv::unpack_halves({text})", Vector(F32, 2))
            return
        letters, form = _EXTENDED[number]
        operands = [self.operand(id, each) for id, each in zip(given, letters, strict=True)]
        self.set(i, form.format(*operands), F32)

    def call(self, i: Instruction) -> None:
        name, *given = i.words
        if name not in self.known:
            raise SpirvError(f"%{name} is no function")
        kind = self.known[name][1]
        values = [self.value(id) for id in given]
        if tuple(k for k, _ in values) != kind.arguments:
            raise SpirvError("arguments of other types")
        text = ", ".join(text for _, text in values)
        self.set(i, f"{self.prefix}f{name}({text})", kind.result)

    def barrier(self, threads: int, memory: int, meaning: int) -> None:
        """Of a group. What was written is there for others if all of `wanted` is asked for."""
        if threads != _WORKGROUP:
            raise SpirvError("a barrier but a group's")
        wanted = _ORDERED | _OF_WORKGROUP | (_SEEN if self.d.vulkan else 0)
        publishes = memory == _WORKGROUP and meaning & wanted == wanted
        self.lines.append(f"spirv::barrier({self.site()}, {str(publishes).lower()});")

    # Memory.

    def variable(self, i: Instruction) -> None:
        kind, title = self.d.type(i.type), f"v{i.result}"
        if not isinstance(kind, Pointer) or kind.storage != FUNCTION or len(i.words) > 1:
            raise SpirvError("a variable of a function with a wrong type or a first value")
        self.roots[i.result] = i.result
        if i.result in self.chained:
            size = size_of(kind.to, self.d.lanes)
            self.names.append(f"alignas(16) char {title}[{size}];")
            place = f"spirv::Place{{{title}, {title}, {title} + {size}}}"
            self.values[i.result] = kind, place
        else:
            self.direct.add(i.result)
            self.names.append(f"{cpp(kind.to)} {title};")
            self.values[i.result] = kind, title
        self.lines.append(f"spirv::poison({title});")

    def pointer(self, id: int) -> tuple[Pointer, str, int]:
        """Its type, the place, and the variable that it is of."""
        kind, text = self.value(id)
        if not isinstance(kind, Pointer) or id not in self.roots:
            raise SpirvError(f"%{id} is no pointer into a variable that is known")
        root = self.roots[id]
        if root in self.d.variables and root not in self.d.interface:
            raise SpirvError(f"%{root} is used, and the entry point does not name it")
        return kind, text, root

    def chain(self, i: Instruction) -> None:
        base, text, root = self.pointer(i.words[0])
        kind, told = base.to, base.storage in (PUSH_CONSTANT, STORAGE_BUFFER)
        for id in i.words[1:]:
            index, number = self.value(id)
            if not _is(index, "U"):
                raise SpirvError(f"an index of {index}")
            step: int | None
            if isinstance(kind, Struct):
                part = self.d.number(id)
                step, number, length = kind.offsets[part], "1", -1
                kind = kind.members[part]
            elif isinstance(kind, Array):
                length = -1 if kind.length is None else kind.length
                step = kind.stride if told else size_of(kind.of, self.d.lanes)
                kind = kind.of
            elif isinstance(kind, Vector):
                step, length, kind = kind.of.bits // 8, kind.lanes, kind.of
            else:
                raise SpirvError(f"a part of {kind}")
            if step is None:
                raise SpirvError("nothing tells where a part lies")
            text = f"spirv::chain({text}, {number}, {step}, {length})"
        self.set(i, text, Pointer(base.storage, kind))
        self.roots[i.result] = root

    def touch(self, id: int, words: Sequence[int], kind: Type, *, writes: bool) -> tuple[int, str]:
        """The storage class and place of an access to a value of this type."""
        pointer, text, root = self.pointer(id)
        if pointer.to != kind:
            raise SpirvError(f"{kind} in memory of {pointer.to}")
        shared = pointer.storage in (WORKGROUP, STORAGE_BUFFER)
        mask, *more = words or (0,)
        if more or mask & ~_NON_PRIVATE:
            raise SpirvError(f"an access with {mask:#x} is not simulated")
        if mask and not (self.d.vulkan and shared):
            raise SpirvError("a pointer that is not private wants Vulkan's memory model")
        if shared and self.d.vulkan and not mask:
            if pointer.storage == WORKGROUP:
                raise SpirvError("what threads share is touched by a private pointer")
            self.private.add(root)
        if writes and NON_WRITABLE in self.d.decorations.get(root, {}):
            raise SpirvError(f"%{root} is not writable")
        number = kind.of if isinstance(kind, Vector) else kind
        small = isinstance(number, Scalar) and number.kind in ("int", "uint") and number.bits < 32
        if small and pointer.storage != STORAGE_BUFFER:
            raise SpirvError(f"{number} lies in buffers alone")
        if pointer.storage != FUNCTION:
            (self.stored if writes else self.loaded).add(root)
        return pointer.storage, text

    def load(self, i: Instruction) -> None:
        kind = self.d.type(i.type)
        storage, place = self.touch(i.words[0], i.words[1:], kind, writes=False)
        if i.words[0] in self.direct or storage == INPUT:
            self.set(i, place)
        else:
            self.set(i, f"spirv::load<{cpp(kind)}, {storage}>({place})")

    def store(self, id: int, given: int, words: Sequence[int]) -> None:
        kind, text = self.value(given)
        storage, place = self.touch(id, words, kind, writes=True)
        if storage in (INPUT, PUSH_CONSTANT):
            raise SpirvError("it is not writable")
        if id in self.direct:
            self.lines.append(f"{place} = {text};")
        else:
            self.lines.append(f"spirv::store<{cpp(kind)}, {storage}>({place}, {text});")

    # Matrices.

    def matrices(self, i: Instruction) -> None:
        self.d.need("CooperativeMatrixKHR", "it")
        w = i.words
        if i.name == "OpCooperativeMatrixLoadKHR":
            kind = self.d.type(i.type)
            lies, place, stride = self.lying(kind, w[0], w[1:], writes=False)
            self.set(
                i, f"spirv::matrix_load<{cpp(kind)}, {lies}>({self.site()}, {place}, {stride})"
            )
        elif i.name == "OpCooperativeMatrixStoreKHR":
            kind, text = self.value(w[1])
            lies, place, stride = self.lying(kind, w[0], w[2:], writes=True)
            name = f"spirv::matrix_store<{cpp(kind)}, {lies}>"
            self.lines.append(f"{name}({self.site()}, {place}, {stride}, {text});")
        else:
            self.multiply(i)

    def lying(
        self, kind: Type, id: int, words: Sequence[int], *, writes: bool
    ) -> tuple[str, str, str]:
        """Storage class and layout, the first element's place, and the stride."""
        if not isinstance(kind, Matrix) or len(words) < 2:
            raise SpirvError("what is no matrix, or has no stride")
        storage, place = self.touch(id, words[2:], kind.of, writes=writes)
        layout = self.d.number(words[0])
        if layout not in (0, 1):
            raise SpirvError(f"layout {layout} is not simulated")
        stride = self.operand(words[1], "U")
        return f"{storage}, {str(layout == 1).lower()}", place, stride

    def multiply(self, i: Instruction) -> None:
        if len(i.words) != 3:
            raise SpirvError("its operands are not simulated")
        found = [self.value(id) for id in i.words]
        a, b, c = (kind for kind, _ in found)
        if not isinstance(a, Matrix) or not isinstance(b, Matrix) or not isinstance(c, Matrix):
            raise SpirvError("what is no matrix")
        if (a.use, b.use, c.use) != (0, 1, 2):
            raise SpirvError(f"{a} times {b} to {c}")
        if (a.rows, a.columns, b.columns) != (c.rows, b.rows, c.columns) or a.of != b.of:
            raise SpirvError(f"{a} times {b} to {c}")
        names = [f"f{k.of.bits}" if k.of in (F16, F32) else str(k.of) for k in (a, c)]
        shape = Shape(c.rows, c.columns, a.columns, *names)
        if shape not in self.shapes:
            raise SpirvError(f"the device multiplies no {shape}")
        x, y, z = (text for _, text in found)
        self.set(i, f"spirv::multiply_add({self.site()}, {x}, {y}, {z})", c)
