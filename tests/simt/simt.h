// Runs kernels for work groups on the CPU, for tests: a group at a time, a fiber for each thread.
//
// Threads run one after another up to a barrier, forwards in one round and backwards in the next,
// so that a missing barrier shows as a wrong result. Barriers that threads meet at different
// places, or that some never reach, are errors. Shared memory is poisoned before each group.
// Neighbours that swap values wait for their subgroup alone, which runs up to the next barrier
// before the other subgroups do.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cmath>
#include <type_traits>
#include <utility>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace simt {

constexpr size_t STACK = 128 * 1024;
#ifndef SIMT_SUBGROUP
#define SIMT_SUBGROUP 32
#endif
constexpr unsigned SUBGROUP = SIMT_SUBGROUP;
constexpr unsigned SHOWN = 20;
enum class At { nothing, barrier, swap, end };

struct Fiber {
    char *stack = nullptr;
#if defined(__x86_64__)
    void *at = nullptr;
#else
    ucontext_t at;
#endif
    At at_what = At::nothing;
    int site = 0; // of the barrier or swap that it waits at
    bool published = false; // what it wrote to shared memory, since the last barrier
    bool odd = false; // which of its places for swapped values was used last
    float swapped[2] = {};
    unsigned shown[2][SHOWN] = {};
};

struct Group {
    std::vector<Fiber> fibers;
    Fiber host;
    unsigned group = 0, thread = 0, threads = 0;
    bool published = false; // by all threads, before the last barrier
    char *window = nullptr; // where the group's shared memory begins
    void (*body)(void *) = nullptr;
    void *argument = nullptr;
};

inline Group now;

#if defined(__x86_64__)
extern "C" void simt_jump(void **from, void *to);
asm(".text\n.weak simt_jump\n.type simt_jump,@function\nsimt_jump:\n"
    "  push %rbp\n  push %rbx\n  push %r12\n  push %r13\n  push %r14\n  push %r15\n"
    "  mov %rsp, (%rdi)\n  mov %rsi, %rsp\n"
    "  pop %r15\n  pop %r14\n  pop %r13\n  pop %r12\n  pop %rbx\n  pop %rbp\n  ret\n");
inline void jump(Fiber &from, Fiber &to) { simt_jump(&from.at, to.at); }
#else
inline void jump(Fiber &from, Fiber &to) { swapcontext(&from.at, &to.at); }
#endif

inline void enter() {
    now.body(now.argument);
    Fiber &self = now.fibers[now.thread];
    self.at_what = At::end;
    jump(self, now.host);
    abort();
}

inline void prepare(Fiber &f) {
    if (f.stack == nullptr) f.stack = (char *)aligned_alloc(64, STACK);
    f.at_what = At::nothing;
    f.site = 0;
    f.published = f.odd = false; // those of a launch that failed may differ
#if defined(__x86_64__)
    void **top = (void **)(f.stack + STACK);
    *--top = nullptr; // enters as after a call: the stack is 8 past a multiple of 16
    *--top = (void *)&enter;
    for (int i = 0; i < 6; i++) *--top = nullptr;
    f.at = top;
#else
    getcontext(&f.at);
    f.at.uc_stack.ss_sp = f.stack;
    f.at.uc_stack.ss_size = STACK;
    f.at.uc_link = nullptr;
    makecontext(&f.at, (void (*)())enter, 0);
#endif
}

inline void wait(At what, int site) {
    Fiber &self = now.fibers[now.thread];
    self.at_what = what;
    self.site = site;
    jump(self, now.host);
}

inline void barrier(int site) { wait(At::barrier, site); }

// The value of the thread whose number differs in this bit; NaN where it is of another subgroup.
inline float swap(int site, float x, unsigned distance) {
    Fiber &self = now.fibers[now.thread];
    unsigned other = now.thread ^ distance;
    self.odd = !self.odd;
    self.swapped[self.odd] = x;
    wait(At::swap, site);
    bool here = other < now.threads && other / SUBGROUP == now.thread / SUBGROUP;
    return here ? now.fibers[other].swapped[self.odd] : NAN;
}

// Words that a thread shows to its subgroup, and those that another one showed.
template <size_t n> void show(int site, const unsigned (&words)[n]) {
    static_assert(n <= SHOWN);
    Fiber &self = now.fibers[now.thread];
    self.odd = !self.odd;
    memcpy(self.shown[self.odd], words, sizeof words);
    wait(At::swap, site);
}
inline const unsigned *shown(unsigned lane) {
    unsigned other = now.thread / SUBGROUP * SUBGROUP + lane;
    if (other >= now.threads) abort();
    return now.fibers[other].shown[now.fibers[now.thread].odd];
}
inline unsigned lane() { return now.thread % SUBGROUP; }

// Whether fibers `begin` to `end` all wait at one place, or have all ended.
inline bool together(unsigned begin, unsigned end) {
    for (unsigned i = begin + 1; i < end; i++) {
        const Fiber &a = now.fibers[begin], &b = now.fibers[i];
        if (a.at_what != b.at_what || (a.at_what != At::end && a.site != b.site)) return false;
    }
    return true;
}

// Threads `begin` to `end`, a subgroup, up to the next barrier; false where they part.
inline bool run_subgroup(unsigned begin, unsigned end, bool backwards) {
    do {
        for (unsigned i = begin; i < end; i++) {
            now.thread = backwards ? end - 1 - (i - begin) : i;
            jump(now.host, now.fibers[now.thread]);
        }
        if (!together(begin, end)) return false;
    } while (now.fibers[begin].at_what == At::swap);
    return true;
}

// Shared arrays lie together, so that all of them can be poisoned.
extern "C" char __start_simt_shared[] __attribute__((weak));
extern "C" char __stop_simt_shared[] __attribute__((weak));

// nullptr, or what went wrong.
inline const char *run_group(unsigned group, unsigned threads, void (*body)(void *), void *argument) {
    now.group = group;
    now.body = body;
    now.argument = argument;
    if (now.fibers.size() < threads) now.fibers.resize(threads);
    for (unsigned i = 0; i < threads; i++) prepare(now.fibers[i]);
    memset(__start_simt_shared, 0xff, (size_t)(__stop_simt_shared - __start_simt_shared));
    now.threads = threads;
    now.published = false;
    now.window = nullptr;
    unsigned blocks = (threads + SUBGROUP - 1) / SUBGROUP;
    for (unsigned round = 0;; round++) {
        for (unsigned i = 0; i < blocks; i++) {
            unsigned b = round % 2 ? blocks - 1 - i : i, end = (b + 1) * SUBGROUP;
            if (!run_subgroup(b * SUBGROUP, end < threads ? end : threads, round % 2))
                return "threads of a subgroup wait at different places, or not all of them";
        }
        if (!together(0, threads)) return "threads wait at different barriers, or not all of them";
        if (now.fibers[0].at_what == At::end) return nullptr;
        now.published = true;
        for (unsigned i = 0; i < threads; i++) {
            now.published &= now.fibers[i].published;
            now.fibers[i].published = false;
        }
    }
}

// What a launch hands to a kernel: pointers are buffers, i32 are dims in order, and two unsigned
// numbers, where a language wants them as arguments, are those of the group and the thread.
struct Launch {
    void **buffers;
    int *dims;
    int buffer = 0, dim = 0, builtin = 0;
    template <class A> decltype(auto) next() {
        if constexpr (std::is_pointer_v<A>) return (A)buffers[buffer++];
        else if constexpr (std::is_same_v<A, unsigned>) return builtin++ == 0 ? now.group : now.thread;
        else return (A)dims[dim++];
    }
};

// What a driver of streams hands to a kernel: the address of each argument.
struct Values {
    void **arguments;
    int at = 0;
    template <class A> A next() { return *(A *)arguments[at++]; }
};

template <class Given, class... A>
const char *launch(void (*kernel)(A...), unsigned groups, unsigned threads, Given given) {
    struct Call {
        void (*kernel)(A...);
        Given given;
    } call = {kernel, given};
    auto body = [](void *argument) {
        Call &c = *(Call *)argument;
        Given next = c.given;
        struct Apply { // braces fix the order in which arguments are taken
            Apply(void (*kernel)(A...), A... a) { kernel(std::forward<A>(a)...); }
        };
        Apply{c.kernel, next.template next<A>()...};
    };
    for (unsigned g = 0; g < groups; g++)
        if (const char *error = run_group(g, threads, +body, &call)) return error;
    return nullptr;
}

} // namespace simt

#define STERNA_SIMT 1
#define SIMT_SHARED static __attribute__((section("simt_shared")))
