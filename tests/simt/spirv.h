// What instructions of SPIR-V mean on the simulator of simt.h, where C++ has no word for them.
//
// A pointer knows the object that it points into, and an access outside of it ends the launch with
// a reason. So does a race in the memory that a group shares: what a thread wrote may be read or
// overwritten by another only behind a barrier that makes it available and visible.
#pragma once
#include "simt.h"
#include <array>
#include <bit>

namespace spirv {

enum Storage { push_constant = 9, workgroup = 4, function = 7, storage_buffer = 12 };
constexpr unsigned MOST_THREADS = 1024, NOBODY = 0xffff;

struct Place { char *at, *begin, *end; };
template <class T, int n> struct Vec { T v[n]; };

// What a launch binds, and what went wrong in it first.
struct Bound {
    char **buffers;
    const size_t *sizes;
    char *dims;
    size_t dims_bytes;
};
inline Bound bound;
inline char told[200];

[[noreturn]] inline void fail(const char *what, long a = 0, long b = 0) {
    simt::Fiber &self = simt::now.fibers[simt::now.thread];
    if (!*told) {
        int n = snprintf(told, sizeof told, "thread %u of group %u: ", simt::now.thread, simt::now.group);
        snprintf(told + n, sizeof told - n, what, a, b);
    }
    self.at_what = simt::At::end;
    simt::jump(self, simt::now.host);
    abort();
}

// Memory that the group shares, and who touched its elements since the last barrier.
struct Mark { unsigned written, read; uint16_t writer, reader; };
alignas(64) SIMT_SHARED char pool[SPIRV_POOL];
static Mark marks[SPIRV_POOL];
inline unsigned epochs[MOST_THREADS], newest; // how many barriers each thread has passed

inline void enter() {
    static unsigned first;
    if (simt::now.thread == 0) first = ++newest; // which runs before the others
    epochs[simt::now.thread] = first;
}
inline void barrier(int site, bool publishes) {
    simt::barrier(site);
    unsigned &own = epochs[simt::now.thread];
    own += publishes;
    if (own > newest) newest = own;
}
inline void mark(const char *at, bool writes) {
    Mark &m = marks[at - pool];
    unsigned now = epochs[simt::now.thread];
    uint16_t own = (uint16_t)simt::now.thread;
    if (m.written == now && m.writer != own)
        fail(writes ? "overwrites what thread %ld wrote, and no barrier is between"
                    : "reads what thread %ld wrote, and no barrier is between", m.writer);
    if (writes && m.read == now && m.reader != own)
        fail("overwrites what others read, and no barrier is between");
    if (writes) {
        m.written = now;
        m.writer = own;
    } else {
        m.reader = m.read == now && m.reader != own ? NOBODY : own;
        m.read = now;
    }
}

// Accesses.
template <class T> struct Parts { using scalar = T; static constexpr int count = 1; };
template <class T, int n> struct Parts<Vec<T, n>> { using scalar = T; static constexpr int count = n; };

template <class T, int storage> void touch(Place p, bool writes) {
    using Scalar = typename Parts<T>::scalar;
    if (p.at < p.begin || p.at + sizeof(T) > p.end)
        fail("an access to byte %ld of an object of %ld", p.at - p.begin, p.end - p.begin);
    if constexpr (storage == storage_buffer || storage == push_constant)
        if ((uintptr_t)p.at % sizeof(T) != 0) fail("an access that is not aligned to %ld", sizeof(T));
    if constexpr (storage == workgroup)
        for (int i = 0; i < Parts<T>::count; i++) mark(p.at + i * sizeof(Scalar), writes);
}
template <class T, int storage> T load(Place p) {
    touch<T, storage>(p, false);
    if constexpr (std::is_same_v<T, bool>) return *p.at != 0;
    T x;
    memcpy(&x, p.at, sizeof x);
    return x;
}
template <class T, int storage> void store(Place p, T x) {
    touch<T, storage>(p, true);
    memcpy(p.at, &x, sizeof x);
}
inline Place chain(Place p, long index, long stride, long length) { // length -1: not known here
    if (index < 0 || (length >= 0 && index >= length)) fail("element %ld of %ld", index, length);
    return {p.at + index * stride, p.begin, p.end};
}
inline Place buffer(int binding) {
    char *at = bound.buffers[binding];
    return {at, at, at + bound.sizes[binding]};
}
inline Place dims() { return {bound.dims, bound.dims, bound.dims + bound.dims_bytes}; }
template <class T> void poison(T &x) { memset((void *)&x, 0xff, sizeof x); }

// Threads: Vulkan does not say which of a group are a subgroup, so not those that one expects.
inline Vec<uint32_t, 3> group_id() { return {simt::now.group, 0, 0}; }
inline uint32_t local_index() { return (simt::now.thread + 1) % simt::now.threads; }
inline uint32_t subgroup_id() {
    return (simt::now.threads - 1) / simt::SUBGROUP - simt::now.thread / simt::SUBGROUP;
}
inline uint32_t subgroup_lane() { return simt::SUBGROUP - 1 - simt::lane(); }

// Numbers. What the specification leaves open is a number that is seldom right.
constexpr uint32_t OPEN = 0xdeadbeef;
inline uint32_t udiv(uint32_t a, uint32_t b) { return b ? a / b : OPEN; }
inline uint32_t umod(uint32_t a, uint32_t b) { return b ? a % b : OPEN; }
inline bool divides(int32_t a, int32_t b) { return b != 0 && !(a == INT32_MIN && b == -1); }
inline int32_t sdiv(int32_t a, int32_t b) { return divides(a, b) ? a / b : (int32_t)OPEN; }
inline int32_t srem(int32_t a, int32_t b) { return divides(a, b) ? a % b : (int32_t)OPEN; }
inline uint32_t left(uint32_t a, uint32_t n) { return n < 32 ? a << n : OPEN; }
inline uint32_t right(uint32_t a, uint32_t n) { return n < 32 ? a >> n : OPEN; }
inline int32_t right_signed(int32_t a, uint32_t n) { return n < 32 ? a >> n : (int32_t)OPEN; }
inline uint32_t field(uint32_t a, uint32_t first, uint32_t count) {
    if (first > 32 || count > 32 || first + count > 32) return OPEN;
    return count == 0 ? 0 : a << (32 - first - count) >> (32 - count);
}
inline int32_t field_signed(int32_t a, uint32_t first, uint32_t count) {
    if (first > 32 || count > 32 || first + count > 32) return (int32_t)OPEN;
    return count == 0 ? 0 : (int32_t)((uint32_t)a << (32 - first - count)) >> (32 - count);
}
template <class T> T whole(float x) { // what no T is, is open
    double least = std::is_signed_v<T> ? -2147483649.0 : -1.0;
    double most = std::is_signed_v<T> ? 2147483648.0 : 4294967296.0;
    return x > least && x < most ? (T)x : (T)OPEN;
}
template <class T, class From> T converted(From x) { return (T)x; }
template <class T, class From, int n> T converted(Vec<From, n> x) {
    T found;
    for (int i = 0; i < n; i++) found.v[i] = (typename Parts<T>::scalar)x.v[i];
    return found;
}
template <class T, class From> T bitcast(From x) {
    static_assert(sizeof(T) == sizeof(From));
    T found;
    memcpy(&found, &x, sizeof found);
    return found;
}
inline Vec<float, 2> unpack_halves(uint32_t x) {
    Vec<_Float16, 2> halves = bitcast<Vec<_Float16, 2>>(x);
    return {(float)halves.v[0], (float)halves.v[1]};
}

// Cooperative matrices. How their elements lie in the threads of a subgroup is nobody's business:
// here it is drawn by lot, otherwise for each use and size.
template <int size> using Order = std::array<uint16_t, size>;
template <int size> constexpr Order<size> drawn(unsigned use) {
    Order<size> order{};
    for (int i = 0; i < size; i++) order[i] = (uint16_t)i;
    unsigned state = 77 + use;
    for (int i = size - 1; i > 0; i--) {
        state = state * 1664525 + 1013904223;
        std::swap(order[i], order[(state >> 8) % (i + 1)]);
    }
    return order;
}
template <int size> constexpr Order<size> inverse(Order<size> order) {
    Order<size> found{};
    for (int i = 0; i < size; i++) found[order[i]] = (uint16_t)i;
    return found;
}

template <class T, int rows_, int columns_, int use> struct Matrix {
    using Element = T;
    static constexpr int rows = rows_, columns = columns_, size = rows * columns;
    static_assert(size % simt::SUBGROUP == 0, "a subgroup has no equal parts of such a matrix");
    static constexpr int own = size / simt::SUBGROUP;
    static constexpr Order<size> element = drawn<size>(use), place = inverse<size>(element);
    T v[own];
    static Matrix filled(T x) {
        Matrix m;
        for (T &e : m.v) e = x;
        return m;
    }
    static int kept(int i) { return element[i * simt::SUBGROUP + simt::lane()]; }
    // An element that one of the subgroup showed, of a matrix whose words begin at `first`.
    static T shown(int row, int column, int first) {
        unsigned at = place[row * columns + column];
        T x;
        memcpy(&x, (const char *)(simt::shown(at % simt::SUBGROUP) + first) + at / simt::SUBGROUP * sizeof x, sizeof x);
        return x;
    }
};

inline void whole_subgroup() {
    if (simt::now.threads % simt::SUBGROUP != 0) fail("a matrix of a subgroup that is not full");
}

// Whether all of a subgroup name one place and stride, and rows or columns are aligned.
template <class M, bool by_columns> void same_place(int site, Place p, unsigned stride) {
    whole_subgroup();
    unsigned words[3] = {0, 0, stride};
    memcpy(words, &p.at, sizeof p.at);
    simt::show(site, words);
    for (unsigned i = 0; i < simt::SUBGROUP; i++)
        if (memcmp(simt::shown(i), words, sizeof words) != 0)
            fail("threads of a subgroup name different places of a matrix");
    size_t size = sizeof(typename M::Element), line = (by_columns ? M::rows : M::columns) * size;
    size_t least = line < 16 ? line : 16;
    if ((uintptr_t)p.at % least != 0 || stride * size % least != 0)
        fail("rows of a matrix that are not aligned to %ld", least);
}
template <class M, bool by_columns> Place element_of(Place p, unsigned stride, int i) {
    long row = M::kept(i) / M::columns, column = M::kept(i) % M::columns;
    long away = by_columns ? column * stride + row : row * stride + column;
    return {p.at + away * (long)sizeof(typename M::Element), p.begin, p.end};
}
template <class M, int storage, bool by_columns> M matrix_load(int site, Place p, unsigned stride) {
    same_place<M, by_columns>(site, p, stride);
    M m;
    for (int i = 0; i < M::own; i++)
        m.v[i] = load<typename M::Element, storage>(element_of<M, by_columns>(p, stride, i));
    return m;
}
template <class M, int storage, bool by_columns>
void matrix_store(int site, Place p, unsigned stride, const M &m) {
    same_place<M, by_columns>(site, p, stride);
    for (int i = 0; i < M::own; i++)
        store<typename M::Element, storage>(element_of<M, by_columns>(p, stride, i), m.v[i]);
}

// Adds from the last product to the first: nobody says in which order a device does.
template <class C, class A, class B> C multiply_add(int site, const A &a, const B &b, C c) {
    whole_subgroup();
    constexpr int first = sizeof(A) / 4;
    unsigned words[first + sizeof(B) / 4];
    memcpy(words, &a, sizeof a);
    memcpy(words + first, &b, sizeof b);
    simt::show(site, words);
    for (int i = 0; i < C::own; i++) {
        int row = C::kept(i) / C::columns, column = C::kept(i) % C::columns;
        for (int k = A::columns - 1; k >= 0; k--)
            c.v[i] += (float)A::shown(row, k, 0) * (float)B::shown(k, column, first);
    }
    return c;
}

// nullptr, or what went wrong.
inline const char *launch(void (*kernel)(), unsigned groups, unsigned threads, Bound given) {
    bound = given;
    *told = 0;
    if (threads > MOST_THREADS) return "too many threads in a group";
    auto body = [](void *kernel) { ((void (*)())kernel)(); };
    for (unsigned g = 0; g < groups; g++) {
        const char *error = simt::run_group(g, threads, +body, (void *)kernel);
        if (*told) return told;
        if (error) return error;
    }
    return nullptr;
}

} // namespace spirv
