"""The renderer of ROCm: kernels in HIP C++ that includes no header.

CUDA's spelling with the compiler's own builtins in the prelude. One text for the clang that makes
code objects of it (STERNA_BARE: without HIP's headers), for hipRTC with -ffp-contract=off, and for
the tests' simulator.
"""

from __future__ import annotations

from sterna.codegen.c_math import group_math
from sterna.codegen.cuda import FOURS, Cuda, by_dtype
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
STERNA_MAYBE u16 f16_from_whole(i32 above, u16 base) {
    const _Float16 whole = __builtin_bit_cast(_Float16, (u16)(0x6400 | above));
    return __builtin_bit_cast(u16, (_Float16)(whole - __builtin_bit_cast(_Float16, base)));
}
STERNA_MAYBE f32 swap_f32(f32 x, i32 distance, u32) {
    i32 lane = (i32)__builtin_amdgcn_mbcnt_hi(~0u, __builtin_amdgcn_mbcnt_lo(~0u, 0u));
    return bits_f32((u32)__builtin_amdgcn_ds_bpermute((lane ^ distance) << 2, (i32)bits_u32(x)));
}
typedef u32 __attribute__((may_alias)) halves;
typedef f32 vector4 __attribute__((ext_vector_type(4)));
typedef f32 vector8 __attribute__((ext_vector_type(8)));
typedef _Float16 halves4 __attribute__((ext_vector_type(4)));
typedef _Float16 halves8 __attribute__((ext_vector_type(8)));
typedef _Float16 halves16 __attribute__((ext_vector_type(16)));
typedef i16 shorts4 __attribute__((ext_vector_type(4)));
typedef i16 shorts8 __attribute__((ext_vector_type(8)));
typedef i16 shorts16 __attribute__((ext_vector_type(16)));
#if defined(__gfx90a__) || defined(__gfx942__)
STERNA_MAYBE void mfma_16x16x16(f32 (&c)[4], const u32 (&a)[2], const u32 (&b)[2]) {
    vector4 sum = {c[0], c[1], c[2], c[3]};
    sum = __builtin_amdgcn_mfma_f32_16x16x16f16(
        __builtin_bit_cast(halves4, a), __builtin_bit_cast(halves4, b), sum, 0, 0, 0);
    for (i32 i = 0; i < 4; i++) c[i] = sum[i];
}
STERNA_MAYBE void mfma_16x16x16_bf16(f32 (&c)[4], const u32 (&a)[2], const u32 (&b)[2]) {
    vector4 sum = {c[0], c[1], c[2], c[3]};
    sum = __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(
        __builtin_bit_cast(shorts4, a), __builtin_bit_cast(shorts4, b), sum, 0, 0, 0);
    for (i32 i = 0; i < 4; i++) c[i] = sum[i];
}
#endif
#if defined(__gfx1100__) || defined(__gfx1101__) || defined(__gfx1151__)
STERNA_MAYBE void wmma_16x16x16(f32 (&c)[8], const u32 (&a)[8], const u32 (&b)[8]) {
    vector8 sum = {c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]};
    sum = __builtin_amdgcn_wmma_f32_16x16x16_f16_w32(
        __builtin_bit_cast(halves16, a), __builtin_bit_cast(halves16, b), sum);
    for (i32 i = 0; i < 8; i++) c[i] = sum[i];
}
STERNA_MAYBE void wmma_16x16x16_bf16(f32 (&c)[8], const u32 (&a)[8], const u32 (&b)[8]) {
    vector8 sum = {c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]};
    sum = __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32(
        __builtin_bit_cast(shorts16, a), __builtin_bit_cast(shorts16, b), sum);
    for (i32 i = 0; i < 8; i++) c[i] = sum[i];
}
#endif
#if defined(__gfx1201__)
STERNA_MAYBE void wmma_16x16x16_halved(f32 (&c)[8], const u32 (&a)[4], const u32 (&b)[4]) {
    vector8 sum = {c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]};
    sum = __builtin_amdgcn_wmma_f32_16x16x16_f16_w32_gfx12(
        __builtin_bit_cast(halves8, a), __builtin_bit_cast(halves8, b), sum);
    for (i32 i = 0; i < 8; i++) c[i] = sum[i];
}
STERNA_MAYBE void wmma_16x16x16_halved_bf16(f32 (&c)[8], const u32 (&a)[4], const u32 (&b)[4]) {
    vector8 sum = {c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]};
    sum = __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32_gfx12(
        __builtin_bit_cast(shorts8, a), __builtin_bit_cast(shorts8, b), sum);
    for (i32 i = 0; i < 8; i++) c[i] = sum[i];
}
#endif
#endif
"""
# c += a b on a wave's matrix core: four elements of c in each of 64 threads on CDNA, eight in each
# of 32 on RDNA 3, where both halves of a wave bring the same rows of a and b, and on RDNA 4, where
# each half brings its half of k.
_UNIT = r"""
#if defined(__gfx90a__) || defined(__gfx942__) || defined(STERNA_SIMT)
STERNA_MAYBE void multiply_16x16x16@(f32 &c0, f32 &c1, f32 &c2, f32 &c3,
                                    const u16 *a, i32 a_row, const u16 *b, i32 b_row) {
    const i32 lane = (i32)(threadIdx.x & 63u), row = lane & 15, k = (lane >> 4) * 4;
    const halves *x = (const halves *)(a + row * a_row + k);
    const halves *y = (const halves *)(b + row * b_row + k);
    f32 c[4] = {c0, c1, c2, c3};
    const u32 left[2] = {x[0], x[1]}, right[2] = {y[0], y[1]};
    mfma_16x16x16@(c, left, right);
    c0 = c[0], c1 = c[1], c2 = c[2], c3 = c[3];
}
#endif
#if defined(__gfx1100__) || defined(__gfx1101__) || defined(__gfx1151__) || defined(STERNA_SIMT)
STERNA_MAYBE void multiply_16x16x16@(f32 &c0, f32 &c1, f32 &c2, f32 &c3,
                                    f32 &c4, f32 &c5, f32 &c6, f32 &c7,
                                    const u16 *a, i32 a_row, const u16 *b, i32 b_row) {
    const i32 row = (i32)(threadIdx.x & 15u);
    const halves *x = (const halves *)(a + row * a_row), *y = (const halves *)(b + row * b_row);
    f32 c[8] = {c0, c1, c2, c3, c4, c5, c6, c7};
    const u32 left[8] = {x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7]};
    const u32 right[8] = {y[0], y[1], y[2], y[3], y[4], y[5], y[6], y[7]};
    wmma_16x16x16@(c, left, right);
    c0 = c[0], c1 = c[1], c2 = c[2], c3 = c[3], c4 = c[4], c5 = c[5], c6 = c[6], c7 = c[7];
}
#endif
#if defined(__gfx1201__) || defined(STERNA_SIMT)
STERNA_MAYBE void multiply_16x16x16_halved@(f32 &c0, f32 &c1, f32 &c2, f32 &c3,
                                           f32 &c4, f32 &c5, f32 &c6, f32 &c7,
                                           const u16 *a, i32 a_row, const u16 *b, i32 b_row) {
    const i32 lane = (i32)(threadIdx.x & 31u), row = lane & 15, k = (lane >> 4) * 8;
    const halves *x = (const halves *)(a + row * a_row + k);
    const halves *y = (const halves *)(b + row * b_row + k);
    f32 c[8] = {c0, c1, c2, c3, c4, c5, c6, c7};
    const u32 left[4] = {x[0], x[1], x[2], x[3]}, right[4] = {y[0], y[1], y[2], y[3]};
    wmma_16x16x16_halved@(c, left, right);
    c0 = c[0], c1 = c[1], c2 = c[2], c3 = c[3], c4 = c[4], c5 = c[5], c6 = c[6], c7 = c[7];
}
#endif
"""


RENDERER = MachineCodeRenderer(
    ".hip", Cuda, _PRELUDE + FOURS + by_dtype(_UNIT) + group_math(), offload_bundle
)
