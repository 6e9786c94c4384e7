"""The renderer of Metal: kernels in the Metal shading language.

Compile without fast math; contraction is switched off in the source. What wants the standard
library stands in the prelude behind STERNA_SIMT, where the tests' simulator brings its own. Where
Xcode is installed, what its compiler makes of the source lies beside it in a library.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from sterna.base.dtype import BF16, F16, F32, I32, U32, DType
from sterna.base.target import Target
from sterna.codegen.bundle import SourceRenderer
from sterna.codegen.c_math import group_math
from sterna.codegen.cstyle import CStyle, Signature
from sterna.codegen.renderer import LibraryParts
from sterna.codegen.toolchain import run_tool
from sterna.codegen.toolkit import Toolkit

_XCODE = Toolkit(
    "metal compiler of Xcode's",
    ("xcrun",),
    adds="libraries hold finished code beside the source",
    without="libraries hold source, which the system compiles when a model is loaded",
    asks=("xcrun", "-sdk", "macosx", "-find", "metal"),
)
_COMPILE = ("-sdk", "macosx", "metal", "-O2", "-fno-fast-math", "-mmacosx-version-min=12.0")
_PRELUDE = r"""
#ifndef STERNA_SIMT
#include <metal_stdlib>
#include <metal_simdgroup_matrix>
#pragma METAL fp contract(off)
using namespace metal;
#endif
typedef float f32;
typedef signed char i8;
typedef unsigned char u8;
typedef short i16;
typedef unsigned short u16;
typedef int i32;
typedef unsigned int u32;
typedef long i64;
typedef unsigned long u64;
#define STERNA_MAYBE static inline
#ifndef STERNA_SIMT
STERNA_MAYBE f32 bits_f32(u32 x) { return as_type<f32>(x); }
STERNA_MAYBE u32 bits_u32(f32 x) { return as_type<u32>(x); }
STERNA_MAYBE f32 fma_f32(f32 a, f32 b, f32 c) { return precise::fma(a, b, c); }
STERNA_MAYBE f32 sqrt_f32(f32 x) { return precise::sqrt(x); }
STERNA_MAYBE f32 f32_from_f16(u16 x) { return (f32)as_type<half>(x); }
STERNA_MAYBE u16 f16_from_f32(f32 x) { return as_type<u16>((half)x); }
STERNA_MAYBE u16 f16_from_whole(i32 above, u16 base) {
    return as_type<u16>((half)(as_type<half>((u16)(0x6400 | above)) - as_type<half>(base)));
}
template <class T> STERNA_MAYBE void load_four(thread T *to, const device T *from) {
    const vec<T, 4> found = *(const device vec<T, 4> *)from;
    to[0] = found[0], to[1] = found[1], to[2] = found[2], to[3] = found[3];
}
STERNA_MAYBE void load_u32x2(thread u32 *to, const device u32 *from) {
    const uint2 found = *(const device uint2 *)from;
    to[0] = found[0], to[1] = found[1];
}
#define load_u32x4(to, from) load_four<u32>(to, from)
#define load_i32x4(to, from) load_four<i32>(to, from)
#define load_f32x4(to, from) load_four<f32>(to, from)
#define load_u16x4(to, from) load_four<u16>(to, from)
#define swap_f32(x, distance) simd_shuffle_xor(x, (u16)(distance))
STERNA_MAYBE void multiply_8x8x8(thread f32 &c0, thread f32 &c1, const threadgroup u16 *a,
                                 i32 a_row, const threadgroup u16 *b, i32 b_row) {
    simdgroup_half8x8 left, right;
    simdgroup_float8x8 c;
    simdgroup_load(left, (const threadgroup half *)a, (ulong)a_row);
    simdgroup_load(right, (const threadgroup half *)b, (ulong)b_row, ulong2(0, 0), true);
    c.thread_elements()[0] = c0, c.thread_elements()[1] = c1;
    simdgroup_multiply_accumulate(c, left, right, c);
    c0 = c.thread_elements()[0], c1 = c.thread_elements()[1];
}
#endif
"""


class Metal(CStyle):
    """The Metal shading language."""

    HALVES = True
    VECTORS = frozenset({(U32, 2), *((d, 4) for d in (U32, I32, F32, F16, BF16))})

    def head(self, s: Signature) -> str:
        const = ("const ", "")
        parts = [
            f"device {const[writes]}{self.TYPES[b.dtype]} *{title}"
            for b, title, writes in s.buffers
        ]
        parts += [f"constant i32 &{d}" for d in s.dims]
        parts = [f"{part} [[buffer({i})]]" for i, part in enumerate(parts)]
        parts += [
            "uint group_number [[threadgroup_position_in_grid]]",
            "uint thread_number [[thread_index_in_threadgroup]]",
        ]
        size = f"[[max_total_threads_per_threadgroup({s.threads})]]"
        return f"{size} kernel void {s.symbol}({', '.join(parts)}) {{"

    def shared(self, dtype: DType, title: str, size: int) -> str:
        return f"threadgroup {self.TYPES[dtype]} {title}[{size}];"

    def group_index(self) -> str:
        return "(i32)group_number"

    def thread_index(self) -> str:
        return "(i32)thread_number"

    def unrolled(self) -> str:
        return "#pragma unroll"

    def barrier(self) -> str:
        return "threadgroup_barrier(mem_flags::mem_device | mem_flags::mem_threadgroup);"


@dataclass(frozen=True, slots=True)
class MetalRenderer(SourceRenderer):
    """Source, and after a zero byte what Xcode makes of it, where that is installed."""

    def library_code(self, parts: LibraryParts, target: Target) -> bytes:
        source = self.library_source(parts).encode()
        tools = self.toolkit.found() if self.toolkit else ()
        return source + b"\0" + _finished(tools[0], source) if tools else source


def _finished(xcrun: str, source: bytes) -> bytes:
    """A metallib; ToolchainError where the compiler refuses the source."""
    with tempfile.TemporaryDirectory(prefix="sterna-gpu-") as name:
        folder = Path(name)
        (folder / "kernels.metal").write_bytes(source)
        run_tool([xcrun, *_COMPILE, "kernels.metal", "-o", "kernels.metallib"], folder)
        return (folder / "kernels.metallib").read_bytes()


RENDERER = MetalRenderer(".metal", Metal, _PRELUDE + group_math(), toolkit=_XCODE)
