/* Fuzzes a heap: threads allocate, free, resize, ask, pass blocks to each other, trim and report poison, in
 * an order that the seed decides. Every block is zero when it comes and then filled with a pattern of its
 * own, which must still be there when it goes. The memory behind is inaccessible until it is committed, and
 * again once it is decommitted.
 *
 *     fuzz_heap [seed=1] [threads=1] [rounds=1] [operations=10000] [capacity=4194304] [largest=1048576]
 *               [check_every=1] [poison=0] [decommit=1] [fresh_is_zero=1] [touchable=1] [membarrier=1]
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "heap/heap.h"
#include "prim/barrier.h"
#include "splitmix64.h"

enum { NUM_OWN = 512, NUM_SHARED = 64, EXTENT = 2 << 20, PAGE = 4096 };

#define REQUIRE(condition)                                                                                 \
    do {                                                                                                   \
        if (!(condition)) {                                                                                \
            fprintf(stderr, "%s:%d: %s is false (seed %lu); detail: %s\n", __FILE__, __LINE__, #condition, \
                    option.seed, emx_error_detail());                                                      \
            _Exit(1);                                                                                      \
        }                                                                                                  \
    } while (0)

static struct {
    unsigned long seed, threads, rounds, operations, capacity, largest, check_every, poison, decommit,
        fresh_is_zero, touchable, membarrier;
} option = {1, 1, 1, 10000, 4 << 20, 1 << 20, 1, 0, 1, 1, 1, 1};

typedef struct block {
    unsigned char* base;
    size_t size;
    uint64_t pattern;
} block;

typedef struct worker {
    uint64_t random;
    block own[NUM_OWN];
    size_t num_own;
    bool was_full;
} worker;

static heap* the_heap;
static char* memory;
static pthread_mutex_t shared_lock = PTHREAD_MUTEX_INITIALIZER;
static block shared[NUM_SHARED]; /* blocks on their way from thread to thread */

static size_t below(worker* worker, size_t bound) { return splitmix64(&worker->random) % bound; }

/* Any magnitude is as likely as any other. */
static size_t random_size(worker* worker) {
    size_t top = 1;
    while (top < option.largest && below(worker, 16) != 0) top *= 2;
    return 1 + below(worker, top < option.largest ? top : option.largest);
}

/* ---- patterns ------------------------------------------------------------------------------------------ */

static uint64_t word_at(const block* block, size_t offset) {
    return (block->pattern + offset) * 0x9e3779b97f4a7c15u | 1;
}
static size_t least(size_t a, size_t b) { return a < b ? a : b; }

/* From the word that `from` is in to the end. */
static void fill(const block* block, size_t from) {
    for (size_t i = from & ~(size_t)7; option.touchable && i < block->size; i += 8) {
        const uint64_t word = word_at(block, i);
        memcpy(block->base + i, &word, least(8, block->size - i));
    }
}

static void verify(const block* block, size_t size) {
    for (size_t i = 0; option.touchable && i < size; i += 8) {
        const uint64_t word = word_at(block, i);
        REQUIRE(memcmp(block->base + i, &word, least(8, size - i)) == 0);
    }
}

static void verify_zero(const unsigned char* from, const unsigned char* to) {
    static const unsigned char zeros[4096];
    for (; option.touchable && from < to; from += least(sizeof zeros, (size_t)(to - from)))
        REQUIRE(memcmp(from, zeros, least(sizeof zeros, (size_t)(to - from))) == 0);
}

/* ---- operations ---------------------------------------------------------------------------------------- */

static void release(const block* block) {
    verify(block, block->size);
    REQUIRE(heap_free(the_heap, block->base) == EMX_OK);
}

static block take_own(worker* worker) {
    const size_t index = below(worker, worker->num_own);
    const block taken = worker->own[index];
    worker->own[index] = worker->own[--worker->num_own];
    return taken;
}

static void do_alloc(worker* worker) {
    const size_t size = random_size(worker),
                 alignment = below(worker, 4) ? 0 : (size_t)1 << below(worker, 22);
    void* pointer;
    if (worker->num_own == NUM_OWN) return;
    const emx_status status = heap_alloc(the_heap, size, alignment, &pointer);
    worker->was_full = status == EMX_E_TIER_FULL;
    if (status == EMX_E_TIER_FULL) return;
    REQUIRE(status == EMX_OK);
    const block made = {pointer, size, splitmix64(&worker->random)};
    REQUIRE((uintptr_t)pointer % (alignment > 16 ? alignment : 16) == 0);
    REQUIRE((char*)pointer >= memory && size <= option.capacity - (size_t)((char*)pointer - memory));
    const void* bad;
    REQUIRE(option.threads > 1 || !heap_first_poison(the_heap, pointer, size, &bad));
    verify_zero(made.base, made.base + size);
    fill(&made, 0);
    worker->own[worker->num_own++] = made;
}

static void do_free(worker* worker) {
    if (worker->num_own == 0) return;
    const block freed = take_own(worker);
    release(&freed);
    if (option.threads == 1) REQUIRE(heap_free(the_heap, freed.base) == EMX_E_BAD_POINTER);
}

static void do_resize(worker* worker) {
    if (worker->num_own == 0) return;
    block* block = &worker->own[below(worker, worker->num_own)];
    const size_t old = block->size,
                 size = below(worker, 2) ? random_size(worker) : 1 + below(worker, 2 * old);
    if (!heap_resize_in_place(the_heap, block->base, size)) {
        REQUIRE(size > old);
        return;
    }
    block->size = size;
    verify(block, old < size ? old : size);
    if (old < size) verify_zero(block->base + old, block->base + size);
    fill(block, old);
}

static void do_query(worker* worker) {
    heap_block found;
    if (worker->num_own == 0) return;
    const block* block = &worker->own[below(worker, worker->num_own)];
    const size_t offset = below(worker, block->size);
    REQUIRE(heap_query(the_heap, block->base + offset, &found) == EMX_OK);
    REQUIRE(found.base == block->base && found.size_bytes == block->size);
    REQUIRE(offset == 0 || heap_free(the_heap, block->base + offset) == EMX_E_BAD_POINTER);
    if (heap_query(the_heap, block->base + block->size, &found) == EMX_OK) REQUIRE(found.base != block->base);
    /* Any address may be asked about. */
    heap_query(the_heap, memory + below(worker, 2 * option.capacity), &found);
}

static void do_pass_on(worker* worker) {
    block given = worker->num_own > 0 ? take_own(worker) : (block){0},
          *slot = &shared[below(worker, NUM_SHARED)];
    pthread_mutex_lock(&shared_lock);
    const block taken = *slot;
    *slot = given;
    pthread_mutex_unlock(&shared_lock);
    if (taken.base) release(&taken);
}

static void do_poison(worker* worker) {
    if (!option.poison || below(worker, option.poison) != 0) return;
    const size_t size = 1 + below(worker, below(worker, 2) ? 64 : 8192),
                 offset = below(worker, option.capacity - size);
    const void* bad = NULL;
    REQUIRE(heap_poison(the_heap, memory + offset, size) == EMX_OK);
    REQUIRE(heap_first_poison(the_heap, memory + offset, size, &bad) &&
            (char*)bad == memory + offset / 64 * 64);
}

static void operate(worker* worker) {
    const size_t choice = below(worker, 1000);
    if (worker->was_full) { /* makes room, so that the heap is not always full */
        for (size_t i = worker->num_own / 2; i > 0; --i) do_free(worker);
        worker->was_full = false;
    }
    if (choice < 480) do_alloc(worker);
    else if (choice < 800) do_free(worker);
    else if (choice < 880) do_resize(worker);
    else if (choice < 950) do_query(worker);
    else if (choice < 990) do_pass_on(worker);
    else if (choice < 997) do_poison(worker);
    else REQUIRE(heap_trim(the_heap) == EMX_OK);
}

static void* work(void* argument) {
    worker* worker = argument;
    for (unsigned long i = 1; i <= option.operations; ++i) {
        operate(worker);
        if (option.check_every && i % option.check_every == 0) REQUIRE(heap_check(the_heap) == EMX_OK);
    }
    while (worker->num_own > 0) {
        const block freed = take_own(worker);
        release(&freed);
    }
    return NULL;
}

/* ---- the memory behind --------------------------------------------------------------------------------- */

static emx_status commit(pages* pages, size_t offset, size_t size) {
    (void)pages;
    REQUIRE(offset % PAGE == 0 && size % PAGE == 0 && offset + size <= option.capacity);
    return mprotect(memory + offset, size, PROT_READ | PROT_WRITE) == 0 ? EMX_OK : EMX_E_NO_MEMORY;
}

static emx_status decommit(pages* pages, size_t offset, size_t size) {
    (void)pages;
    REQUIRE(offset % PAGE == 0 && size % PAGE == 0 && offset + size <= option.capacity);
    REQUIRE(madvise(memory + offset, size, MADV_DONTNEED) == 0);
    return mprotect(memory + offset, size, PROT_NONE) == 0 ? EMX_OK : EMX_E_SYSTEM;
}

static void map_memory(void) {
    const size_t bytes = option.capacity + EXTENT;
    char* found = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    REQUIRE(found != MAP_FAILED);
    memory = (char*)(((uintptr_t)found + EXTENT - 1) / EXTENT * EXTENT);
    if (option.fresh_is_zero) return;
    REQUIRE(mprotect(memory, option.capacity, PROT_READ | PROT_WRITE) == 0);
    memset(memory, 0xa5, option.capacity);
}

/* ---- the run ------------------------------------------------------------------------------------------- */

static void run_round(unsigned long round) {
    static worker workers[64];
    pthread_t threads[64];
    for (unsigned long i = 0; i < option.threads; ++i) {
        workers[i].random = option.seed * 1000003 + round * 1009 + i;
        REQUIRE(pthread_create(&threads[i], NULL, work, &workers[i]) == 0);
    }
    for (unsigned long i = 0; i < option.threads; ++i) pthread_join(threads[i], NULL);
    REQUIRE(heap_check(the_heap) == EMX_OK);
}

static void end_empty(void) {
    heap_stats stats;
    void* all;
    for (size_t i = 0; i < NUM_SHARED; ++i)
        if (shared[i].base) release(&shared[i]);
    REQUIRE(heap_trim(the_heap) == EMX_OK && heap_check(the_heap) == EMX_OK);
    heap_get_stats(the_heap, &stats);
    REQUIRE(stats.allocated_bytes == 0 && stats.num_allocations == 0 && stats.reserved_bytes == 0);
    REQUIRE(stats.peak_reserved_bytes <= option.capacity &&
            (stats.poisoned_bytes > 0) <= (option.poison > 0));
    printf("%lu allocations, at most %lu of %lu bytes reserved, %lu bytes poisoned\n",
           (unsigned long)stats.total_allocations, (unsigned long)stats.peak_reserved_bytes, option.capacity,
           (unsigned long)stats.poisoned_bytes);
    if (stats.poisoned_bytes > 0) return;
    REQUIRE(heap_alloc(the_heap, option.capacity, 0, &all) == EMX_OK); /* nothing is lost */
    REQUIRE(heap_free(the_heap, all) == EMX_OK);
}

static void parse(const char* argument) {
    static const struct {
        const char* name;
        unsigned long* value;
    } names[] = {{"seed=", &option.seed},
                 {"threads=", &option.threads},
                 {"rounds=", &option.rounds},
                 {"operations=", &option.operations},
                 {"capacity=", &option.capacity},
                 {"largest=", &option.largest},
                 {"check_every=", &option.check_every},
                 {"poison=", &option.poison},
                 {"decommit=", &option.decommit},
                 {"fresh_is_zero=", &option.fresh_is_zero},
                 {"touchable=", &option.touchable},
                 {"membarrier=", &option.membarrier}};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; ++i) {
        const size_t length = strlen(names[i].name);
        if (strncmp(argument, names[i].name, length) != 0) continue;
        *names[i].value = strtoul(argument + length, NULL, 10);
        return;
    }
    fprintf(stderr, "got '%s'; expected one of the options at the top of fuzz_heap.c\n", argument);
    _Exit(2);
}

int main(int count, char** arguments) {
    for (int i = 1; i < count; ++i) parse(arguments[i]);
    map_memory();
    const bool has_pages = option.fresh_is_zero && option.touchable;
    const provider provider = {.commit = has_pages ? commit : NULL,
                               .decommit = has_pages && option.decommit ? decommit : NULL};
    pages pages = {.provider = &provider,
                   .base = memory,
                   .capacity_bytes = option.capacity,
                   .fresh_is_zero = option.fresh_is_zero,
                   .touchable = option.touchable};
    REQUIRE(heap_create(&pages, &the_heap) == EMX_OK);
    if (!option.membarrier) barrier_is_unequal = false; /* as on kernels without it */
    for (unsigned long round = 0; round < option.rounds; ++round) run_round(round);
    end_empty();
    heap_destroy(the_heap);
    return 0;
}
