"""The renderer of ROCm: kernels in HIP C++ that includes no header.

CUDA's spelling with the compiler's own builtins in the prelude. One text for the clang that makes
code objects of it (STERNA_BARE: without HIP's headers), for hipRTC with -ffp-contract=off, and for
the tests' simulator.
"""

from __future__ import annotations

from sterna.codegen.c_math import group_math
from sterna.codegen.cuda import Cuda
from sterna.codegen.gpu_code import MachineCodeRenderer, offload_bundle

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
#ifdef STERNA_BARE
#define __global__ __attribute__((global))
#define __device__ __attribute__((device))
#define __shared__ __attribute__((shared))
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(n) __attribute__((launch_bounds(n)))
#define __restrict__ __restrict
struct Index { u32 x; };
#define blockIdx (Index{(u32)__builtin_amdgcn_workgroup_id_x()})
#define threadIdx (Index{(u32)__builtin_amdgcn_workitem_id_x()})
static __attribute__((device)) inline __attribute__((always_inline)) void __syncthreads() {
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
    __builtin_amdgcn_s_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}
#endif
#define STERNA_MAYBE static __device__ __forceinline__
#ifndef STERNA_SIMT
STERNA_MAYBE f32 bits_f32(u32 x) { return __builtin_bit_cast(f32, x); }
STERNA_MAYBE u32 bits_u32(f32 x) { return __builtin_bit_cast(u32, x); }
STERNA_MAYBE f32 fma_f32(f32 a, f32 b, f32 c) { return __builtin_fmaf(a, b, c); }
STERNA_MAYBE f32 sqrt_f32(f32 x) { return __builtin_sqrtf(x); }
STERNA_MAYBE f32 f32_from_f16(u16 x) { return (f32)__builtin_bit_cast(_Float16, x); }
STERNA_MAYBE u16 f16_from_f32(f32 x) { return __builtin_bit_cast(u16, (_Float16)x); }
STERNA_MAYBE f32 swap_f32(f32 x, i32 distance, u32) {
    i32 lane = (i32)__builtin_amdgcn_mbcnt_hi(~0u, __builtin_amdgcn_mbcnt_lo(~0u, 0u));
    return bits_f32((u32)__builtin_amdgcn_ds_bpermute((lane ^ distance) << 2, (i32)bits_u32(x)));
}
#endif
"""


RENDERER = MachineCodeRenderer(".hip", Cuda, _PRELUDE + group_math(), offload_bundle)
