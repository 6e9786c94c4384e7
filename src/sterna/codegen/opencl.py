"""The renderer of OpenCL: kernels in OpenCL C 1.2, compiled by the device's driver at load.

Nothing beyond the standard is asked for, but by a row with subgroups: f16 is stored and converted,
never computed in; barriers and local memory only.
"""

from __future__ import annotations

from sterna.base.dtype import BF16, F16, F32, I32, U32, DType
from sterna.codegen.bundle import SourceRenderer
from sterna.codegen.c_math import group_math
from sterna.codegen.cstyle import CStyle, Signature

_TYPES = """
#pragma OPENCL FP_CONTRACT OFF
typedef float f32;
typedef char i8;
typedef uchar u8;
typedef short i16;
typedef ushort u16;
typedef int i32;
typedef uint u32;
typedef long i64;
typedef ulong u64;
#define STERNA_MAYBE static inline
#define bits_f32(x) as_float(x)
#define bits_u32(x) as_uint(x)
#define fma_f32(a, b, c) fma(a, b, c)
#define sqrt_f32(x) sqrt(x)
#define load_four(T, to, from) do { \
        const T found = *(const __global T *)(from); \
        (to)[0] = found.s0, (to)[1] = found.s1, (to)[2] = found.s2, (to)[3] = found.s3; \
    } while (0)
#define load_u32x2(to, from) do { \
        const uint2 found = *(const __global uint2 *)(from); \
        (to)[0] = found.s0, (to)[1] = found.s1; \
    } while (0)
#define load_u32x4(to, from) load_four(uint4, to, from)
#define load_i32x4(to, from) load_four(int4, to, from)
#define load_f32x4(to, from) load_four(float4, to, from)
#define load_u16x4(to, from) load_four(ushort4, to, from)
#ifdef cl_intel_subgroups
#define swap_f32(x, distance) intel_sub_group_shuffle_xor(x, (u32)(distance))
#else
#define swap_f32(x, distance) sub_group_shuffle_xor(x, (u32)(distance))
#endif
#define all_threads() barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE)
#ifdef POCL_DEVICE_ADDRESS_BITS
// PoCL 3.1 adds barriers of its own to a kernel that waits in a branch or a loop. It looks for
// their places from ours backwards up to the one before, which it knows only in a block without
// other code; past it, it may come to a branch of some threads. So branches of none stand around.
#define STERNA_GROUP const bool none_ = get_num_groups(0) == 0;
#define nobody() if (none_) __asm__ volatile("")
#define group_barrier() { nobody(); all_threads(); nobody(); }
#else
#define STERNA_GROUP
#define group_barrier() all_threads();
#endif
STERNA_MAYBE f32 f32_from_f16(u16 x) { return vload_half(0, (const __private half *)&x); }
STERNA_MAYBE u16 f16_from_f32(f32 x) {
    u16 r;
    vstore_half_rte(x, 0, (__private half *)&r);
    return r;
}
"""
_SUBGROUP = 16  # threads, of kernels that swap: drivers choose a size by themselves otherwise


class OpenCL(CStyle):
    """OpenCL C."""

    VECTORS = frozenset({(U32, 2), *((d, 4) for d in (U32, I32, F32, F16, BF16))})

    def head(self, s: Signature) -> str:
        const = ("const ", "")
        parts = [
            f"__global {const[writes]}{self.TYPES[b.dtype]} *restrict {title}"
            for b, title, writes in s.buffers
        ]
        parts += [f"const i32 {d}" for d in s.dims]
        size = f"__attribute__((reqd_work_group_size({s.threads}, 1, 1)))"
        if self.kernel.lanes:
            size += f" __attribute__((intel_reqd_sub_group_size({_SUBGROUP})))"
        return f"__kernel {size} void {s.symbol}({', '.join(parts)}) {{ STERNA_GROUP"

    def shared(self, dtype: DType, title: str, size: int) -> str:
        return f"__local {self.TYPES[dtype]} {title}[{size}];"

    def group_index(self) -> str:
        return "(i32)get_group_id(0)"

    def thread_index(self) -> str:
        return "(i32)get_local_id(0)"

    def unrolled(self) -> str:
        return "#pragma unroll"

    def barrier(self) -> str:
        return "group_barrier()"


RENDERER = SourceRenderer(".cl", OpenCL, _TYPES + group_math())
