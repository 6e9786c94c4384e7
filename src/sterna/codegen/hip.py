"""The renderer of ROCm: kernels in HIP C++ that includes no header.

CUDA's spelling with the compiler's own builtins in the prelude. Compile with -ffp-contract=off.
"""

from __future__ import annotations

from sterna.base.target import Target
from sterna.codegen.bundle import build_bundle, source_text
from sterna.codegen.c_math import group_math
from sterna.codegen.cstyle import GroupSource, render_groups
from sterna.codegen.cuda import Cuda
from sterna.codegen.renderer import LibraryParts
from sterna.ir.loop import PrimFunc

SOURCE_SUFFIX = ".hip"

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


def render_kernel(func: PrimFunc, target: Target) -> GroupSource:
    """See Renderer."""
    return render_groups(func, Cuda)


def library_source(parts: LibraryParts) -> str:
    """See Renderer."""
    return source_text(_PRELUDE + group_math(), parts)


def code(parts: LibraryParts) -> bytes:
    """The source itself: hipRTC, for the GPU that is there, compiles it when a model is loaded."""
    return library_source(parts).encode()


def build_library(parts: LibraryParts, target: Target) -> bytes:
    """See Renderer."""
    return build_bundle(parts, code(parts), target)


def build_version(target: Target) -> str:
    """See Renderer: no outside tool takes part."""
    return SOURCE_SUFFIX
