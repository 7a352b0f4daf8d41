/* Bulk copies and small accesses through the library, and what memcpy takes for the same. Each loop returns
 * nanoseconds per call, or a negative number if a call failed. */
#include <string.h>
#include <time.h>

#include "emucxl.h"

static double now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return 1e9 * (double)now.tv_sec + (double)now.tv_nsec;
}

/* Keeps the compiler from taking a loop for what it does once. */
#define FORGET() __asm__ volatile("" ::: "memory")

/* The first call is not timed: each begins with the caches it leaves itself, not with those of whoever came
 * before. */
#define TIME(call)                                        \
    do {                                                  \
        if ((call) != EMX_OK) return -1;                  \
        const double start_ns = now_ns();                 \
        for (uint64_t i = 0; i < num_calls; i++) {        \
            if ((call) != EMX_OK) return -1;              \
            FORGET();                                     \
        }                                                 \
        return (now_ns() - start_ns) / (double)num_calls; \
    } while (0)

EMX_API double bench_copy_memcpy(void* to, const void* from, size_t size_bytes, uint64_t num_calls) {
    TIME((memcpy(to, from, size_bytes), EMX_OK));
}

EMX_API double bench_copy_read(emx_context* context, const void* from, void* to, size_t size_bytes,
                               uint64_t num_calls) {
    TIME(emx_read(context, from, 0, to, size_bytes));
}

EMX_API double bench_copy_write(emx_context* context, void* to, const void* from, size_t size_bytes,
                                uint64_t num_calls) {
    TIME(emx_write(context, to, 0, from, size_bytes));
}

EMX_API double bench_copy_copy(emx_context* context, void* to, const void* from, size_t size_bytes,
                               uint64_t num_calls) {
    TIME(emx_copy(context, to, 0, from, 0, size_bytes));
}
