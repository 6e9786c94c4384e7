"""C prelude text for one SIMD width: vector types, conversions, exact-order math polynomials.

Each function exists for every width a library uses, 1 (scalar) included, from one template, so
a value does not depend on how wide the loop around it ran. No libm: the same bits on every
system. Coefficients: minimax polynomials after Cody and Waite 1980, "Software Manual for the
Elementary Functions"; worst errors seen are in tests/codegen.
"""

from __future__ import annotations

from sterna.base.dtype import BF16, BOOL, F16, F32, I8, I16, I32, I64, U8, U16, U32, U64, DType

# How a dtype is held in C. f16 and bf16 are carried as their bits until they are converted.
C_NAMES = {
    F32: "f32", F16: "u16", BF16: "u16", I8: "i8", U8: "u8", I16: "i16", U16: "u16",
    I32: "i32", U32: "u32", I64: "i64", U64: "u64", BOOL: "u8",
}  # fmt: skip


def vector_name(dtype: DType, lanes: int) -> str:
    """The C type of `lanes` elements, e.g. f32x8; the scalar type for one lane."""
    return C_NAMES[dtype] if lanes == 1 else f"{C_NAMES[dtype]}x{lanes}"


def prelude(widths: set[int]) -> str:
    """Everything kernels may use, for the given lane counts (1 is always there)."""
    parts = [_COMMON]
    for lanes in sorted(widths | {1}):
        parts.append(_types(lanes) if lanes > 1 else "")
        parts.append(_instantiate(_CONVERT_VECTOR if lanes > 1 else _CONVERT_SCALAR, lanes))
        parts.append(_instantiate(_MATH, lanes))
    return "\n".join(parts)


def _types(lanes: int) -> str:
    lines = []
    for name, size in (("f32", 4), ("i32", 4), ("u32", 4), ("u16", 2), ("i16", 2), ("u8", 1),
                       ("i8", 1)):  # fmt: skip
        bytes_ = size * lanes
        lines.append(f"typedef {name} {name}x{lanes} __attribute__((vector_size({bytes_})));")
        lines.append(
            f"typedef {name} {name}x{lanes}u "
            f"__attribute__((vector_size({bytes_}), aligned({size}), may_alias));"
        )
    return "\n".join(lines)


def _instantiate(template: str, lanes: int) -> str:
    suffix = "" if lanes == 1 else f"x{lanes}"
    return template.replace("@L", str(lanes)).replace("@", suffix)


_COMMON = """
typedef float f32;
#if defined(__clang__)
#pragma clang fp contract(off)
#endif
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
"""

_CONVERT_SCALAR = """
STERNA_MAYBE f32 splat_f32(f32 x) { return x; }
STERNA_MAYBE i32 splat_i32(i32 x) { return x; }
STERNA_MAYBE u32 splat_u32(u32 x) { return x; }
STERNA_MAYBE f32 bits_f32(u32 x) { union { u32 u; f32 f; } v = {x}; return v.f; }
STERNA_MAYBE u32 bits_u32(f32 x) { union { f32 f; u32 u; } v = {x}; return v.u; }
STERNA_MAYBE f32 f32_from_i32(i32 x) { return (f32)x; }
STERNA_MAYBE i32 i32_from_f32(f32 x) { return (i32)x; }
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
"""

_CONVERT_VECTOR = """
STERNA_MAYBE f32@ splat_f32@(f32 x) { return x - (f32@){0}; }
STERNA_MAYBE i32@ splat_i32@(i32 x) { return x - (i32@){0}; }
STERNA_MAYBE u32@ splat_u32@(u32 x) { return x - (u32@){0}; }
STERNA_MAYBE f32@ bits_f32@(u32@ x) { return (f32@)x; }
STERNA_MAYBE u32@ bits_u32@(f32@ x) { return (u32@)x; }
STERNA_MAYBE f32@ f32_from_i32@(i32@ x) { return __builtin_convertvector(x, f32@); }
STERNA_MAYBE i32@ i32_from_f32@(f32@ x) { return __builtin_convertvector(x, i32@); }
STERNA_MAYBE u32@ u32_from_u16@(u16@ x) { return __builtin_convertvector(x, u32@); }
STERNA_MAYBE u16@ u16_from_u32@(u32@ x) { return __builtin_convertvector(x, u16@); }
STERNA_MAYBE f32@ choose_f32@(i32@ c, f32@ a, f32@ b) {
    return (f32@)((c & (i32@)a) | (~c & (i32@)b));
}
STERNA_MAYBE i32@ choose_i32@(i32@ c, i32@ a, i32@ b) { return (c & a) | (~c & b); }
STERNA_MAYBE u32@ choose_u32@(i32@ c, u32@ a, u32@ b) {
    return ((u32@)c & a) | (~(u32@)c & b);
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
"""

# Written with functions only, so that one text serves scalars and vectors.
_MATH = """
STERNA_MAYBE f32@ min_f32@(f32@ a, f32@ b) { return choose_f32@(a < b, a, b); }
STERNA_MAYBE f32@ max_f32@(f32@ a, f32@ b) { return choose_f32@(a > b, a, b); }
STERNA_MAYBE i32@ min_i32@(i32@ a, i32@ b) { return choose_i32@(a < b, a, b); }
STERNA_MAYBE i32@ max_i32@(i32@ a, i32@ b) { return choose_i32@(a > b, a, b); }
STERNA_MAYBE f32@ abs_f32@(f32@ x) { return bits_f32@(bits_u32@(x) & 0x7fffffffu); }

// To the nearest integer, ties to even, for |x| < 2^22.
STERNA_MAYBE f32@ nearest_f32@(f32@ x) {
    f32@ big = splat_f32@(12582912.0f);
    return (x + big) - big;
}

STERNA_MAYBE f32@ floor_f32@(f32@ x) {
    f32@ t = f32_from_i32@(i32_from_f32@(x));
    return choose_f32@(t > x, t - 1.0f, t);
}

// 2^n for integers -126 <= n <= 127 held in a float.
STERNA_MAYBE f32@ power_of_two@(f32@ n) {
    return bits_f32@((u32@)(i32_from_f32@(n) + 127) << 23);
}

// exp(x) = 2^n * exp(r), |r| <= ln(2) / 2. Below -87.3 the result is 0, above 88.7 infinity.
STERNA_MAYBE f32@ exp_f32@(f32@ x) {
    f32@ t = min_f32@(max_f32@(x, splat_f32@(-87.3f)), splat_f32@(88.7f));
    f32@ n = nearest_f32@(t * 1.44269504088896341f);
    f32@ r = fma_f32@(n, splat_f32@(-0.693359375f), t);
    r = fma_f32@(n, splat_f32@(2.12194440e-4f), r);
    f32@ p = splat_f32@(1.9875691500e-4f);
    p = fma_f32@(p, r, splat_f32@(1.3981999507e-3f));
    p = fma_f32@(p, r, splat_f32@(8.3334519073e-3f));
    p = fma_f32@(p, r, splat_f32@(4.1665795894e-2f));
    p = fma_f32@(p, r, splat_f32@(1.6666665459e-1f));
    p = fma_f32@(p, r, splat_f32@(5.0000001201e-1f));
    p = fma_f32@(p, r * r, r) + 1.0f;
    // In two steps: 2^128 is not a float, though exp(88.7) is.
    f32@ half = floor_f32@(n * 0.5f);
    p = p * power_of_two@(half) * power_of_two@(n - half);
    p = choose_f32@(x < -87.3f, splat_f32@(0.0f), p);
    return choose_f32@(x > 88.72283f, bits_f32@(splat_u32@(0x7f800000u)), p);
}

STERNA_MAYBE f32@ tanh_f32@(f32@ x) {
    f32@ a = min_f32@(abs_f32@(x), splat_f32@(9.0f));
    f32@ e = exp_f32@(a + a);
    f32@ large = 1.0f - 2.0f / (e + 1.0f);
    f32@ s = x * x; // near 0 the difference above cancels
    f32@ p = splat_f32@(-5.70498872745e-3f);
    p = fma_f32@(p, s, splat_f32@(2.06390887954e-2f));
    p = fma_f32@(p, s, splat_f32@(-5.37397155531e-2f));
    p = fma_f32@(p, s, splat_f32@(1.33314422036e-1f));
    p = fma_f32@(p, s, splat_f32@(-3.33332819422e-1f));
    f32@ small = fma_f32@(p * s, x, x);
    f32@ signed_large = bits_f32@(bits_u32@(large) | (bits_u32@(x) & 0x80000000u));
    return choose_f32@(a < 0.625f, small, signed_large);
}

// Sine of x + quarter * pi / 2. The argument is reduced by four parts of pi / 2, exact for
// |x| < 2^17 or so: positions times frequencies stay below the context length.
STERNA_MAYBE f32@ sine_quarter@(f32@ x, i32 quarter) {
    f32@ n = nearest_f32@(x * 0.636619772367581343f);
    f32@ r = fma_f32@(n, splat_f32@(-1.5703125f), x);
    r = fma_f32@(n, splat_f32@(-4.83751296997070e-4f), r);
    r = fma_f32@(n, splat_f32@(-7.54953362047672e-8f), r);
    r = fma_f32@(n, splat_f32@(-2.56334406825708e-12f), r);
    i32@ q = i32_from_f32@(n) + quarter;
    f32@ s = r * r;
    f32@ sine = splat_f32@(-1.9515295891e-4f);
    sine = fma_f32@(sine, s, splat_f32@(8.3321608736e-3f));
    sine = fma_f32@(sine, s, splat_f32@(-1.6666654611e-1f));
    sine = fma_f32@(sine * s, r, r);
    f32@ cosine = splat_f32@(2.443315711809948e-5f);
    cosine = fma_f32@(cosine, s, splat_f32@(-1.388731625493765e-3f));
    cosine = fma_f32@(cosine, s, splat_f32@(4.166664568298827e-2f));
    cosine = fma_f32@(cosine, s * s, fma_f32@(s, splat_f32@(-0.5f), splat_f32@(1.0f)));
    f32@ value = choose_f32@((q & 1) == 0, sine, cosine);
    return bits_f32@(bits_u32@(value) ^ (((u32@)q & 2u) << 30));
}
STERNA_MAYBE f32@ sin_f32@(f32@ x) { return sine_quarter@(x, 0); }
STERNA_MAYBE f32@ cos_f32@(f32@ x) { return sine_quarter@(x, 1); }

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
    f32@ value = bits_f32@(body) * 0x1p112f; // subnormals fall out of the scaling
    u32@ special = body | 0x7f800000u;
    u32@ bits = choose_u32@((i32@)(body) >= 0x0f800000, special, bits_u32@(value));
    return bits_f32@(bits | sign);
}
STERNA_MAYBE u16@ f16_from_f32@(f32@ x) {
    u32@ u = bits_u32@(x), sign = u & 0x80000000u, a = u ^ sign;
    f32@ magnitude = bits_f32@(a);
    u32@ tiny = bits_u32@(magnitude + 0.5f) - 0x3f000000u;
    u32@ normal = (a - 0x38000000u + 0xfffu + ((a >> 13) & 1u)) >> 13;
    u32@ r = choose_u32@((i32@)a < 0x38800000, tiny, normal);
    r = choose_u32@((i32@)a >= 0x47800000, splat_u32@(0x7c00u), r);
    r = choose_u32@(x == x, r, splat_u32@(0x7e00u));
    return u16_from_u32@(r | (sign >> 16));
}
#endif
"""

# Native half conversions need a _Float16 vector of the same width.
_NATIVE_SCALAR = """
#if STERNA_F16
STERNA_MAYBE f32 f32_from_f16(u16 x) {
    union { u16 u; _Float16 h; } v = {x};
    return (f32)v.h;
}
STERNA_MAYBE u16 f16_from_f32(f32 x) {
    union { _Float16 h; u16 u; } v = {(_Float16)x};
    return v.u;
}
#endif
"""
_NATIVE_VECTOR = """
#if STERNA_F16
typedef _Float16 f16@ __attribute__((vector_size(2 * @L)));
STERNA_MAYBE f32@ f32_from_f16@(u16@ x) { return __builtin_convertvector((f16@)x, f32@); }
STERNA_MAYBE u16@ f16_from_f32@(f32@ x) { return (u16@)__builtin_convertvector(x, f16@); }
#endif
"""
_CONVERT_SCALAR += _NATIVE_SCALAR
_CONVERT_VECTOR += _NATIVE_VECTOR
