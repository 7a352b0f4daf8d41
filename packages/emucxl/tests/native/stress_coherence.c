/* Two hosts, two threads each, in one process: each thread writes, flushes and reads back bytes of its own in
 * lines that all of them share, with a cache so small that everything is evicted all the time. Argument: the
 * rounds. */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <emucxl.h>

enum { HOSTS = 2, THREADS = 4, LINES = 16, SIZE = LINES * EMX_LINE_BYTES };

static _Alignas(EMX_LINE_BYTES) unsigned char memory[SIZE];
static emx_cache* caches[HOSTS];
static unsigned rounds;

#define CHECK(condition)                                                                     \
    do {                                                                                     \
        if (!(condition)) {                                                                  \
            fprintf(stderr, "line %d: %s (%s)\n", __LINE__, #condition, emx_error_detail()); \
            exit(1);                                                                         \
        }                                                                                    \
    } while (0)

/* Thread t has the bytes t, t + THREADS, ... */
static void* work(void* argument) {
    const unsigned thread = (unsigned)(uintptr_t)argument;
    emx_cache* cache = caches[thread % HOSTS];
    unsigned random = thread + 1;
    unsigned char own[SIZE] = {0};
    for (unsigned round = 0; round < rounds; round++) {
        random = random * 1664525u + 1013904223u;
        const uint64_t offset = (random >> 8) % (SIZE / THREADS) * THREADS + thread;
        unsigned char byte = (unsigned char)random;
        CHECK(emx_cache_write(cache, offset, &byte, 1) == EMX_OK);
        own[offset] = byte;
        if (random >> 30 == 0)
            CHECK(emx_cache_flush(cache, offset & ~UINT64_C(63), EMX_LINE_BYTES) == EMX_OK);
        if (random >> 30 == 1) CHECK(emx_cache_flush_invalidate(cache, 0, SIZE) == EMX_OK);
        if (random >> 30 == 2) emx_cache_fence(cache);
        const uint64_t other = (random >> 4) % (SIZE / THREADS) * THREADS + thread;
        CHECK(emx_cache_read(cache, other, &byte, 1) == EMX_OK);
        CHECK(byte == own[other]);
    }
    CHECK(emx_cache_flush(cache, 0, SIZE) == EMX_OK);
    /* As the cache itself loads bytes: pairs with the release of its write-backs. */
    for (unsigned offset = thread; offset < SIZE; offset += THREADS)
        CHECK(__atomic_load_n(&memory[offset], __ATOMIC_ACQUIRE) == own[offset]);
    return NULL;
}

int main(int argc, char** argv) {
    rounds = argc > 1 ? (unsigned)atoi(argv[1]) : 20000;
    for (uint32_t mode = EMX_COHERENCE_HARDWARE; mode <= EMX_COHERENCE_UNCACHED; mode++) {
        memset(memory, 0, sizeof memory);
        for (unsigned host = 0; host < HOSTS; host++) {
            const emx_cache_config config = {.struct_bytes = sizeof config,
                                             .mode = mode,
                                             .base = memory,
                                             .size_bytes = SIZE,
                                             .capacity_bytes = 4 * EMX_LINE_BYTES,
                                             .seed = host,
                                             .detect_stale = 1};
            CHECK(emx_cache_open(&config, &caches[host]) == EMX_OK);
        }
        pthread_t threads[THREADS];
        for (uintptr_t i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, work, (void*)i) == 0);
        for (unsigned i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
        for (unsigned host = 0; host < HOSTS; host++) emx_cache_close(caches[host]);
    }
    puts("no byte lost");
    return 0;
}
