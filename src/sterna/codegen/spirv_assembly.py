"""SPIR-V's text as its binary form.

In: the text of one module, in the notation of the Khronos assembler: a line for each instruction,
`%result = OpName %type operands`. Out: its words. Knows the instructions and names that compute
kernels use, which are the tables below, and nothing of what they mean; CodegenError for others.

Source: "SPIR-V Specification" 1.5, sections 2.3 and 3; SPV_KHR_cooperative_matrix.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from sterna.base.errors import CodegenError

MAGIC = 0x07230203
_VERSION = 0x00010500
_OPCODES = {
    "OpExtension": 10, "OpExtInstImport": 11, "OpExtInst": 12, "OpMemoryModel": 14,
    "OpEntryPoint": 15,
    "OpExecutionMode": 16, "OpCapability": 17, "OpTypeVoid": 19, "OpTypeBool": 20,
    "OpTypeInt": 21, "OpTypeFloat": 22, "OpTypeVector": 23, "OpTypeArray": 28,
    "OpTypeRuntimeArray": 29, "OpTypeStruct": 30, "OpTypePointer": 32, "OpTypeFunction": 33,
    "OpConstantTrue": 41, "OpConstantFalse": 42, "OpConstant": 43,
    "OpConstantComposite": 44, "OpFunction": 54,
    "OpFunctionParameter": 55, "OpFunctionEnd": 56, "OpFunctionCall": 57, "OpVariable": 59,
    "OpLoad": 61, "OpStore": 62, "OpAccessChain": 65, "OpDecorate": 71, "OpMemberDecorate": 72,
    "OpCompositeExtract": 81, "OpCopyObject": 83, "OpConvertFToU": 109, "OpConvertFToS": 110,
    "OpConvertSToF": 111, "OpConvertUToF": 112, "OpUConvert": 113, "OpSConvert": 114,
    "OpBitcast": 124, "OpSNegate": 126, "OpFNegate": 127, "OpIAdd": 128, "OpFAdd": 129,
    "OpISub": 130, "OpFSub": 131, "OpIMul": 132, "OpFMul": 133, "OpUDiv": 134, "OpSDiv": 135,
    "OpFDiv": 136, "OpUMod": 137, "OpSRem": 138, "OpLogicalEqual": 164, "OpLogicalNotEqual": 165,
    "OpLogicalOr": 166, "OpLogicalAnd": 167, "OpLogicalNot": 168, "OpSelect": 169, "OpIEqual": 170,
    "OpINotEqual": 171, "OpUGreaterThan": 172, "OpSGreaterThan": 173, "OpULessThan": 176,
    "OpSLessThan": 177, "OpULessThanEqual": 178, "OpSLessThanEqual": 179, "OpFOrdEqual": 180,
    "OpFUnordNotEqual": 183, "OpFOrdLessThan": 184, "OpFOrdGreaterThan": 186,
    "OpFOrdLessThanEqual": 188, "OpShiftRightLogical": 194, "OpShiftRightArithmetic": 195,
    "OpShiftLeftLogical": 196, "OpBitwiseOr": 197, "OpBitwiseXor": 198, "OpBitwiseAnd": 199,
    "OpNot": 200, "OpBitFieldSExtract": 202, "OpBitFieldUExtract": 203,
    "OpControlBarrier": 224, "OpLoopMerge": 246, "OpSelectionMerge": 247, "OpLabel": 248,
    "OpBranch": 249, "OpBranchConditional": 250, "OpReturn": 253, "OpReturnValue": 254,
    "OpGroupNonUniformShuffleXor": 346, "OpTypeCooperativeMatrixKHR": 4456,
    "OpCooperativeMatrixLoadKHR": 4457, "OpCooperativeMatrixStoreKHR": 4458,
    "OpCooperativeMatrixMulAddKHR": 4459,
}  # fmt: skip
_FLOAT = re.compile(r"-?0x[01]\.[0-9a-f]*p[+-]\d+")  # as float.hex writes it
_UNTYPED = {"OpExtInstImport", "OpLabel"}  # have a result without a type, as all OpType... do
_NAMES = {
    # Capabilities
    "Shader": 1, "StorageBuffer16BitAccess": 4433, "StorageBuffer8BitAccess": 4448,
    "GroupNonUniform": 61, "GroupNonUniformShuffle": 65, "Float16": 9, "VulkanMemoryModel": 5345,
    "CooperativeMatrixKHR": 6022,
    # Addressing, memory model, execution model, execution mode
    "Logical": 0, "GLSL450": 1, "Vulkan": 3, "GLCompute": 5, "LocalSize": 17,
    # Storage classes
    "Input": 1, "Workgroup": 4, "Function": 7, "PushConstant": 9, "StorageBuffer": 12,
    # Decorations and built-ins
    "Block": 2, "ArrayStride": 6, "BuiltIn": 11, "Coherent": 23, "NonWritable": 24, "Binding": 33,
    "DescriptorSet": 34, "Offset": 35, "NoContraction": 42, "WorkgroupId": 26,
    "LocalInvocationIndex": 29, "SubgroupId": 40, "SubgroupLocalInvocationId": 41,
    # Of an access to memory
    "NonPrivatePointer": 32,
    # Control of functions, loops and selections
    "None": 0, "Unroll": 1,
    # GLSL.std.450
    "FAbs": 4, "Floor": 8, "Sqrt": 31, "Fma": 50, "UnpackHalf2x16": 62,
}  # fmt: skip


def assemble(text: str) -> bytes:
    """A module's words, little-endian. Comments begin with a semicolon."""
    ids: dict[str, int] = {}
    body = b"".join(_instruction(line, ids) for line in _lines(text))
    return struct.pack("<5I", MAGIC, _VERSION, 0, len(ids) + 1, 0) + body


def _lines(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        words = line.partition(";")[0].split()
        if words:
            yield words


def _instruction(words: list[str], ids: dict[str, int]) -> bytes:
    result: list[str] = []
    if len(words) > 2 and words[1] == "=":
        result, words = words[:1], words[2:]
    name, *operands = words
    if name not in _OPCODES:
        raise CodegenError(f"{name} is not an instruction that this assembler knows")
    if result:  # behind the type, where there is one
        at = 0 if name in _UNTYPED or name.startswith("OpType") else 1
        operands[at:at] = result
    pieces = [_operand(word, ids) for word in operands]
    size = 1 + sum(map(len, pieces)) // 4
    return struct.pack("<I", size << 16 | _OPCODES[name]) + b"".join(pieces)


def _operand(word: str, ids: dict[str, int]) -> bytes:
    if word.startswith("%"):
        return struct.pack("<I", ids.setdefault(word, len(ids) + 1))
    if word.startswith('"'):
        data = word[1:-1].encode() + b"\0"
        return data + bytes(-len(data) % 4)
    if word in _NAMES:
        return struct.pack("<I", _NAMES[word])
    if _FLOAT.fullmatch(word):
        return struct.pack("<f", float.fromhex(word))
    try:
        return struct.pack("<I", int(word) & 0xFFFFFFFF)
    except ValueError:
        raise CodegenError(f"{word!r} is not an operand that this assembler knows") from None
