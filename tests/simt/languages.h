// What each language of kernels means on the simulator of simt.h.
#pragma once
#include "simt.h"

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

#define swap_f32(x, distance, ...) simt::swap(__COUNTER__ + 1, x, distance)

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
