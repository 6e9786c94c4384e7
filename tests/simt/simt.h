// Runs kernels for work groups on the CPU, for tests: a group at a time, a fiber for each thread.
//
// Threads run one after another up to a barrier, forwards in one round and backwards in the next,
// so that a missing barrier shows as a wrong result. Barriers that threads meet at different
// places, or that some never reach, are errors. Shared memory is poisoned before each group.
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

struct Fiber {
    char *stack = nullptr;
#if defined(__x86_64__)
    void *at = nullptr;
#else
    ucontext_t at;
#endif
    int site = 0; // of the barrier that it waits at
    bool done = false;
};

struct Group {
    std::vector<Fiber> fibers;
    Fiber host;
    unsigned group = 0, thread = 0;
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
    self.done = true;
    jump(self, now.host);
    abort();
}

inline void prepare(Fiber &f) {
    if (f.stack == nullptr) f.stack = (char *)aligned_alloc(64, STACK);
    f.done = false;
    f.site = 0;
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

inline void barrier(int site) {
    Fiber &self = now.fibers[now.thread];
    self.site = site;
    jump(self, now.host);
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
    for (unsigned round = 0;; round++) {
        unsigned done = 0;
        for (unsigned i = 0; i < threads; i++) {
            now.thread = round % 2 ? threads - 1 - i : i;
            jump(now.host, now.fibers[now.thread]);
        }
        for (unsigned i = 0; i < threads; i++) done += now.fibers[i].done;
        if (done == threads) return nullptr;
        if (done) return "some threads of a group ended, others wait at a barrier";
        for (unsigned i = 1; i < threads; i++)
            if (now.fibers[i].site != now.fibers[0].site) return "threads wait at different barriers";
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
