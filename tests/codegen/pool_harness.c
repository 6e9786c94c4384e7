// Drives pool.h with POSIX threads: pool_harness THREADS FORKS MODE. Prints "ok" or what differs.
//   plain  workers sit in sterna_work all the time
//   late   workers come, go and sleep at random, and the main thread waits for none of them
//   busy   as many endless loops run beside them as there are processors
//   cut    no thread: chunks of FORKS numbers of items are what chunk_start promises
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define STERNA_HOSTED
#include "pool.h"

enum { MOST = 5000 };
typedef struct {
    const u32 *a;
    const u32 *b;
    u32 *c;
    u32 scale;
} Add;

static Pool *pool;
static i32 late, quit;

static void add(const void *args, i64 begin, i64 end, i32 tid) {
    const Add *add = args;
    u32 *scratch = thread_scratch(pool, tid);
    for (i64 i = begin; i < end; i++) {
        scratch[0] = add->a[i] * add->scale; // a race here if two threads shared a tid
        add->c[i] += scratch[0] + add->b[i]; // += : an item done twice shows
    }
}

static void *worker(void *tid) {
    unsigned seed = (unsigned)(usize)tid;
    while (!sterna_work(pool, (i32)(usize)tid))
        if (late) usleep((unsigned)rand_r(&seed) % 300);
    return 0;
}

static void *spinner(void *unused) {
    while (!__atomic_load_n(&quit, __ATOMIC_RELAXED)) {}
    return unused;
}

static int check_forks(i32 forks) {
    static u32 a[MOST], b[MOST], c[MOST];
    for (u32 i = 0; i < MOST; i++) a[i] = i * 2654435761u, b[i] = i ^ 12345u;
    for (i32 fork = 0; fork < forks; fork++) {
        i64 items = fork % 7 ? fork % 97 : fork % MOST, grain = fork % 5 ? 1 + fork % 13 : 300;
        memset(c, 0, sizeof c);
        Add args = {a, b, c, (u32)fork};
        parallel(pool, add, &args, items, grain);
        for (i64 i = 0; i < MOST; i++) {
            u32 want = i < items ? a[i] * (u32)fork + b[i] : 0;
            if (c[i] != want) {
                printf("fork %d item %d of %d: %u, not %u\n", (int)fork, (int)i, (int)items,
                       (unsigned)c[i], (unsigned)want);
                return 1;
            }
        }
    }
    return 0;
}

// Chunks cover all items once and in order; none is longer than those of the round before, by more
// than rounding; in several rounds the first ones take half of the items, and no chunk is empty.
static int check_cuts(i64 side, i32 most) {
    for (i64 items = 1, grain = 1; items <= most; items += 1 + items / 9, grain = grain % 40 + 1) {
        i64 rounds = rounds_of(items, grain, side);
        i64 chunks = rounds > 1 ? rounds * side : (items - 1) / grain + 1;
        i64 end = 0, before = items, wrong = chunks > 0xffff || chunks > 8 * side;
        for (i64 chunk = 0; chunk < chunks; chunk++) {
            i64 begin = chunk_start(items, chunks, rounds, chunk);
            wrong |= begin != end;
            end = chunk_start(items, chunks, rounds, chunk + 1);
            wrong |= end <= begin || end - begin > before + 1;
            before = end - begin;
        }
        wrong |= end != items;
        if (rounds > 1) wrong |= chunk_start(items, chunks, rounds, side) != items - items / 2;
        if (rounds > 1) wrong |= before < grain || rounds < STERNA_LEAST_ROUNDS;
        if (rounds > 1 && rounds < STERNA_MOST_ROUNDS) wrong |= items >> rounds >= side * grain;
        if (wrong) {
            printf("%lld items of grain %lld on %lld threads: %lld chunks in %lld rounds\n",
                   (long long)items, (long long)grain, (long long)side, (long long)chunks,
                   (long long)rounds);
            return 1;
        }
    }
    return 0;
}

int main(int count, char **args) {
    if (count != 4) return 2;
    if (!strcmp(args[3], "cut")) {
        int failed = check_cuts(atoi(args[1]), atoi(args[2]));
        if (!failed) puts("ok");
        return failed;
    }
    i32 threads = atoi(args[1]), processors = (i32)sysconf(_SC_NPROCESSORS_ONLN);
    late = !strcmp(args[3], "late");
    pool = aligned_alloc(64, 4096);
    memset(pool, 0, 4096);
    pool->threads = threads;
    pool->spin = late ? 10 : 2000;
    pool->linger = late ? 1 : 16;
    pool->host.yield = sched_yield;
    pool->scratch_bytes = 64;
    pool->scratch.base = aligned_alloc(64, 64 * (usize)threads);
    pool->awake = !late;
    pthread_t ids[64], spinners[64];
    i32 spinning = strcmp(args[3], "busy") ? 0 : processors;
    for (i32 i = 0; i < spinning; i++) pthread_create(&spinners[i], 0, spinner, 0);
    for (i32 i = 1; i < threads; i++) pthread_create(&ids[i], 0, worker, (void *)(usize)i);
    int failed = check_forks(atoi(args[2]));
    __atomic_store_n(&pool->stop, 1, __ATOMIC_RELEASE);
    __atomic_store_n(&quit, 1, __ATOMIC_RELEASE);
    for (i32 i = 1; i < threads; i++) pthread_join(ids[i], 0);
    for (i32 i = 0; i < spinning; i++) pthread_join(spinners[i], 0);
    free(pool->scratch.base);
    free(pool);
    if (!failed) puts("ok");
    return failed;
}
