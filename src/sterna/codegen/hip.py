"""The renderer of ROCm: kernels in HIP C++ that includes no header.

CUDA's spelling with the compiler's own builtins in the prelude. Compile with -ffp-contract=off.
"""

from __future__ import annotations

from sterna.codegen.bundle import SourceRenderer
from sterna.codegen.c_math import group_math
from sterna.codegen.cuda import Cuda

_PRELUDE = r"""
typedef float f32;
typedef signed char i8;
typedef unsigned char u8;
typedef short i16;
typedef unsigned short u16;
typedef int i32;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;
#define STERNA_MAYBE static __device__ __forceinline__
#ifndef STERNA_SIMT
STERNA_MAYBE f32 bits_f32(u32 x) { return __builtin_bit_cast(f32, x); }
STERNA_MAYBE u32 bits_u32(f32 x) { return __builtin_bit_cast(u32, x); }
STERNA_MAYBE f32 fma_f32(f32 a, f32 b, f32 c) { return __builtin_fmaf(a, b, c); }
STERNA_MAYBE f32 sqrt_f32(f32 x) { return __builtin_sqrtf(x); }
STERNA_MAYBE f32 f32_from_f16(u16 x) { return (f32)__builtin_bit_cast(_Float16, x); }
STERNA_MAYBE u16 f16_from_f32(f32 x) { return __builtin_bit_cast(u16, (_Float16)x); }
#endif
"""


RENDERER = SourceRenderer(".hip", Cuda, _PRELUDE + group_math())
