// What each language of kernels means on the simulator of simt.h.
#pragma once
#include "simt.h"
#include <initializer_list>

inline float bits_f32(unsigned x) { float r; memcpy(&r, &x, 4); return r; }
inline unsigned bits_u32(float x) { unsigned r; memcpy(&r, &x, 4); return r; }
inline float fma_f32(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline float sqrt_f32(float x) { return __builtin_sqrtf(x); }
inline float f32_from_f16(unsigned short x) { _Float16 h; memcpy(&h, &x, 2); return (float)h; }
inline unsigned short f16_from_f32(float x) {
    _Float16 h = (_Float16)x;
    unsigned short r;
    memcpy(&r, &h, 2);
    return r;
}

inline unsigned short f16_from_whole(int above, unsigned short base) {
    _Float16 whole, less;
    unsigned short bits = (unsigned short)(0x6400 | above);
    memcpy(&whole, &bits, 2);
    memcpy(&less, &base, 2);
    whole = whole - less;
    memcpy(&bits, &whole, 2);
    return bits;
}

// Vectors that are one load: hardware wants them where a multiple of their size is.
template <int N, class T> void load_few(T *to, const T *from) {
    if ((unsigned long long)from % (N * sizeof(T)) != 0) abort();
    memcpy(to, from, N * sizeof(T));
}
template <int N, class T> T *aligned(T *first) {
    if ((unsigned long long)first % N != 0) abort();
    return first;
}
inline void load_u32x2(unsigned *to, const unsigned *from) { load_few<2>(to, from); }
inline void load_u32x4(unsigned *to, const unsigned *from) { load_few<4>(to, from); }
inline void load_i32x4(int *to, const int *from) { load_few<4>(to, from); }
inline void load_f32x4(float *to, const float *from) { load_few<4>(to, from); }
inline void load_u16x4(unsigned short *to, const unsigned short *from) { load_few<4>(to, from); }

#define swap_f32(x, distance, ...) simt::swap(__COUNTER__ + 1, x, distance)

// Matrix units, as the makers' manuals say which element of a fragment a thread brings: each thread
// computes what it keeps of c from what the others show. They add from the last product to the
// first, for no manual says in which order they do.
typedef unsigned __attribute__((may_alias)) halves;

inline float half_of(const unsigned *words, unsigned i) {
    return f32_from_f16((unsigned short)(words[i / 2] >> i % 2 * 16));
}

inline float brain_of(const unsigned *words, unsigned i) {
    return bits_f32((words[i / 2] >> i % 2 * 16) << 16);
}

template <class A, class B> float added(float c, int depth, A a, B b) {
    for (int k = depth - 1; k >= 0; k--) c += a(k) * b(k);
    return c;
}

// PTX ISA 9.7.14, mma.m16n8k16 with f16: groupID = lane / 4, threadID_in_group = lane % 4.
template <float (*number)(const unsigned *, unsigned)>
void mma_of(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    simt::show(-1, {a[0], a[1], a[2], a[3], b[0], b[1]});
    for (int i = 0; i < 4; i++) {
        int row = simt::lane() / 4 + (i < 2 ? 0 : 8), column = simt::lane() % 4 * 2 + i % 2;
        c[i] = added(c[i], 16,
            [&](int k) { // a0, a1: rows 0..7; a2, a3: 8..15; then the same with k from 8 on
                return number(simt::shown(row % 8 * 4 + k % 8 / 2), k / 8 * 4 + row / 8 * 2 + k % 2);
            },
            [&](int k) { return number(simt::shown(column * 4 + k % 8 / 2) + 4, k / 8 * 2 + k % 2); });
    }
}
inline void mma_16x8x16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    mma_of<half_of>(c, a, b);
}
inline void mma_16x8x16_bf16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    mma_of<brain_of>(c, a, b);
}

// mma.m16n8k8: a0 has rows 0..7 and a1 rows 8..15, both at k = lane % 4 * 2 and the next.
inline void mma_16x8x8(float (&c)[4], const unsigned (&a)[2], unsigned b) {
    simt::show(-5, {a[0], a[1], b});
    for (int i = 0; i < 4; i++) {
        int row = simt::lane() / 4 + (i < 2 ? 0 : 8), column = simt::lane() % 4 * 2 + i % 2;
        c[i] = added(c[i], 8,
            [&](int k) { return half_of(simt::shown(row % 8 * 4 + k / 2), row / 8 * 2 + k % 2); },
            [&](int k) { return half_of(simt::shown(column * 4 + k / 2) + 2, k % 2); });
    }
}

// PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions": A and B are read from shared memory by
// descriptors, which all threads have to bring alike: an address and two distances in units of 16 bytes, K-major,
// without swizzle. Eight rows of 16 bytes lie together, the next eight a stride on and the next 16
// bytes of k a leading dimension on. What is read is no number where other bits are set, those of
// other layouts, where there is nothing, and where a thread did not publish what it wrote.
typedef unsigned long long Described;

inline unsigned shared_address(const void *p) {
    if (simt::now.window == nullptr) // arrays of one kernel lie together
        simt::now.window = (char *)(((uintptr_t)p - 0x10000) & ~(uintptr_t)1023);
    return (unsigned)((char *)p - simt::now.window);
}
inline void publish_shared() { simt::now.fibers[simt::now.thread].published = true; }

inline unsigned described(Described d, int row, int k) {
    unsigned start = (d & 0x3fff) << 4, leading = (d >> 16 & 0x3fff) << 4, stride = (d >> 32) << 4;
    char *at = simt::now.window + start + row / 8 * stride + k / 8 * leading + row % 8 * 16 + k % 8 * 2;
    bool here = at >= simt::__start_simt_shared && at + 2 <= simt::__stop_simt_shared;
    if (!here || !simt::now.published || d & ~0x3fff3fff3fffull) return 0x7fff;
    unsigned short bits;
    memcpy(&bits, at, 2);
    return bits;
}

// wgmma.m64nNk16: warp w of the four keeps rows 16 w to 16 w + 15 of D, as mma.m16n8k16 does, for
// each eight columns: element i is in row lane / 4, or 8 below where i has bit 1.
template <float (*number)(const unsigned *, unsigned), size_t kept, size_t steps>
void wgmma_of(float (&c)[kept], const Described (&a)[steps], const Described (&b)[steps]) {
    for (size_t s = 0; s < steps; s++) {
        unsigned both[4];
        memcpy(both, a + s, 8);
        memcpy(both + 2, b + s, 8);
        simt::show(-7, both);
        bool alike = true;
        for (unsigned i = 0; i < simt::SUBGROUP; i++)
            alike &= memcmp(simt::shown(i), both, sizeof both) == 0;
        unsigned thread = simt::now.thread % 128;
        for (size_t i = 0; i < kept; i++) {
            int row = thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8;
            int column = thread % 4 * 2 + i % 2 + i / 4 * 8;
            auto read = [](Described d, int line, int k) {
                unsigned word = described(d, line, k);
                return number(&word, 0);
            };
            c[i] = added(c[i], 16, [&](int k) { return read(a[s], row, k); },
                         [&](int k) { return read(b[s], column, k); });
            if (!alike) c[i] = NAN;
        }
    }
}
#define SIMT_WGMMA(n) \
    template <size_t steps> void wgmma_n##n##_f16(float (&c)[n / 2], \
        const Described (&a)[steps], const Described (&b)[steps]) { wgmma_of<half_of>(c, a, b); } \
    template <size_t steps> void wgmma_n##n##_bf16(float (&c)[n / 2], \
        const Described (&a)[steps], const Described (&b)[steps]) { wgmma_of<brain_of>(c, a, b); }
SIMT_WGMMA(8)
SIMT_WGMMA(16)
SIMT_WGMMA(32)
SIMT_WGMMA(64)
SIMT_WGMMA(128)

// CDNA 2 ISA, V_MFMA_F32_16X16X16F16: lane l brings row l % 16 of a and column l % 16 of b at k
// from l / 16 * 4 on, and keeps column l % 16 of c at rows from l / 16 * 4 on.
template <float (*number)(const unsigned *, unsigned)>
void mfma_of(float (&c)[4], const unsigned (&a)[2], const unsigned (&b)[2]) {
    simt::show(-2, {a[0], a[1], b[0], b[1]});
    for (int i = 0; i < 4; i++) {
        int row = simt::lane() / 16 * 4 + i, column = simt::lane() % 16;
        c[i] = added(c[i], 16,
            [&](int k) { return number(simt::shown(k / 4 * 16 + row), k % 4); },
            [&](int k) { return number(simt::shown(k / 4 * 16 + column) + 2, k % 4); });
    }
}
inline void mfma_16x16x16(float (&c)[4], const unsigned (&a)[2], const unsigned (&b)[2]) {
    mfma_of<half_of>(c, a, b);
}
inline void mfma_16x16x16_bf16(float (&c)[4], const unsigned (&a)[2], const unsigned (&b)[2]) {
    mfma_of<brain_of>(c, a, b);
}

// RDNA 3 ISA 7.9, V_WMMA_F32_16X16X16_F16 in wave32: lanes 0..15 and 16..31 bring the same; here
// the first half of k is taken from the ones and the rest from the others. Lane l keeps column
// l % 16 of c, the even rows below 16 and the odd ones above.
template <float (*number)(const unsigned *, unsigned)>
void wmma_of(float (&c)[8], const unsigned (&a)[8], const unsigned (&b)[8]) {
    unsigned both[16];
    memcpy(both, a, sizeof a);
    memcpy(both + 8, b, sizeof b);
    simt::show(-3, both);
    for (int i = 0; i < 8; i++) {
        int row = 2 * i + simt::lane() / 16, column = simt::lane() % 16;
        c[i] = added(c[i], 16,
            [&](int k) { return number(simt::shown(k / 8 * 16 + row), k); },
            [&](int k) { return number(simt::shown(k / 8 * 16 + column) + 8, k); });
    }
}
inline void wmma_16x16x16(float (&c)[8], const unsigned (&a)[8], const unsigned (&b)[8]) {
    wmma_of<half_of>(c, a, b);
}
inline void wmma_16x16x16_bf16(float (&c)[8], const unsigned (&a)[8], const unsigned (&b)[8]) {
    wmma_of<brain_of>(c, a, b);
}

// RDNA 4 ISA, V_WMMA_F32_16X16X16_F16 in wave32: lane l brings row l % 16 of a and column l % 16 of b
// at k from l / 16 * 8 on, and keeps column l % 16 of c at rows from l / 16 * 8 on.
template <float (*number)(const unsigned *, unsigned)>
void halved_wmma_of(float (&c)[8], const unsigned (&a)[4], const unsigned (&b)[4]) {
    simt::show(-6, {a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]});
    for (int i = 0; i < 8; i++) {
        int row = simt::lane() / 16 * 8 + i, column = simt::lane() % 16;
        c[i] = added(c[i], 16,
            [&](int k) { return number(simt::shown(k / 8 * 16 + row), k % 8); },
            [&](int k) { return number(simt::shown(k / 8 * 16 + column) + 4, k % 8); });
    }
}
inline void wmma_16x16x16_halved(float (&c)[8], const unsigned (&a)[4], const unsigned (&b)[4]) {
    halved_wmma_of<half_of>(c, a, b);
}
inline void wmma_16x16x16_halved_bf16(float (&c)[8], const unsigned (&a)[4], const unsigned (&b)[4]) {
    halved_wmma_of<brain_of>(c, a, b);
}

// Metal's simdgroup_float8x8, with the elements where Apple's GPUs keep them. All threads name the
// same places; what they showed of them has to be equal.
inline void multiply_8x8x8(float &c0, float &c1, const unsigned short *a, int a_row,
                           const unsigned short *b, int b_row) {
    unsigned places[4];
    memcpy(places, &a, sizeof a);
    memcpy(places + 2, &b, sizeof b);
    simt::show(-4, places);
    for (unsigned i = 0; i < 32; i++)
        if (memcmp(simt::shown(i), places, sizeof places) != 0) abort();
    int quad = simt::lane() / 4;
    int row = (quad & 4) + simt::lane() / 2 % 4, column = (quad & 2) * 2 + simt::lane() % 2 * 2;
    for (float *c : {&c0, &c1}) {
        *c = added(*c, 8, [&](int k) { return f32_from_f16(a[row * a_row + k]); },
                   [&](int k) { return f32_from_f16(b[column * b_row + k]); });
        column++;
    }
}

// CUDA and HIP.
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ SIMT_SHARED
#define __syncthreads() simt::barrier(__COUNTER__ + 1)
struct SimtIndex {
    unsigned *at;
    struct { unsigned *at; operator unsigned() const { return *at; } } x{at};
};
inline SimtIndex blockIdx{&simt::now.group}, threadIdx{&simt::now.thread};

// Metal; the test takes away the attributes in double brackets.
typedef unsigned int uint;
#define kernel extern "C"
#define device
#define constant const
#define threadgroup SIMT_SHARED
struct mem_flags { enum { mem_device = 1, mem_threadgroup = 2 }; };
#define threadgroup_barrier(flags) simt::barrier(__COUNTER__ + 1)
