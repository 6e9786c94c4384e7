// Makes a library for aarch64 Linux its own program: no loader, no libc. Reads an image of memory
// from stdin (see host_free.py), runs its steps, writes the logits that they gave to stdout.
typedef struct {
    i64 entry, dims, buffers, count, tokens; // offsets in the image; tokens: where the last one goes
} ImageStep;
typedef struct {
    i64 size, pool, scratch, arena, logits, vocab, steps;
    ImageStep step[64];
} Image;

static i64 call_system(i64 number, i64 a, i64 b, i64 c, i64 d, i64 e) {
    register i64 x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b;
    register i64 x2 __asm__("x2") = c, x3 __asm__("x3") = d, x4 __asm__("x4") = e;
    register i64 x5 __asm__("x5") = 0;
    __asm__ volatile("svc 0"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                     : "memory");
    return x0;
}

static i32 largest(const float *logits, i64 vocab) {
    i32 best = 0;
    for (i32 i = 1; i < vocab; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

EXPORT void start(void);
EXPORT void start(void) {
    i64 size;
    call_system(63, 0, (i64)&size, 8, 0, 0);                 // read
    u8 *base = (u8 *)call_system(222, 0, size, 3, 2, 0);     // mmap, private, of stdin
    Image *image = (Image *)base;
    Pool *pool = (Pool *)(base + image->pool);
    pool->threads = 1;
    pool->scratch.base = base + image->scratch;
    i32 token = 0;
    for (i64 i = 0; i < image->steps; i++) {
        ImageStep *step = &image->step[i];
        u64 *buffers = (u64 *)(base + step->buffers);
        for (i64 j = 0; j < step->count; j++) buffers[j] += (u64)base;
        if (i) *(i32 *)(base + step->tokens) = token;
        void *const *table = (void *const *)buffers;
        const i64 *dims = (const i64 *)(base + step->dims);
        i32 failed = step->entry ? sterna_entry_decode(pool, table, base + image->arena, dims)
                                 : sterna_entry_prefill(pool, table, base + image->arena, dims);
        if (failed) call_system(93, 1, 0, 0, 0, 0); // exit
        const float *logits = (const float *)(base + image->logits);
        token = largest(logits, image->vocab);
        call_system(64, 1, (i64)logits, 4 * image->vocab, 0, 0); // write
    }
    call_system(93, 0, 0, 0, 0, 0);
}
