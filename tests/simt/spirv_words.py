"""A SPIR-V module's words as instructions.

In: a module in binary form. Out: its instructions in order, each with its name, the type and the id
of its result, and its other words. Knows what compute kernels use, by the specification's numbers
and not by those of the writer that is tested.

Source: "SPIR-V Specification" 1.5, sections 2.3 and 3; SPV_KHR_cooperative_matrix.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# What stands before an instruction's other words: the type of its result, its id, or nothing.
_NOTHING = {
    10: "OpExtension", 14: "OpMemoryModel", 15: "OpEntryPoint", 16: "OpExecutionMode",
    17: "OpCapability", 56: "OpFunctionEnd", 62: "OpStore", 71: "OpDecorate",
    72: "OpMemberDecorate", 224: "OpControlBarrier", 246: "OpLoopMerge", 247: "OpSelectionMerge",
    249: "OpBranch", 250: "OpBranchConditional", 253: "OpReturn", 254: "OpReturnValue",
    4458: "OpCooperativeMatrixStoreKHR",
}  # fmt: skip
_RESULT = {
    11: "OpExtInstImport", 19: "OpTypeVoid", 20: "OpTypeBool", 21: "OpTypeInt", 22: "OpTypeFloat",
    23: "OpTypeVector", 28: "OpTypeArray", 29: "OpTypeRuntimeArray", 30: "OpTypeStruct",
    32: "OpTypePointer", 33: "OpTypeFunction", 248: "OpLabel", 4456: "OpTypeCooperativeMatrixKHR",
}  # fmt: skip
_TYPED = {
    12: "OpExtInst", 41: "OpConstantTrue", 42: "OpConstantFalse", 43: "OpConstant",
    44: "OpConstantComposite", 46: "OpConstantNull", 54: "OpFunction", 55: "OpFunctionParameter",
    57: "OpFunctionCall", 59: "OpVariable", 61: "OpLoad", 65: "OpAccessChain",
    81: "OpCompositeExtract", 83: "OpCopyObject", 109: "OpConvertFToU", 110: "OpConvertFToS",
    111: "OpConvertSToF", 112: "OpConvertUToF", 113: "OpUConvert", 114: "OpSConvert",
    124: "OpBitcast", 126: "OpSNegate", 127: "OpFNegate", 128: "OpIAdd", 129: "OpFAdd",
    130: "OpISub", 131: "OpFSub", 132: "OpIMul", 133: "OpFMul", 134: "OpUDiv", 135: "OpSDiv",
    136: "OpFDiv", 137: "OpUMod", 138: "OpSRem", 164: "OpLogicalEqual", 165: "OpLogicalNotEqual",
    166: "OpLogicalOr", 167: "OpLogicalAnd", 168: "OpLogicalNot", 169: "OpSelect", 170: "OpIEqual",
    171: "OpINotEqual", 172: "OpUGreaterThan", 173: "OpSGreaterThan", 176: "OpULessThan",
    177: "OpSLessThan", 178: "OpULessThanEqual", 179: "OpSLessThanEqual", 180: "OpFOrdEqual",
    183: "OpFUnordNotEqual", 184: "OpFOrdLessThan", 186: "OpFOrdGreaterThan",
    188: "OpFOrdLessThanEqual", 194: "OpShiftRightLogical", 195: "OpShiftRightArithmetic",
    196: "OpShiftLeftLogical", 197: "OpBitwiseOr", 198: "OpBitwiseXor", 199: "OpBitwiseAnd",
    200: "OpNot", 202: "OpBitFieldSExtract", 203: "OpBitFieldUExtract",
    346: "OpGroupNonUniformShuffleXor", 4457: "OpCooperativeMatrixLoadKHR",
    4459: "OpCooperativeMatrixMulAddKHR",
}  # fmt: skip
_NAMES = _NOTHING | _RESULT | _TYPED
_HEADER, _MAGIC, _VERSIONS = 5, 0x07230203, (0x00010400, 0x00010500, 0x00010600)


class SpirvError(Exception):
    """A module that is wrong, or that has what the simulator does not know."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """`type` and `result` are ids, 0 where there is none."""

    name: str
    type: int
    result: int
    words: tuple[int, ...]


def instructions(module: bytes) -> list[Instruction]:
    """All of a module; SpirvError where it is not one, or names an id twice or beyond its bound."""
    if len(module) % 4 or len(module) < 4 * _HEADER:
        raise SpirvError("a module is not a number of words")
    magic, version, _, bound, schema, *words = struct.unpack(f"<{len(module) // 4}I", module)
    if (magic, schema) != (_MAGIC, 0) or version not in _VERSIONS:
        raise SpirvError("a module does not begin as SPIR-V 1.4 to 1.6 does")
    found = list(_split(words))
    results = [i.result for i in found if i.result]
    if len(set(results)) != len(results) or any(not 0 < r < bound for r in results):
        raise SpirvError("an id is given twice, or is not below the module's bound")
    return found


def _split(words: Sequence[int]) -> Iterator[Instruction]:
    at = 0
    while at < len(words):
        size, code = words[at] >> 16, words[at] & 0xFFFF
        name = _NAMES.get(code)
        if name is None:
            raise SpirvError(f"instruction {code} is not simulated")
        kind, result = int(code in _TYPED), int(code not in _NOTHING)
        if size < 1 + kind + result or at + size > len(words):
            raise SpirvError(f"{name} has not the words that it should have")
        own = words[at + 1 : at + size]
        yield Instruction(
            name,
            own[0] if kind else 0,
            own[kind] if result else 0,
            tuple(own[kind + result :]),
        )
        at += size


def string(words: Sequence[int]) -> tuple[str, int]:
    """A string, and how many words it takes."""
    data = struct.pack(f"<{len(words)}I", *words)
    text = data[: data.index(b"\0")]
    return text.decode(), len(text) // 4 + 1
