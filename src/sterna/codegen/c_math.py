"""C text of the functions that kernels call, for each SIMD width: types, conversions, math.

Each function exists for every width a library uses, 1 (scalar) included, from one template or
with the same operations in the same order, so a value does not depend on how wide the loop
around it ran. No libm: the same bits on every system with the same fma. NaN goes through.

Sources: Cody and Waite 1980, "Software Manual for the Elementary Functions"; the coefficients
are those of S. Moshier's Cephes library (single precision). Errors seen are bounded in
tests/codegen. Vectors are those of gcc and clang; a truth value of a vector is an i32 mask.
"""

from __future__ import annotations

from collections.abc import Iterable

from sterna.base.dtype import BF16, BOOL, F16, F32, I8, I16, I32, I64, U8, U16, U32, U64
from sterna.codegen.c_dots import dots

# How a dtype is held in C. f16 and bf16 are carried as their bits until they are converted.
C_NAMES = {
    F32: "f32", F16: "u16", BF16: "u16", I8: "i8", U8: "u8", I16: "i16", U16: "u16",
    I32: "i32", U32: "u32", I64: "i64", U64: "u64", BOOL: "u8",
}  # fmt: skip
_SIZES = {"f32": 4, "i32": 4, "u32": 4, "i16": 2, "u16": 2, "i8": 1, "u8": 1}


def prelude(widths: Iterable[int]) -> str:
    """Everything kernels may use, for the given lane counts (1 is always there)."""
    parts = [_COMMON]
    for lanes in sorted({*widths, 1}):
        suffix = "" if lanes == 1 else f"x{lanes}"
        templates = [_SCALAR] if lanes == 1 else [_types(lanes), _VECTOR]
        for template in (*templates, _ARITHMETIC, _MATH, _HALF):
            parts.append(template.replace("@L", str(lanes)).replace("@", suffix))
        parts.append(dots(lanes))
    return "\n".join(parts)


def group_math() -> str:
    """The same functions, scalar, for languages that bring types, bits_*, fma, sqrt and f16."""
    parts = (_GROUP, _ARITHMETIC, _MATH, _HALF)
    return "\n".join(part.replace("@L", "1").replace("@", "") for part in parts)


_GROUP = """
#define STERNA_F16 1
STERNA_MAYBE i32 floor_div(i32 a, i32 b) { return a / b - (a % b != 0 && (a % b < 0) != (b < 0)); }
STERNA_MAYBE i32 floor_mod(i32 a, i32 b) {
    i32 r = a % b;
    return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}
STERNA_MAYBE f32 splat_f32(f32 x) { return x; }
STERNA_MAYBE u32 splat_u32(u32 x) { return x; }
STERNA_MAYBE f32 f32_from_i32(i32 x) { return (f32)x; }
STERNA_MAYBE u32 u32_from_u16(u16 x) { return x; }
STERNA_MAYBE u16 u16_from_u32(u32 x) { return (u16)x; }
STERNA_MAYBE f32 choose_f32(i32 c, f32 a, f32 b) { return c ? a : b; }
STERNA_MAYBE i32 choose_i32(i32 c, i32 a, i32 b) { return c ? a : b; }
STERNA_MAYBE u32 choose_u32(i32 c, u32 a, u32 b) { return c ? a : b; }
"""


def _types(lanes: int) -> str:
    """Vector types, their unaligned forms for memory, and splat from one element."""
    lines = []
    for name, size in _SIZES.items():
        bytes_ = size * lanes
        lines.append(f"typedef {name} {name}@ __attribute__((vector_size({bytes_})));")
        lines.append(
            f"typedef {name} {name}@u "
            f"__attribute__((vector_size({bytes_}), aligned({size}), may_alias));"
        )
        lines.append(
            f"STERNA_MAYBE {name}@ splat_{name}@({name} x) {{ return x - ({name}@){{0}}; }}"
        )
    numbers = ", ".join(map(str, range(lanes)))
    lines.append(f"STERNA_MAYBE i32@ lane_numbers@(void) {{ return (i32@){{{numbers}}}; }}")
    return "\n".join(lines)


_COMMON = """
typedef float f32;
#if defined(__clang__)
#pragma clang fp contract(off)
#else
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
// Kernels are written from schedules: a value may be bound that no one reads.
#pragma GCC diagnostic ignored "-Wunused-variable"
#pragma GCC diagnostic ignored "-Wunused-but-set-variable"
#if defined(__FMA__) || defined(__aarch64__)
#define STERNA_FMA 1
#else
#define STERNA_FMA 0
#endif
#if defined(__F16C__) || defined(__aarch64__)
#define STERNA_F16 1
#else
#define STERNA_F16 0
#endif

// Integer division rounds toward minus infinity.
STERNA_MAYBE i64 floor_div(i64 a, i64 b) { return a / b - (a % b != 0 && (a % b < 0) != (b < 0)); }
STERNA_MAYBE i64 floor_mod(i64 a, i64 b) {
    i64 r = a % b;
    return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}
"""

_SCALAR = """
STERNA_MAYBE f32 splat_f32(f32 x) { return x; }
STERNA_MAYBE u32 splat_u32(u32 x) { return x; }
STERNA_MAYBE f32 bits_f32(u32 x) { union { u32 u; f32 f; } v = {x}; return v.f; }
STERNA_MAYBE u32 bits_u32(f32 x) { union { f32 f; u32 u; } v = {x}; return v.u; }
STERNA_MAYBE f32 f32_from_i32(i32 x) { return (f32)x; }
STERNA_MAYBE u32 u32_from_u16(u16 x) { return x; }
STERNA_MAYBE u16 u16_from_u32(u32 x) { return (u16)x; }
STERNA_MAYBE f32 choose_f32(i32 c, f32 a, f32 b) { return c ? a : b; }
STERNA_MAYBE i32 choose_i32(i32 c, i32 a, i32 b) { return c ? a : b; }
STERNA_MAYBE u32 choose_u32(i32 c, u32 a, u32 b) { return c ? a : b; }
STERNA_MAYBE f32 fma_f32(f32 a, f32 b, f32 c) {
#if STERNA_FMA
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}
STERNA_MAYBE f32 sqrt_f32(f32 x) { return __builtin_sqrtf(x); }
#if STERNA_F16
STERNA_MAYBE f32 f32_from_f16(u16 x) { union { u16 u; _Float16 h; } v = {x}; return (f32)v.h; }
STERNA_MAYBE u16 f16_from_f32(f32 x) {
    union { _Float16 h; u16 u; } v = {(_Float16)x};
    return v.u;
}
#endif
"""

_VECTOR = """
STERNA_MAYBE f32@ bits_f32@(u32@ x) { return (f32@)x; }
STERNA_MAYBE u32@ bits_u32@(f32@ x) { return (u32@)x; }
STERNA_MAYBE f32@ f32_from_i32@(i32@ x) { return __builtin_convertvector(x, f32@); }
STERNA_MAYBE u32@ u32_from_u16@(u16@ x) { return __builtin_convertvector(x, u32@); }
STERNA_MAYBE u16@ u16_from_u32@(u32@ x) { return __builtin_convertvector(x, u16@); }
STERNA_MAYBE i32@ choose_i32@(i32@ c, i32@ a, i32@ b) { return (c & a) | (~c & b); }
STERNA_MAYBE f32@ choose_f32@(i32@ c, f32@ a, f32@ b) {
    return (f32@)choose_i32@(c, (i32@)a, (i32@)b);
}
STERNA_MAYBE u32@ choose_u32@(i32@ c, u32@ a, u32@ b) {
    return (u32@)choose_i32@(c, (i32@)a, (i32@)b);
}
STERNA_MAYBE f32@ fma_f32@(f32@ a, f32@ b, f32@ c) {
#if STERNA_FMA && defined(__clang__)
    return __builtin_elementwise_fma(a, b, c);
#elif STERNA_FMA
    f32@ r;
    for (int i = 0; i < @L; i++) r[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return r;
#else
    return a * b + c;
#endif
}
STERNA_MAYBE f32@ sqrt_f32@(f32@ x) {
#if defined(__clang__)
    return __builtin_elementwise_sqrt(x);
#else
    f32@ r;
    for (int i = 0; i < @L; i++) r[i] = __builtin_sqrtf(x[i]);
    return r;
#endif
}
STERNA_MAYBE i32@ floor_div@(i32@ a, i32@ b) {
    i32@ q = a / b, r = a - q * b;
    return q + ((r != 0) & ((r ^ b) < 0));
}
STERNA_MAYBE i32@ floor_mod@(i32@ a, i32@ b) {
    i32@ r = a - a / b * b;
    return r + (b & (r != 0) & ((r ^ b) < 0));
}
#if STERNA_F16
typedef _Float16 f16@ __attribute__((vector_size(2 * @L)));
STERNA_MAYBE f32@ f32_from_f16@(u16@ x) { return __builtin_convertvector((f16@)x, f32@); }
STERNA_MAYBE u16@ f16_from_f32@(f32@ x) { return (u16@)__builtin_convertvector(x, f16@); }
#endif
"""

# From here on one text serves scalars and vectors: functions, and operators that both have.
_ARITHMETIC = """
STERNA_MAYBE f32@ min_f32@(f32@ a, f32@ b) { return choose_f32@((a < b) | (a != a), a, b); }
STERNA_MAYBE f32@ max_f32@(f32@ a, f32@ b) { return choose_f32@((a > b) | (a != a), a, b); }
STERNA_MAYBE i32@ min_i32@(i32@ a, i32@ b) { return choose_i32@(a < b, a, b); }
STERNA_MAYBE i32@ max_i32@(i32@ a, i32@ b) { return choose_i32@(a > b, a, b); }
STERNA_MAYBE u32@ min_u32@(u32@ a, u32@ b) { return choose_u32@(a < b, a, b); }
STERNA_MAYBE u32@ max_u32@(u32@ a, u32@ b) { return choose_u32@(a > b, a, b); }
STERNA_MAYBE i32@ abs_i32@(i32@ x) { return choose_i32@(x < 0, -x, x); }
STERNA_MAYBE f32@ abs_f32@(f32@ x) { return bits_f32@(bits_u32@(x) & 0x7fffffffu); }

STERNA_MAYBE f32@ with_sign@(f32@ magnitude, f32@ x) {
    return bits_f32@(bits_u32@(magnitude) | (bits_u32@(x) & 0x80000000u));
}

STERNA_MAYBE f32@ floor_f32@(f32@ x) {
    f32@ a = abs_f32@(x);
    f32@ t = with_sign@((a + 8388608.0f) - 8388608.0f, x); // to the nearest integer
    t = choose_f32@(t > x, t - 1.0f, t);
    return choose_f32@(a < 8388608.0f, t, x); // larger numbers, inf and NaN have no fraction
}
"""

_MATH = """
// x + 1.5 * 2^23 has round(x) in the low bits of its mantissa, for |x| < 2^22.
STERNA_MAYBE f32@ with_integer@(f32@ x) { return x + 12582912.0f; }
STERNA_MAYBE i32@ integer_of@(f32@ shifted) { return (i32@)(bits_u32@(shifted) - 0x4b400000u); }

// exp(x) = 2^n * exp(r), |r| <= ln(2) / 2. Results below the smallest normal number are 0.
STERNA_MAYBE f32@ exp_f32@(f32@ x) {
    f32@ infinity = bits_f32@(splat_u32@(0x7f800000u));
    f32@ t = choose_f32@(x > -87.5f, x, splat_f32@(-87.5f));
    t = choose_f32@(t < 88.72283f, t, splat_f32@(88.72283f));
    f32@ shifted = with_integer@(t * 1.44269504088896341f);
    f32@ n = shifted - 12582912.0f;
    f32@ r = fma_f32@(n, splat_f32@(-0.693359375f), t);
    r = fma_f32@(n, splat_f32@(2.12194440e-4f), r);
    f32@ p = splat_f32@(1.9875691500e-4f);
    p = fma_f32@(p, r, splat_f32@(1.3981999507e-3f));
    p = fma_f32@(p, r, splat_f32@(8.3334519073e-3f));
    p = fma_f32@(p, r, splat_f32@(4.1665795894e-2f));
    p = fma_f32@(p, r, splat_f32@(1.6666665459e-1f));
    p = fma_f32@(p, r, splat_f32@(5.0000001201e-1f));
    p = fma_f32@(p, r * r, r) + 1.0f;
    p = bits_f32@(bits_u32@(p) + (bits_u32@(shifted) << 23)); // times 2^n: no subnormal comes here
    p = choose_f32@(x <= 88.72283f, p, x + infinity); // NaN stays NaN
    return choose_f32@(x < -87.33654f, splat_f32@(0.0f), p);
}

// log(x) = n * ln(2) + log(m), sqrt(1/2) <= m < sqrt(2). Subnormal x count as the least normal.
STERNA_MAYBE f32@ log_f32@(f32@ x) {
    f32@ least = bits_f32@(splat_u32@(0x00800000u));
    u32@ u = bits_u32@(choose_f32@(x < least, least, x));
    u32@ offset = u - 0x3f3504f3u; // the bits of sqrt(1/2)
    f32@ n = f32_from_i32@((i32@)offset >> 23);
    f32@ m = bits_f32@((offset & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
    f32@ s = m * m;
    f32@ p = splat_f32@(7.0376836292e-2f);
    p = fma_f32@(p, m, splat_f32@(-1.1514610310e-1f));
    p = fma_f32@(p, m, splat_f32@(1.1676998740e-1f));
    p = fma_f32@(p, m, splat_f32@(-1.2420140846e-1f));
    p = fma_f32@(p, m, splat_f32@(1.4249322787e-1f));
    p = fma_f32@(p, m, splat_f32@(-1.6668057665e-1f));
    p = fma_f32@(p, m, splat_f32@(2.0000714765e-1f));
    p = fma_f32@(p, m, splat_f32@(-2.4999993993e-1f));
    p = fma_f32@(p, m, splat_f32@(3.3333331174e-1f));
    p = p * m * s;
    p = fma_f32@(n, splat_f32@(-2.12194440e-4f), p);
    p = fma_f32@(s, splat_f32@(-0.5f), p);
    p = fma_f32@(n, splat_f32@(0.693359375f), m + p);
    f32@ infinity = bits_f32@(splat_u32@(0x7f800000u));
    p = choose_f32@(x < infinity, p, x); // infinity and NaN
    p = choose_f32@(x == 0.0f, -infinity, p);
    return choose_f32@(x < 0.0f, bits_f32@(splat_u32@(0x7fc00000u)), p);
}

STERNA_MAYBE f32@ tanh_f32@(f32@ x) {
    f32@ a = min_f32@(abs_f32@(x), splat_f32@(9.5f));
    f32@ e = exp_f32@(a + a);
    f32@ large = 1.0f - 2.0f / (e + 1.0f);
    f32@ s = x * x; // near 0 the difference above cancels
    f32@ p = splat_f32@(-5.70498872745e-3f);
    p = fma_f32@(p, s, splat_f32@(2.06390887954e-2f));
    p = fma_f32@(p, s, splat_f32@(-5.37397155531e-2f));
    p = fma_f32@(p, s, splat_f32@(1.33314422036e-1f));
    p = fma_f32@(p, s, splat_f32@(-3.33332819422e-1f));
    f32@ small = fma_f32@(p * s, x, x);
    return choose_f32@(a < 0.625f, small, with_sign@(large, x));
}

// Sine of x + quarter * pi / 2 for |x| < 2^17 * pi / 2. pi / 2 is cut into parts of at most 7
// bits: their products with n are exact, and so are the first differences.
STERNA_MAYBE f32@ sine_quarter@(f32@ x, u32 quarter) {
    f32@ shifted = with_integer@(x * 0.636619772367581343f);
    f32@ n = shifted - 12582912.0f;
    f32@ r = x - n * 0x1.9p+0f - n * 0x1.0cp-7f - n * 0x1.ecp-14f - n * 0x1.5p-22f;
    r = r - n * 0x1.1p-30f - n * 0x1.4p-39f - n * 0x1.44p-42f;
    u32@ q = (u32@)integer_of@(shifted) + quarter;
    f32@ s = r * r;
    f32@ sine = splat_f32@(-1.9515295891e-4f);
    sine = fma_f32@(sine, s, splat_f32@(8.3321608736e-3f));
    sine = fma_f32@(sine, s, splat_f32@(-1.6666654611e-1f));
    sine = fma_f32@(sine * s, r, r);
    f32@ cosine = splat_f32@(2.443315711809948e-5f);
    cosine = fma_f32@(cosine, s, splat_f32@(-1.388731625493765e-3f));
    cosine = fma_f32@(cosine, s, splat_f32@(4.166664568298827e-2f));
    cosine = fma_f32@(cosine, s * s, fma_f32@(s, splat_f32@(-0.5f), splat_f32@(1.0f)));
    f32@ value = choose_f32@((q & 1u) == 0u, sine, cosine);
    return bits_f32@(bits_u32@(value) ^ ((q & 2u) << 30));
}
STERNA_MAYBE f32@ sin_f32@(f32@ x) { return sine_quarter@(x, 0); }
STERNA_MAYBE f32@ cos_f32@(f32@ x) { return sine_quarter@(x, 1); }
"""

_HALF = """
STERNA_MAYBE f32@ f32_from_bf16@(u16@ x) { return bits_f32@(u32_from_u16@(x) << 16); }

// Round to nearest even; a NaN stays one.
STERNA_MAYBE u16@ bf16_from_f32@(f32@ x) {
    u32@ u = bits_u32@(x);
    u32@ rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    return u16_from_u32@(choose_u32@(x == x, rounded, (u >> 16) | 0x40u));
}

#if !STERNA_F16
STERNA_MAYBE f32@ f32_from_f16@(u16@ x) {
    u32@ h = u32_from_u16@(x);
    u32@ sign = (h & 0x8000u) << 16, body = (h & 0x7fffu) << 13;
    u32@ finite = bits_u32@(bits_f32@(body) * 0x1p112f); // subnormals fall out of the scaling
    u32@ bits = choose_u32@(body < 0x0f800000u, finite, body | 0x7f800000u);
    bits = choose_u32@(body > 0x0f800000u, bits | 0x00400000u, bits); // NaNs come out quiet
    return bits_f32@(bits | sign);
}
STERNA_MAYBE u16@ f16_from_f32@(f32@ x) {
    u32@ u = bits_u32@(x), sign = u & 0x80000000u, a = u ^ sign;
    u32@ tiny = bits_u32@(bits_f32@(a) + 0.5f) - 0x3f000000u;
    u32@ normal = (a - 0x38000000u + 0xfffu + ((a >> 13) & 1u)) >> 13;
    u32@ r = choose_u32@(a < 0x38800000u, tiny, normal);
    r = choose_u32@(a < 0x47800000u, r, splat_u32@(0x7c00u));
    r = choose_u32@(x == x, r, ((a >> 13) & 0x3ffu) | 0x7e00u);
    return u16_from_u32@(r | (sign >> 16));
}
#endif
"""
