/* Loops that allocate and free, in one thread or several at once, and how long an allocation with its free
 * takes. */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "allocators.h"

enum { MAX_THREADS = 64 };

typedef enum pattern {
    STACK = 0, /* `num_blocks` are allocated, then freed in the opposite order */
    CHURN =
        1, /* of `num_blocks` live ones of random sizes, one at random is freed and another one allocated */
    HAND_OVER =
        2, /* as CHURN with one size, but all threads share the blocks, and free what others allocated */
} pattern;

typedef struct bench_alloc_config {
    uint32_t struct_bytes;
    uint32_t allocator; /* bench_allocator */
    uint32_t pattern;
    uint32_t num_threads;
    uint64_t smallest_bytes, largest_bytes; /* of a block; HAND_OVER takes the largest */
    uint64_t num_blocks;
    uint64_t num_operations; /* allocations with their free, per thread */
    bench_tier tier;
    uint32_t num_cores;          /* 0: threads run where the system puts them */
    uint32_t cores[MAX_THREADS]; /* thread i stays on the i-th of these, or on the (i % num_cores)-th */
} bench_alloc_config;

typedef struct run {
    const bench_alloc_config* config;
    allocator allocator;
    pthread_barrier_t start;
    _Atomic(void*)* shared; /* HAND_OVER */
    atomic_int has_failed;
} run;

typedef struct worker {
    run* run;
    pthread_t thread;
    uint64_t random;
    void** blocks;
    size_t* sizes;
    uint64_t begin_ns, end_ns;
} worker;

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t next_random(worker* worker) { /* xorshift64 */
    worker->random ^= worker->random << 13;
    worker->random ^= worker->random >> 7;
    return worker->random ^= worker->random << 17;
}

/* Every allocator's memory is written to equally: once per line. */
static void touch(char* block, size_t size_bytes) {
    for (size_t i = 0; i < size_bytes; i += 64) ((volatile char*)block)[i] = 1;
}

static void* get(worker* worker, size_t size_bytes) {
    const allocator* allocator = &worker->run->allocator;
    char* block = allocator->alloc(allocator, size_bytes);
    if (block) touch(block, size_bytes);
    else atomic_store(&worker->run->has_failed, 1);
    return block;
}

static void put(worker* worker, void* block, size_t size_bytes) {
    const allocator* allocator = &worker->run->allocator;
    if (block) allocator->free(allocator, block, size_bytes);
}

/* ---- patterns ------------------------------------------------------------------------------------------ */

static void do_stack(worker* worker) {
    const bench_alloc_config* config = worker->run->config;
    const size_t size = config->largest_bytes;
    for (uint64_t done = 0; done < config->num_operations; done += config->num_blocks) {
        for (size_t i = 0; i < config->num_blocks; ++i) worker->blocks[i] = get(worker, size);
        for (size_t i = config->num_blocks; i-- > 0;) put(worker, worker->blocks[i], size);
    }
}

static size_t random_size(worker* worker) {
    const bench_alloc_config* config = worker->run->config;
    return config->smallest_bytes +
           (next_random(worker) >> 20) % (config->largest_bytes - config->smallest_bytes + 1);
}

static void do_churn(worker* worker) {
    const bench_alloc_config* config = worker->run->config;
    for (uint64_t done = 0; done < config->num_operations; ++done) {
        const size_t i = next_random(worker) % config->num_blocks;
        put(worker, worker->blocks[i], worker->sizes[i]);
        worker->sizes[i] = random_size(worker);
        worker->blocks[i] = get(worker, worker->sizes[i]);
    }
}

/* The exchange hands a block over with its bytes: release for the one put there, acquire for the one taken.
 */
static void do_hand_over(worker* worker) {
    const bench_alloc_config* config = worker->run->config;
    const size_t size = config->largest_bytes;
    for (uint64_t done = 0; done < config->num_operations; ++done) {
        _Atomic(void*)* slot = &worker->run->shared[next_random(worker) % config->num_blocks];
        put(worker, atomic_exchange_explicit(slot, get(worker, size), memory_order_acq_rel), size);
    }
}

/* ---- one run ------------------------------------------------------------------------------------------- */

static void fill(worker* worker) { /* the live set of CHURN, before the clock starts */
    const bench_alloc_config* config = worker->run->config;
    for (size_t i = 0; i < config->num_blocks; ++i) {
        worker->sizes[i] = random_size(worker);
        worker->blocks[i] = get(worker, worker->sizes[i]);
    }
}

static void drain(worker* worker) {
    for (size_t i = 0; i < worker->run->config->num_blocks; ++i)
        put(worker, worker->blocks[i], worker->sizes[i]);
}

static void* work(void* argument) {
    worker* worker = argument;
    const pattern pattern = worker->run->config->pattern;
    void (*const loops[])(struct worker*) = {do_stack, do_churn, do_hand_over};
    if (pattern == CHURN) fill(worker);
    pthread_barrier_wait(&worker->run->start);
    worker->begin_ns = now_ns();
    loops[pattern](worker);
    worker->end_ns = now_ns();
    if (pattern == CHURN) drain(worker);
    return NULL;
}

/* From the first thread's start to the last one's end. */
static uint64_t duration_ns(const worker* workers, uint32_t num_threads) {
    uint64_t begin = UINT64_MAX, end = 0;
    for (uint32_t i = 0; i < num_threads; ++i) {
        if (workers[i].begin_ns < begin) begin = workers[i].begin_ns;
        if (workers[i].end_ns > end) end = workers[i].end_ns;
    }
    return end - begin;
}

/* A thread that stays on its core. Where the system refuses, or the core is gone, it runs anywhere. */
static int start_thread(worker* worker, uint32_t number) {
    const bench_alloc_config* config = worker->run->config;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    if (config->num_cores > 0) {
        cpu_set_t own;
        CPU_ZERO(&own);
        CPU_SET(config->cores[number % config->num_cores], &own);
        pthread_attr_setaffinity_np(&attributes, sizeof own, &own);
    }
    int error = pthread_create(&worker->thread, &attributes, work, worker);
    pthread_attr_destroy(&attributes);
    return error == 0 ? 0 : pthread_create(&worker->thread, NULL, work, worker);
}

static bool run_threads(run* run, worker* workers) {
    const uint32_t num_threads = run->config->num_threads;
    uint32_t started = 0;
    pthread_barrier_init(&run->start, NULL, num_threads);
    for (; started < num_threads; ++started) {
        worker* worker = &workers[started];
        worker->run = run;
        worker->random = 88172645463325252u + (uint64_t)started * 1000003u;
        worker->blocks = calloc(run->config->num_blocks, sizeof *worker->blocks);
        worker->sizes = calloc(run->config->num_blocks, sizeof *worker->sizes);
        if (!worker->blocks || !worker->sizes || start_thread(worker, started) != 0) abort();
    }
    for (uint32_t i = 0; i < started; ++i) {
        pthread_join(workers[i].thread, NULL);
        free(workers[i].blocks);
        free(workers[i].sizes);
    }
    for (size_t i = 0; i < run->config->num_blocks; ++i)
        put(&workers[0], run->shared[i], run->config->largest_bytes);
    pthread_barrier_destroy(&run->start);
    return !atomic_load(&run->has_failed);
}

static bool is_sound(const bench_alloc_config* config) {
    if (config->struct_bytes == sizeof *config)
        for (uint32_t i = 0; i < config->num_cores; i++)
            if (config->num_cores > MAX_THREADS || config->cores[i] >= CPU_SETSIZE) return false;
    return config->struct_bytes == sizeof *config && config->pattern <= HAND_OVER &&
           config->num_threads >= 1 && config->num_threads <= MAX_THREADS && config->smallest_bytes >= 1 &&
           config->smallest_bytes <= config->largest_bytes && config->num_blocks >= 1 &&
           config->num_operations >= 1;
}

/* Mean ns of one allocation with its free, as each thread sees it. 0: done; 1: a bad config; 2: no such
 * allocator here; 3: an allocation failed. */
EMX_API int bench_alloc(const bench_alloc_config* config, double* ns_per_operation) {
    static worker workers[MAX_THREADS];
    run run = {.config = config};
    if (!is_sound(config)) return 1;
    if (!allocator_open(config->allocator, &config->tier, &run.allocator)) return 2;
    run.shared = calloc(config->num_blocks, sizeof *run.shared);
    const bool done = run.shared && run_threads(&run, workers);
    free(run.shared);
    *ns_per_operation = (double)duration_ns(workers, config->num_threads) / (double)config->num_operations;
    return done ? 0 : 3;
}

enum { NUM_VERIFIED = 512 };

typedef struct verified {
    unsigned char* base;
    size_t size;
} verified;

static int verify_round(worker* worker, verified* blocks) {
    const allocator* allocator = &worker->run->allocator;
    int verdict = 0;
    for (int i = 0; i < NUM_VERIFIED; ++i) {
        const size_t size = random_size(worker);
        blocks[i] = (verified){allocator->alloc(allocator, size), size};
        if (!blocks[i].base) return 3;
        for (size_t k = 0; k < size; ++k) {
            if (allocator->zeroes && blocks[i].base[k] != 0) verdict = 4;
            blocks[i].base[k] = (unsigned char)(i + k);
        }
    }
    for (int i = 0; i < NUM_VERIFIED; ++i) {
        for (size_t k = 0; k < blocks[i].size; ++k)
            if (blocks[i].base[k] != (unsigned char)(i + k)) verdict = 4;
        allocator->free(allocator, blocks[i].base, blocks[i].size);
    }
    return verdict;
}

/* Blocks of random sizes don't overlap, hold what is written to them, and are zero where that is promised. 0:
 * yes; 1 to 3 as above; 4: no. */
EMX_API int bench_alloc_verify(const bench_alloc_config* config) {
    static verified blocks[NUM_VERIFIED];
    run run = {.config = config};
    worker worker = {.run = &run, .random = 88172645463325252u};
    if (!is_sound(config)) return 1;
    if (!allocator_open(config->allocator, &config->tier, &run.allocator)) return 2;
    const int verdict = verify_round(&worker, blocks);
    return verdict ? verdict : verify_round(&worker, blocks); /* now in memory that was used */
}
