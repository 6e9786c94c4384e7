"""The renderer of CUDA: kernels in CUDA C++ that includes no header.

One text for three compilers: the clang that makes PTX of it (STERNA_BARE: it is given no header of
CUDA's, so the prelude says what the words mean), NVRTC with -fmad=false, as contraction would
change results, and the tests' simulator (STERNA_SIMT), which brings its own prelude.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import gcd

from sterna.base.dtype import BF16, F16, F32, I32, U32, DType
from sterna.base.target import MatrixUnit
from sterna.codegen.c_math import group_math
from sterna.codegen.cstyle import CStyle, Signature
from sterna.codegen.gpu_code import PTX_TOOLS, MachineCodeRenderer, ptx_or_fatbin
from sterna.codegen.warpgroup import OCTETS, warpgroup_product
from sterna.ir.expr import Buffer, Expr
from sterna.ir.linear import Sum
from sterna.ir.loop import ForKind

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
#define __uint_as_float(x) __builtin_bit_cast(f32, (u32)(x))
#define __float_as_uint(x) __builtin_bit_cast(u32, (f32)(x))
#define __fmaf_rn(a, b, c) __builtin_fmaf(a, b, c)
#define __fsqrt_rn(x) __builtin_sqrtf(x)
#define __shfl_xor_sync(mask, x, distance) __nvvm_shfl_sync_bfly_f32(mask, x, distance, 31)
struct Index { u32 x; };
#define blockIdx (Index{(u32)__nvvm_read_ptx_sreg_ctaid_x()})
#define threadIdx (Index{(u32)__nvvm_read_ptx_sreg_tid_x()})
#endif
#define STERNA_MAYBE static __device__ __forceinline__
#ifndef STERNA_SIMT
STERNA_MAYBE f32 bits_f32(u32 x) { return __uint_as_float(x); }
STERNA_MAYBE u32 bits_u32(f32 x) { return __float_as_uint(x); }
STERNA_MAYBE f32 fma_f32(f32 a, f32 b, f32 c) { return __fmaf_rn(a, b, c); }
STERNA_MAYBE f32 sqrt_f32(f32 x) { return __fsqrt_rn(x); }
#ifdef STERNA_BARE // where an asm stands between stores that could be one, clang leaves them
STERNA_MAYBE f32 f32_from_f16(u16 x) { return (f32)__builtin_bit_cast(_Float16, x); }
STERNA_MAYBE u16 f16_from_f32(f32 x) { return __builtin_bit_cast(u16, (_Float16)x); }
STERNA_MAYBE u16 f16_from_whole(i32 above, u16 base) {
    const _Float16 whole = __builtin_bit_cast(_Float16, (u16)(0x6400 | above));
    return __builtin_bit_cast(u16, (_Float16)(whole - __builtin_bit_cast(_Float16, base)));
}
#else
STERNA_MAYBE f32 f32_from_f16(u16 x) {
    f32 r;
    asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(x));
    return r;
}
STERNA_MAYBE u16 f16_from_f32(f32 x) {
    u16 r;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(x));
    return r;
}
STERNA_MAYBE u16 f16_from_whole(i32 above, u16 base) {
    u16 r;
    asm("sub.f16 %0, %1, %2;" : "=h"(r) : "h"((u16)(0x6400 | above)), "h"(base));
    return r;
}
#endif
STERNA_MAYBE f32 swap_f32(f32 x, i32 distance, u32 warp) {
    return __shfl_xor_sync(warp, x, distance);
}
typedef u32 __attribute__((may_alias)) halves;
STERNA_MAYBE void mma_16x8x16(f32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
STERNA_MAYBE void mma_16x8x16_bf16(f32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
STERNA_MAYBE void mma_16x8x8(f32 (&c)[4], const u32 (&a)[2], u32 b) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(b));
}
#endif
"""
# Four neighbours with one load, or two; C++ that clang takes for AMD too. `aligned` tells compilers
# where neighbours in shared memory begin, who else would store them one by one.
FOURS = r"""
#ifndef STERNA_SIMT
template <int N, class T> STERNA_MAYBE T *aligned(T *first) {
    return (T *)__builtin_assume_aligned(first, N);
}
template <class T> struct alignas(4 * sizeof(T)) Four { T at[4]; };
template <class T> STERNA_MAYBE void load_four(T *to, const T *from) {
    const Four<T> found = *(const Four<T> *)from;
    to[0] = found.at[0], to[1] = found.at[1], to[2] = found.at[2], to[3] = found.at[3];
}
struct alignas(8) Two { u32 at[2]; };
STERNA_MAYBE void load_u32x2(u32 *to, const u32 *from) {
    const Two found = *(const Two *)from;
    to[0] = found.at[0], to[1] = found.at[1];
}
STERNA_MAYBE void load_u32x4(u32 *to, const u32 *from) { load_four(to, from); }
STERNA_MAYBE void load_i32x4(i32 *to, const i32 *from) { load_four(to, from); }
STERNA_MAYBE void load_f32x4(f32 *to, const f32 *from) { load_four(to, from); }
STERNA_MAYBE void load_u16x4(u16 *to, const u16 *from) { load_four(to, from); }
#endif
"""

# c += a b on a warp's tensor core. a and b are rows of 16-bit floats along k; fragments are those
# of the PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type" and for mma.m16n8k8.
_SMALL_UNIT = r"""
STERNA_MAYBE void multiply_16x8x8(f32 &c0, f32 &c1, f32 &c2, f32 &c3,
                                  const u16 *a, i32 a_row, const u16 *b, i32 b_row) {
    const i32 lane = (i32)(threadIdx.x & 31u), row = lane >> 2, k = (lane & 3) * 2;
    const u16 *x = a + row * a_row + k;
    f32 c[4] = {c0, c1, c2, c3};
    const u32 left[2] = {*(const halves *)x, *(const halves *)(x + 8 * a_row)};
    mma_16x8x8(c, left, *(const halves *)(b + row * b_row + k));
    c0 = c[0], c1 = c[1], c2 = c[2], c3 = c[3];
}
"""
# @ is where the name says the dtype: fragments lie alike.
_UNIT = r"""
STERNA_MAYBE void multiply_16x8x16@(f32 &c0, f32 &c1, f32 &c2, f32 &c3,
                                   const u16 *a, i32 a_row, const u16 *b, i32 b_row) {
    const i32 lane = (i32)(threadIdx.x & 31u), row = lane >> 2, k = (lane & 3) * 2;
    const u16 *x = a + row * a_row + k, *y = b + row * b_row + k;
    f32 c[4] = {c0, c1, c2, c3};
    const u32 left[4] = {*(const halves *)x, *(const halves *)(x + 8 * a_row),
                         *(const halves *)(x + 8), *(const halves *)(x + 8 * a_row + 8)};
    const u32 right[2] = {*(const halves *)y, *(const halves *)(y + 8)};
    mma_16x8x16@(c, left, right);
    c0 = c[0], c1 = c[1], c2 = c[2], c3 = c[3];
}
"""
_WARP = 32
_VECTOR = 16  # bytes


def by_dtype(unit: str) -> str:
    """What multiplies with a unit, for f16 and for bf16."""
    return unit.replace("@", "") + unit.replace("@", "_bf16")


@dataclass
class Cuda(CStyle):
    """CUDA C++. `written` are the variables of loops that are written out."""

    HALVES = True
    VECTORS = frozenset({(U32, 2), *((d, 4) for d in (U32, I32, F32, F16, BF16))})

    written: set[str] = field(default_factory=set)

    def head(self, s: Signature) -> str:
        const = ("const ", "")
        parts = [
            f"{const[writes]}{self.TYPES[b.dtype]} *__restrict__ {title}"
            for b, title, writes in s.buffers
        ]
        parts += [f"const i32 {d}" for d in s.dims]
        bound = f"__launch_bounds__({s.threads})"
        return f'extern "C" __global__ void {bound} {s.symbol}({", ".join(parts)}) {{'

    def shared(self, dtype: DType, title: str, size: int) -> str:
        # So that compilers store neighbours at once.
        return f"alignas(16) __shared__ {self.TYPES[dtype]} {title}[{size}];"

    def count(self, var: str, end: str, kind: ForKind) -> None:
        if kind is ForKind.UNROLL:
            self.written.add(var)
        super().count(var, end, kind)

    def store(self, buffer: Buffer, index: tuple[Expr, ...], value: Expr) -> None:
        """To shared memory as to a neighbour of what the other turns of a written loop store."""
        if buffer.scope != "shared":
            super().store(buffer, index, value)
            return
        text, place = self.text(value), self.place(buffer, index)
        number = self.simplifier.sum(self.simplifier.expr(self.flat(buffer, index)))
        for lane, factor in number.terms.items():
            first = number.drop(lane)
            size = _begins(first) * buffer.dtype.bytes
            if factor == 1 and self.text(lane) in self.written and size > buffer.dtype.bytes:
                there = self.element(buffer, self.text(self.simplifier.build(first, I32)))
                place = f"aligned<{min(_VECTOR, size)}>(&{there})[{self.text(lane)}]"
        self.line(f"{place} = {text};")

    def multiplier(self, title: str, unit: MatrixUnit, dtype: DType) -> None:
        if unit.octets and (text := warpgroup_product(title, unit, dtype)) not in self.before:
            self.before.append(text)

    def group_index(self) -> str:
        return "(i32)blockIdx.x"

    def thread_index(self) -> str:
        return "(i32)threadIdx.x"

    def barrier(self) -> str:
        return "publish_shared(); __syncthreads();" if self.octets else "__syncthreads();"

    def unrolled(self) -> str:
        return "#pragma unroll"

    def swapped(self, value: str, distance: int) -> str:
        """With the mask of the threads that a warp has: the last may not be full."""
        full, rest = divmod(self.kernel.threads, _WARP)
        warp, last = "0xffffffffu", f"{(1 << rest) - 1:#x}u"
        if rest:
            warp = f"({self.thread_index()} < {full * _WARP} ? {warp} : {last})" if full else last
        return f"swap_f32({value}, {distance}, {warp})"


def _begins(first: Sum) -> int:
    """The power of two whose multiple a number surely is, up to a vector's elements."""
    common = gcd(_VECTOR, first.constant, *first.terms.values())
    return common & -common


RENDERER = MachineCodeRenderer(
    ".cu",
    Cuda,
    _PRELUDE + FOURS + _SMALL_UNIT + by_dtype(_UNIT) + OCTETS + group_math(),
    ptx_or_fatbin,
    toolkit=PTX_TOOLS,
)
