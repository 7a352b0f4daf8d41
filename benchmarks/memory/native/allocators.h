/* The allocators that are compared, behind one pair of calls. The call through a pointer costs all of them
 * the same. */
#ifndef EMX_BENCH_ALLOCATORS_H
#define EMX_BENCH_ALLOCATORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "emucxl.h"

typedef enum bench_allocator {
    BENCH_EMUCXL = 0,    /* emx_alloc: zeroed */
    BENCH_MALLOC = 1,    /* the C library's, or whatever is preloaded: not zeroed */
    BENCH_CALLOC = 2,    /* the same, zeroed */
    BENCH_MI_MALLOC = 3, /* mimalloc: not zeroed */
    BENCH_MI_ZALLOC = 4, /* mimalloc: zeroed */
    BENCH_UMF = 5,  /* unified-memory-framework, its disjoint pool over pages of the system: not zeroed */
    BENCH_MMAP = 6, /* an mmap of whole pages for each block, as the published system does: zeroed */
    BENCH_NUM_ALLOCATORS,
} bench_allocator;

typedef struct bench_tier { /* for BENCH_EMUCXL */
    emx_context* context;
    emx_tier number;
} bench_tier;

typedef struct allocator {
    void* (*alloc)(const struct allocator* self, size_t size_bytes); /* NULL when it fails */
    void (*free)(const struct allocator* self, void* block, size_t size_bytes);
    bench_tier tier;
    void* pool;
    bool zeroes;
} allocator;

/* False where its library is not installed. */
bool allocator_open(bench_allocator which, const bench_tier* tier, allocator* opened);

#endif
