"""The element types of GGUF tensors: how many weights a block holds, and in how many bytes.

In: the number a file gives. Out: a GgmlType, or a sentence on why there is none. What the bytes of
a block mean is for `quantize.ggml_blocks` to say.
"""

from __future__ import annotations

from dataclasses import dataclass

from sterna.base.errors import UnsafeFile, UnsupportedModel


@dataclass(frozen=True, slots=True)
class GgmlType:
    """`weights` along the first (fastest) dimension make one block of `bytes`."""

    name: str
    number: int
    weights: int
    bytes: int


_ROWS = (
    GgmlType("F32", 0, 1, 4),
    GgmlType("F16", 1, 1, 2),
    GgmlType("Q4_0", 2, 32, 18),
    GgmlType("Q4_1", 3, 32, 20),
    GgmlType("Q5_0", 6, 32, 22),
    GgmlType("Q5_1", 7, 32, 24),
    GgmlType("Q8_0", 8, 32, 34),
    GgmlType("Q2_K", 10, 256, 84),
    GgmlType("Q3_K", 11, 256, 110),
    GgmlType("Q4_K", 12, 256, 144),
    GgmlType("Q5_K", 13, 256, 176),
    GgmlType("Q6_K", 14, 256, 210),
    GgmlType("IQ4_NL", 20, 32, 18),
    GgmlType("F64", 28, 1, 8),
    GgmlType("BF16", 30, 1, 2),
    GgmlType("MXFP4", 39, 32, 17),
)
GGML_TYPES: dict[int, GgmlType] = {row.number: row for row in _ROWS}

# Types that other programs read or once read; a file that has them is honest, but not for us.
_FOREIGN = {
    4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
    19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32",
    27: "I64", 29: "IQ1_M", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 34: "TQ1_0",
    35: "TQ2_0", 36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8", 40: "NVFP4",
}  # fmt: skip


def ggml_type(number: int, source: str) -> GgmlType:
    """The type of that number; `source` names the tensor in errors.

    Raises UnsupportedModel for a type that Sterna does not read, UnsafeFile for a number that no
    type has.
    """
    found = GGML_TYPES.get(number)
    if found is not None:
        return found
    known = ", ".join(row.name for row in _ROWS)
    if number in _FOREIGN:
        raise UnsupportedModel(
            f"{source} has the type {_FOREIGN[number]}, which Sterna cannot read; known: {known}; "
            "get the model in one of these"
        )
    raise UnsafeFile(f"{source} has the unknown type {number}; known: {known}")
