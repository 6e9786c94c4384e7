"""C text of dot products of packed integers, one way for each instruction set that has one.

`dot2` takes an i32 for two i16, `dot4` for four i8, those of the second operand not negative; the
`_add` forms add the sum to a third operand, which is one instruction on CPUs with VNNI or with
NEON's dot products. `pair4` leaves what `dot4` adds up in two i16, which is one instruction on x86
without VNNI. `tile` adds the `dot4`s of two rows to two sums, which NEON's i8mm does at once. All
are exact, so all ways give the same bits. `dot2_bf16_add` adds the products of pairs of bf16, as
AVX-512's instruction for them does everywhere; `pair_bf16`, `codes_bf16` and `nibbles_bf16` make
such pairs. The compiler's own macros say which way there is: no target is named.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

_FUNCTIONS = ("dot2", "dot4", "dot2_add", "dot4_add", "pair4", "pair4_add")


def dots(lanes: int) -> str:
    """The functions for one lane count."""
    if lanes == 1:
        return _SCALAR + _bf16(1).replace("@", "")
    ways = "\n".join(_chain(lanes, name) for name in _FUNCTIONS)
    ways += _bf16(lanes) + (_TILE if lanes == 4 else "")
    return (_GCC_NAMES + ways if lanes == 16 else ways).replace("@", f"x{lanes}")


def _bf16(lanes: int) -> str:
    text = _BF16.replace("VECTOR", str(int(lanes in _X86))).replace("LANES", str(lanes))
    return text.replace("TABLE", ", ".join(_small_numbers()))


def _small_numbers() -> Iterator[str]:
    """0 to 15 and -16 to -1 as bf16, two in each i32."""
    numbers = [*range(16), *range(-16, 0)]
    for pair in zip(numbers[::2], numbers[1::2], strict=True):
        low, high = (struct.unpack("<I", struct.pack("<f", float(n)))[0] >> 16 for n in pair)
        yield f"(i32)0x{high << 16 | low:08x}"


_SCALAR = """
STERNA_MAYBE i32 dot2_i32(i32 a, i32 b) {
    return (i32)(i16)a * (i32)(i16)b + (a >> 16) * (b >> 16);
}
STERNA_MAYBE i32 dot4_i32(i32 a, i32 b) {
    i32 sum = 0;
    for (int i = 0; i < 32; i += 8) sum += (i32)(i8)(a >> i) * (i32)(i8)(b >> i);
    return sum;
}
STERNA_MAYBE i32 pair4_add_i32(i32 a, i32 b, i32 sum) {
    i32 low = (i32)(i8)a * (i32)(i8)b + (i32)(i8)(a >> 8) * (i32)(i8)(b >> 8);
    i32 high = (i32)(i8)(a >> 16) * (i32)(i8)(b >> 16) + (a >> 24) * (b >> 24);
    return (i32)(((u32)((sum >> 16) + high) << 16) | ((u32)(sum + low) & 0xffffu));
}
STERNA_MAYBE i32 pair4_i32(i32 a, i32 b) { return pair4_add_i32(a, b, 0); }
STERNA_MAYBE i32 dot2_add_i32(i32 a, i32 b, i32 sum) { return sum + dot2_i32(a, b); }
STERNA_MAYBE i32 dot4_add_i32(i32 a, i32 b, i32 sum) { return sum + dot4_i32(a, b); }
"""

_GCC_NAMES = """
#if !defined(__clang__)
#define __builtin_ia32_pmaddwd512(a, b) \\
    __builtin_ia32_pmaddwd512_mask(a, b, (i32@){0}, (u16)-1)
#define __builtin_ia32_pmaddubsw512(a, b) \\
    __builtin_ia32_pmaddubsw512_mask(a, b, (i16 __attribute__((vector_size(64)))){0}, (u32)-1)
#endif
"""

# By lane count: the macro of x86 instructions on registers of that width, and that of VNNI's.
_X86 = {
    4: ("__SSSE3__", "(defined(__AVX512VNNI__) && defined(__AVX512VL__)) || defined(__AVXVNNI__)"),
    8: ("__AVX2__", "(defined(__AVX512VNNI__) && defined(__AVX512VL__)) || defined(__AVXVNNI__)"),
    16: ("__AVX512BW__", "defined(__AVX512VNNI__)"),
}


def _chain(lanes: int, name: str) -> str:
    """One function: the first of its ways whose condition holds."""
    ways = [way for way in _ways(lanes, name) if way[0]]
    head = f"STERNA_MAYBE i32@ {name}_i32@(i32@ a, i32@ b{', i32@ sum' if '_' in name else ''}) {{"
    lines, word = [head], "#if"
    for condition, body in ways:
        lines += [f"{word} {condition}", body]
        word = "#elif"
    last = f"{_ADDED[name]}\n    return sum;" if name in _ADDED else _ANYWHERE[name]
    return "\n".join([*lines, *(["#else", last, "#endif"] if ways else [last]), "}"])


def _ways(lanes: int, name: str) -> list[tuple[str, str]]:
    """(condition, statements) of each instruction that does it."""
    wide, vnni = _X86.get(lanes, ("", ""))
    ways = []
    if lanes in _X86 and name in _VNNI:
        for compiler, builtin in _VNNI[name].items():
            text = f"    return (i32@)__builtin_ia32_{builtin}(sum, b, a);"
            where = f"({vnni}) && {compiler}"
            ways.append((where, text.format(bits=32 * lanes, lanes=lanes)))
    if lanes in _X86 and name in _MULTIPLY_ADD:
        text = _MULTIPLY_ADD[name].replace("BITS", str(32 * lanes))
        ways.append((f"defined({wide})", text.replace("BYTES", str(4 * lanes))))
    if lanes in _X86 and name in _ADDED:
        ways.append((f"defined({wide})", f"{_ADDED[name]}\n{_IN_TURN}\n    return sum;"))
    return ways + (_NARROW.get(name, []) if lanes == 4 else [])


_VNNI = {  # gcc and clang call the builtins differently
    "dot2_add": {"defined(__clang__)": "vpdpwssd{bits}", "1": "vpdpwssd_v{lanes}si"},
    "dot4_add": {"defined(__clang__)": "vpdpbusd{bits}", "1": "vpdpbusd_v{lanes}si"},
}
_MULTIPLY_ADD = {
    "dot2": """
    typedef i16 half __attribute__((vector_size(BYTES)));
    return (i32@)__builtin_ia32_pmaddwdBITS((half)a, (half)b);
""".strip("\n"),
    # Bytes of b are 0 to 127: two products then fit the 16 bits in which x86 adds them.
    "dot4": """
    typedef char bytes __attribute__((vector_size(BYTES)));
    typedef i16 half __attribute__((vector_size(BYTES)));
    half sums = (half)__builtin_ia32_pmaddubswBITS((bytes)b, (bytes)a);
    return (i32@)__builtin_ia32_pmaddwdBITS(sums, (half){} + 1);
""".strip("\n"),
    "pair4": """
    typedef char bytes __attribute__((vector_size(BYTES)));
    return (i32@)__builtin_ia32_pmaddubswBITS((bytes)b, (bytes)a);
""".strip("\n"),
}
_NARROW = {  # registers of 16 bytes, on other machines than x86
    "dot2": [
        ("defined(__wasm_simd128__)", """
    typedef i16 half __attribute__((vector_size(16)));
    return (i32@)__builtin_wasm_dot_s_i32x4_i16x8((half)a, (half)b);
""".strip("\n")),
        ("defined(__aarch64__)", """
    typedef i16 half __attribute__((vector_size(16)));
    typedef i32 wide __attribute__((vector_size(32)));
    wide products = __builtin_convertvector((half)a, wide) * __builtin_convertvector((half)b, wide);
    return __builtin_shufflevector(products, products, 0, 2, 4, 6)
        + __builtin_shufflevector(products, products, 1, 3, 5, 7);
""".strip("\n")),
    ],
    "dot4_add": [
        ("defined(__ARM_FEATURE_DOTPROD)", """
    __asm__("sdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(a), "w"(b));
    return sum;
""".strip("\n")),
    ],
    "dot4": [("defined(__ARM_FEATURE_DOTPROD)", """
    i32@ sum = {0};
    __asm__("sdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(a), "w"(b));
    return sum;
""".strip("\n"))],
}  # fmt: skip
# Bytes in pairs as i16, those at even places and those between: two sums of two products.
_ANYWHERE = {
    "dot2": """
    i32@ low = (i32@)((u32@)a << 16) >> 16, other = (i32@)((u32@)b << 16) >> 16;
    return low * other + (a >> 16) * (b >> 16);
""".strip("\n"),
    "dot4": """
    typedef i16 half __attribute__((vector_size(sizeof(i32@))));
    i32@ even = (i32@)((half)((half)a << 8) >> 8), odd = (i32@)((half)a >> 8);
    return dot2_i32@(even, b & 0x00ff00ff) + dot2_i32@(odd, (b >> 8) & 0x00ff00ff);
""".strip("\n"),
    "pair4": """
    typedef i16 half __attribute__((vector_size(sizeof(i32@))));
    i32@ even = (i32@)((half)((half)a << 8) >> 8), odd = (i32@)((half)a >> 8);
    return (i32@)((half)even * (half)(b & 0x00ff00ff) + (half)odd * (half)((b >> 8) & 0x00ff00ff));
""".strip("\n"),
}
_ADDED = {
    "pair4_add": """
    typedef i16 half __attribute__((vector_size(sizeof(i32@))));
    sum = (i32@)((half)sum + (half)pair4_i32@(a, b));
""".strip("\n"),
    "dot2_add": "    sum += dot2_i32@(a, b);",
    "dot4_add": "    sum += dot4_i32@(a, b);",
}
# As VDPBF16PS does it (Intel SDM): a fused multiply-add of the high halves, then one of the low, to
# nearest even, with subnormal numbers as zeros in and out. A product of two bf16 is exact in f32 if
# it is no subnormal, so only of those do bits depend on whether there is an fma.
_BF16 = """
STERNA_MAYBE i32@ pair_bf16_i32@(f32@ a, f32@ b) {
    return (i32@)(u32_from_u16@(bf16_from_f32@(a)) | (u32_from_u16@(bf16_from_f32@(b)) << 16));
}
STERNA_MAYBE i32@ codes_bf16_i32@(i32@ codes, i32@ zero) {
    u32@ low = bits_u32@(f32_from_i32@((codes & 0xffff) - zero));
    u32@ high = bits_u32@(f32_from_i32@((codes >> 16) - zero));
    return (i32@)((low >> 16) | (high & 0xffff0000u));  // nothing is rounded
}
STERNA_MAYBE i32@ nibbles_bf16_i32@(i32@ codes, i32@ zero) {
#if defined(__AVX512BW__) && LANES == 16
    const i32@ whole = {TABLE};
    typedef i16 halves __attribute__((vector_size(64)));
    halves at = (halves)codes - (halves)(zero | (zero << 16));
    __asm__("vpermw %1, %2, %0" : "=v"(at) : "v"(whole), "v"(at));
    return (i32@)at;
#else
    return codes_bf16_i32@(codes, zero);
#endif
}
STERNA_MAYBE f32@ normal_f32@(f32@ x) {
    u32@ bits = bits_u32@(x);
    return choose_f32@((bits & 0x7f800000u) == 0, bits_f32@(bits & 0x80000000u), x);
}
STERNA_MAYBE f32@ dot2_bf16_add_f32@(i32@ a, i32@ b, f32@ sum) {
#if defined(__AVX512BF16__) && VECTOR
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
#else
    f32@ x = normal_f32@(bits_f32@((u32@)a & 0xffff0000u));
    f32@ y = normal_f32@(bits_f32@((u32@)b & 0xffff0000u));
    sum = normal_f32@(fma_f32@(x, y, normal_f32@(sum)));
    x = normal_f32@(bits_f32@((u32@)a << 16));
    y = normal_f32@(bits_f32@((u32@)b << 16));
    return normal_f32@(fma_f32@(x, y, sum));
#endif
}
"""
# Two rows of 8 bytes, side by side from x and y on, times columns of 8 whose halves are in `first`
# and `second`. The instruction has two rows by two columns in a register: where calls follow each
# other, the compiler leaves out that they are sorted back and forth.
_TILE = """
STERNA_MAYBE void tile_i32x4(i32x4 *top, i32x4 *bottom, const i32 *x, const i32 *y, i32x4 first,
                             i32x4 second) {
#if defined(__ARM_FEATURE_MATMUL_INT8)
    typedef i64 halves __attribute__((vector_size(16)));
    i64 row[2];
    __builtin_memcpy(&row[0], x, 8);
    __builtin_memcpy(&row[1], y, 8);
    halves rows = {row[0], row[1]};
    i32x4 left = __builtin_shufflevector(first, second, 0, 4, 1, 5);
    i32x4 right = __builtin_shufflevector(first, second, 2, 6, 3, 7);
    i32x4 a = __builtin_shufflevector(*top, *bottom, 0, 1, 4, 5);
    i32x4 b = __builtin_shufflevector(*top, *bottom, 2, 3, 6, 7);
    __asm__("smmla %0.4s, %1.16b, %2.16b" : "+w"(a) : "w"(rows), "w"(left));
    __asm__("smmla %0.4s, %1.16b, %2.16b" : "+w"(b) : "w"(rows), "w"(right));
    *top = __builtin_shufflevector(a, b, 0, 1, 4, 5);
    *bottom = __builtin_shufflevector(a, b, 2, 3, 6, 7);
#else
    *top = dot4_add_i32x4(splat_i32x4(x[0]), first, *top);
    *top = dot4_add_i32x4(splat_i32x4(x[1]), second, *top);
    *bottom = dot4_add_i32x4(splat_i32x4(y[0]), first, *bottom);
    *bottom = dot4_add_i32x4(splat_i32x4(y[1]), second, *bottom);
#endif
}
"""
# Left to itself clang adds products to each other before a sum, and registers do not suffice.
_IN_TURN = '    __asm__("" : "+v"(sum));'
