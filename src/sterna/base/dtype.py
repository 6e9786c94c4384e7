"""Scalar element types: one frozen record each, looked up by name.

What a dtype means to numpy and how many bits it takes; nothing about how a target spells it
(codegen) or how a scheme packs it (quantize).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from sterna.base.errors import Error


@dataclass(frozen=True, slots=True)
class DType:
    """An element type. `kind` is one of "float", "int", "uint", "bool"; `bits` is its size."""

    name: str
    kind: str
    bits: int

    @property
    def bytes(self) -> int:
        return max(1, self.bits // 8)

    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    @property
    def is_int(self) -> bool:
        return self.kind in ("int", "uint")

    @property
    def numpy(self) -> np.dtype[Any]:
        return np.dtype(ml_dtypes.bfloat16) if self.name == "bf16" else np.dtype(_NUMPY[self.name])

    @property
    def long_name(self) -> str:
        """The name in MLC and numpy files, e.g. "float16" for f16."""
        return _LONG[self.name]

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return self.name


F32 = DType("f32", "float", 32)
F16 = DType("f16", "float", 16)
BF16 = DType("bf16", "float", 16)
F64 = DType("f64", "float", 64)
I8 = DType("i8", "int", 8)
U8 = DType("u8", "uint", 8)
I16 = DType("i16", "int", 16)
U16 = DType("u16", "uint", 16)
I32 = DType("i32", "int", 32)
U32 = DType("u32", "uint", 32)
I64 = DType("i64", "int", 64)
U64 = DType("u64", "uint", 64)
BOOL = DType("bool", "bool", 8)

DTYPES: dict[str, DType] = {
    d.name: d for d in (F32, F16, BF16, F64, I8, U8, I16, U16, I32, U32, I64, U64, BOOL)
}

_NUMPY = {
    "f32": "<f4", "f16": "<f2", "f64": "<f8", "i8": "i1", "u8": "u1", "i16": "<i2", "u16": "<u2",
    "i32": "<i4", "u32": "<u4", "i64": "<i8", "u64": "<u8", "bool": "?",
}  # fmt: skip
_LONG = {
    "f32": "float32", "f16": "float16", "bf16": "bfloat16", "f64": "float64", "i8": "int8",
    "u8": "uint8", "i16": "int16", "u16": "uint16", "i32": "int32", "u32": "uint32",
    "i64": "int64", "u64": "uint64", "bool": "bool",
}  # fmt: skip
_BY_LONG = {long: DTYPES[short] for short, long in _LONG.items()}


def dtype(name: str) -> DType:
    """Look a dtype up by its short ("f16") or long ("float16") name."""
    found = DTYPES.get(name) or _BY_LONG.get(name)
    if found is None:
        raise Error(f"dtype {name!r} is not known; known: {', '.join(DTYPES)}")
    return found
