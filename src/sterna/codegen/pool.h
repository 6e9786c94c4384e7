// What every generated library stands on: integer types, memcpy, and the thread pool.
//
// Included verbatim at the top of each translation unit. Freestanding C11: no header, no libc.
// The threads are the host's. The main thread calls an entry function; the others sit in
// sterna_work(). Generated code forks with parallel() and joins before it returns.
//
//   STERNA_UNIT    number of this translation unit; exports and memcpy live in unit 0 only
//   STERNA_HOSTED  defined when a C library is linked (sanitizers): memcpy comes from there

typedef __INT8_TYPE__ i8;
typedef __UINT8_TYPE__ u8;
typedef __INT16_TYPE__ i16;
typedef __UINT16_TYPE__ u16;
typedef __INT32_TYPE__ i32;
typedef __UINT32_TYPE__ u32;
typedef __INT64_TYPE__ i64;
typedef __UINT64_TYPE__ u64;
typedef __SIZE_TYPE__ usize;

#ifndef STERNA_UNIT
#define STERNA_UNIT 0
#endif

#ifdef _WIN32
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif
#define STERNA_MAYBE static __attribute__((unused))

// Compilers call these by name, for struct copies and for loops they recognise.

#if defined(_WIN32) || defined(STERNA_HOSTED)
#define STERNA_HIDDEN
#else
#define STERNA_HIDDEN __attribute__((visibility("hidden")))
#endif

STERNA_HIDDEN void *memcpy(void *restrict to, const void *restrict from, usize size);
STERNA_HIDDEN void *memmove(void *to, const void *from, usize size);
STERNA_HIDDEN void *memset(void *to, int value, usize size);

#if STERNA_UNIT == 0 && !defined(STERNA_HOSTED)

// The bodies must not be recognised as the functions they define: that would recurse for ever.
#ifdef __clang__
#define STERNA_PLAIN_LOOP __attribute__((no_builtin, used))
#else
#define STERNA_PLAIN_LOOP __attribute__((optimize("no-tree-loop-distribute-patterns"), used))
#endif

STERNA_PLAIN_LOOP void *memcpy(void *restrict to, const void *restrict from, usize size) {
    u8 *restrict t = to;
    const u8 *restrict f = from;
    for (usize i = 0; i < size; i++) t[i] = f[i];
    return to;
}

STERNA_PLAIN_LOOP void *memmove(void *to, const void *from, usize size) {
    u8 *t = to;
    const u8 *f = from;
    if (t <= f) {
        for (usize i = 0; i < size; i++) t[i] = f[i];
    } else {
        for (usize i = size; i > 0; i--) t[i - 1] = f[i - 1];
    }
    return to;
}

STERNA_PLAIN_LOOP void *memset(void *to, int value, usize size) {
    u8 *t = to;
    for (usize i = 0; i < size; i++) t[i] = (u8)value;
    return to;
}

#ifdef _WIN32
EXPORT i32 DllMainCRTStartup(void *module, u32 reason, void *reserved);
EXPORT i32 DllMainCRTStartup(void *module, u32 reason, void *reserved) {
    (void)module, (void)reason, (void)reserved;
    return 1;
}
#endif
#endif

#define STERNA_ABI 1 // raised when Pool, WorkFn or the entry signature changes

// Does items [begin, end) of a kernel. `tid` tells whose scratch memory to use, nothing else:
// the result must not depend on how items were cut into calls.
typedef void (*WorkFn)(const void *args, i64 begin, i64 end, i32 tid);

typedef struct Pool Pool;

// The host allocates 4096 zeroed bytes, aligned to 64, and fills the first cache line. Members
// that different threads write lie on cache lines of their own.
struct Pool {
    // Written by the host before any thread enters, then constant.
    i32 threads; // including the main thread, which is tid 0
    i32 spin;    // pauses before a waiting thread yields its processor
    i32 linger;  // rounds of `spin` pauses a worker waits after the step for another one
    i32 reserved;
    union { i32 (*yield)(void); u64 yield_bits; } host;   // sched_yield, or null
    union { u8 *base; u64 base_bits; } scratch;           // threads * scratch_bytes
    i64 scratch_bytes;
    // Written by the host at any time.
    _Alignas(64) i32 awake; // a step is running: workers stay although they find no work
    i32 stop;               // workers return at once
    // generation << 32 | chunks << 16 | next chunk. One word, so that one fetch_add says which
    // job a chunk belongs to and whether there was one left.
    _Alignas(64) u64 job;
    _Alignas(64) u32 done; // chunks of the current job that are finished
    // The current job. Stable while a chunk of it is unfinished: whoever holds one may read it.
    _Alignas(64) WorkFn work;
    const void *args;
    i64 items;
    i64 rounds; // in which its chunks are cut: see chunk_start
};

_Static_assert(sizeof(Pool) <= 4096, "the host allocates 4096 bytes");
_Static_assert(__builtin_offsetof(Pool, host) == 16, "the host writes by offset");
_Static_assert(__builtin_offsetof(Pool, scratch) == 24, "the host writes by offset");
_Static_assert(__builtin_offsetof(Pool, scratch_bytes) == 32, "the host writes by offset");
_Static_assert(__builtin_offsetof(Pool, awake) == 64, "the host writes by offset");
_Static_assert(__builtin_offsetof(Pool, stop) == 68, "the host writes by offset");

enum { STERNA_LEAST_ROUNDS = 4, STERNA_MOST_ROUNDS = 8, STERNA_MOST_SIDE = 1024 };

// Scratch memory of one thread, Entry.scratch_bytes long, aligned to 64.
STERNA_MAYBE void *thread_scratch(const Pool *pool, i32 tid) {
    return pool->scratch.base + (i64)tid * pool->scratch_bytes;
}

STERNA_MAYBE void cpu_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory"); // `yield` is a no-op on most cores
#endif
}

// Pause, and every `spin` pauses give the processor away: the thread waited for may need it.
STERNA_MAYBE void wait_a_little(const Pool *pool, i32 *pauses) {
    if (++*pauses < pool->spin) {
        cpu_pause();
    } else {
        *pauses = 0;
        if (pool->host.yield) pool->host.yield();
    }
}

STERNA_MAYBE i64 equal_start(i64 items, i64 chunks, i64 chunk) {
    return items / chunks * chunk + items % chunks * chunk / chunks;
}

// Where a chunk begins. A round has one chunk for each thread, all equal, and takes half of what
// is left; the last takes the rest. So most of a job is done in long runs of items, and
// threads end together, for the last chunks are short. Factoring: Hummel, Schonberg, Flynn,
// "Factoring: a method for scheduling parallel loops", CACM 35(8), 1992.
STERNA_MAYBE i64 chunk_start(i64 items, i64 chunks, i64 rounds, i64 chunk) {
    i64 side = chunks / rounds, round = chunk / side;
    if (round == rounds) return items;
    i64 begin = items - (items >> round);
    i64 end = round + 1 == rounds ? items : items - (items >> (round + 1));
    return begin + equal_start(end - begin, side, chunk % side);
}

// As many rounds as leave `grain` items to the chunks of the last; 1 where there are few items,
// whose chunks are then pieces of about `grain`.
STERNA_MAYBE i64 rounds_of(i64 items, i64 grain, i64 side) {
    i64 rounds = STERNA_LEAST_ROUNDS;
    if (items >> (rounds - 1) < side * grain) return 1;
    while (rounds < STERNA_MOST_ROUNDS && items >> rounds >= side * grain) rounds++;
    return rounds;
}

// Take chunks of whatever job is current until none is left; true if there was one.
STERNA_MAYBE i32 take_chunks(Pool *pool, i32 tid) {
    i32 found = 0;
    for (;;) {
        u64 job = __atomic_load_n(&pool->job, __ATOMIC_RELAXED);
        if ((job & 0xffff) >= (job >> 16 & 0xffff)) return found;
        job = __atomic_fetch_add(&pool->job, 1, __ATOMIC_ACQUIRE); // perhaps a newer job: as good
        i64 chunk = (i64)(job & 0xffff), chunks = (i64)(job >> 16 & 0xffff);
        if (chunk >= chunks) return found;
        i64 items = pool->items, rounds = pool->rounds;
        pool->work(pool->args, chunk_start(items, chunks, rounds, chunk),
                   chunk_start(items, chunks, rounds, chunk + 1), tid);
        __atomic_fetch_add(&pool->done, 1, __ATOMIC_RELEASE);
        found = 1;
    }
}

// Run `work` over items [0, items), in pieces of about `grain` or more, on all threads that are
// here; return when all of it is done. Only the main thread may call it, never from inside work.
// A worker that is late, asleep or preempted between chunks costs nothing: no one waits for a
// thread, only for chunks.
STERNA_MAYBE void parallel(Pool *pool, WorkFn work, const void *args, i64 items, i64 grain) {
    if (items <= 0) return;
    i64 side = pool->threads < STERNA_MOST_SIDE ? pool->threads : STERNA_MOST_SIDE;
    if (grain < 1) grain = 1;
    i64 rounds = rounds_of(items, grain, side);
    i64 chunks = rounds > 1 ? rounds * side : (items - 1) / grain + 1;
    if (chunks < 2 || pool->threads < 2) {
        work(args, 0, items, 0);
        return;
    }
    pool->work = work;
    pool->args = args;
    pool->items = items;
    pool->rounds = rounds;
    __atomic_store_n(&pool->done, 0, __ATOMIC_RELAXED);
    u64 generation = (__atomic_load_n(&pool->job, __ATOMIC_RELAXED) >> 32) + 1;
    __atomic_store_n(&pool->job, generation << 32 | (u64)chunks << 16, __ATOMIC_RELEASE);
    take_chunks(pool, 0);
    i32 pauses = 0;
    while (__atomic_load_n(&pool->done, __ATOMIC_ACQUIRE) != (u32)chunks)
        wait_a_little(pool, &pauses);
}

#if STERNA_UNIT == 0

// A worker's life: help until told to stop, or until no step is running and none has come for
// a while. Returns 1 when stopped, 0 when idle; the host then sleeps in a wait of its own.
EXPORT i32 sterna_work(Pool *pool, i32 tid);
EXPORT i32 sterna_work(Pool *pool, i32 tid) {
    i32 pauses = 0, rounds = 0;
    for (;;) {
        if (__atomic_load_n(&pool->stop, __ATOMIC_ACQUIRE)) return 1;
        if (take_chunks(pool, tid)) {
            pauses = rounds = 0;
            continue;
        }
        wait_a_little(pool, &pauses);
        if (pauses) continue;
        if (__atomic_load_n(&pool->awake, __ATOMIC_RELAXED)) rounds = 0;
        else if (++rounds > pool->linger) return 0;
    }
}

EXPORT i32 sterna_abi(void);
EXPORT i32 sterna_abi(void) {
    return STERNA_ABI;
}

#endif
