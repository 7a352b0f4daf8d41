/* Many threads on one link and one copy engine, for the sanitizers; and the sums that must come out however
 * they race. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "emucxl.h"

#define NUM_THREADS 4
#define NUM_ROUNDS 400

static emx_link* shared_link;
static emx_context* context;
static emx_engine* engine;
static void *far_block, *near_block;
static emx_tier far_tier, near_tier;

#define CHECK(condition)                                                                    \
    do {                                                                                    \
        if (!(condition)) {                                                                 \
            fprintf(stderr, "line %d: %s: %s\n", __LINE__, #condition, emx_error_detail()); \
            exit(1);                                                                        \
        }                                                                                   \
    } while (0)

/* Each lane hands out its time once: the releases of all threads together fill it without gap or overlap. */
static void* reserve(void* argument) {
    uint64_t *total_ns = argument, before_ns = 0;
    for (int i = 0; i < NUM_ROUNDS * 10; i++) {
        uint64_t release_ns;
        CHECK(emx_link_reserve(shared_link, EMX_WRITE, 1000, 0, &release_ns) == EMX_OK);
        CHECK(release_ns > before_ns);
        before_ns = release_ns;
    }
    *total_ns = before_ns;
    return NULL;
}

static void* copy(void* argument) {
    size_t slice = 4096 * (size_t)(uintptr_t)argument;
    char own[4096];
    for (int i = 0; i < NUM_ROUNDS; i++) {
        memset(own, i & 0xff, sizeof own);
        emx_copy_request requests[] = {
            {(char*)far_block + slice, own, sizeof own},
            {(char*)near_block + slice, (char*)far_block + slice, sizeof own},
        };
        emx_completion* completion;
        CHECK(emx_engine_submit(engine, requests, 2, &completion) == EMX_OK);
        if (i % 3 == 0) CHECK(emx_completion_wait(completion, 0) != EMX_E_INVALID);
        CHECK(emx_completion_wait(completion, UINT64_MAX) == EMX_OK);
        emx_completion_release(completion);
        CHECK(((char*)near_block + slice)[4095] == (char)(i & 0xff));
    }
    return NULL;
}

/* Nothing writes once the wait is over, cancelled or not: what is written then stays. */
static void* cancel(void* argument) {
    size_t slice = 4096 * (size_t)(uintptr_t)argument;
    char* near = (char*)near_block + slice;
    for (int i = 0; i < NUM_ROUNDS; i++) {
        emx_copy_pattern pieces = {near, (char*)far_block + slice, 64, 64, 64, 64};
        emx_completion* completion;
        CHECK(emx_engine_submit_patterns(engine, &pieces, 1, &completion) == EMX_OK);
        if (i % 4 == 0) CHECK(emx_completion_wait(completion, 700) != EMX_E_INVALID);
        CHECK(emx_completion_cancel(completion) == EMX_OK);
        emx_status status = emx_completion_wait(completion, UINT64_MAX);
        CHECK(status == EMX_OK || status == EMX_E_CANCELLED);
        memset(near, 1 + i % 100, 4096);
        if (i % 2 == 0) CHECK(emx_completion_cancel(completion) == EMX_OK);
        CHECK(emx_completion_wait(completion, UINT64_MAX) == status);
        emx_completion_release(completion);
        for (int at = 0; at < 4096; at += 64) CHECK(near[at] == 1 + i % 100);
    }
    return NULL;
}

static void* watch(void* argument) {
    (void)argument;
    for (int i = 0; i < NUM_ROUNDS; i++) {
        emx_link_stats stats;
        CHECK(emx_link_get_stats(shared_link, &stats) == EMX_OK);
        CHECK(stats.write_utilisation >= 0 && stats.write_utilisation <= 1);
    }
    return NULL;
}

static void open_context(uint32_t clock) {
    const emx_calibration calibration = {
        .struct_bytes = sizeof calibration, .read_bandwidth_gbps = 1e9, .write_bandwidth_gbps = 1e9};
    const emx_context_config config = {
        .struct_bytes = sizeof config, .clock = clock, .calibration = &calibration};
    CHECK(emx_context_open(&config, &context) == EMX_OK);
    emx_tier_config near = {.struct_bytes = sizeof near, .name = "near", .capacity_bytes = 1 << 20, .fd = -1};
    emx_tier_config far = near;
    far.name = "far";
    far.link = shared_link;
    far.timing.read_latency_ns = far.timing.write_latency_ns = 500;
    CHECK(emx_tier_add(context, &near, &near_tier) == EMX_OK);
    CHECK(emx_tier_add(context, &far, &far_tier) == EMX_OK);
    CHECK(emx_alloc(context, near_tier, 4096 * NUM_THREADS, 0, &near_block) == EMX_OK);
    CHECK(emx_alloc(context, far_tier, 4096 * NUM_THREADS, 0, &far_block) == EMX_OK);
    CHECK(emx_engine_create(context, 2, &engine) == EMX_OK);
}

static void run_engine(uint32_t clock) {
    const emx_link_config config = {sizeof config, 1, 10, 10, 5};
    CHECK(emx_link_create(&config, &shared_link) == EMX_OK);
    open_context(clock);
    pthread_t threads[NUM_THREADS + 1];
    for (uintptr_t i = 0; i < NUM_THREADS; i++) CHECK(pthread_create(&threads[i], NULL, copy, (void*)i) == 0);
    CHECK(pthread_create(&threads[NUM_THREADS], NULL, watch, NULL) == 0);
    for (int i = 0; i <= NUM_THREADS; i++) pthread_join(threads[i], NULL);
    emx_completion* last;
    emx_copy_request request = {far_block, near_block, 4096};
    CHECK(emx_engine_submit(engine, &request, 1, &last) == EMX_OK);
    emx_engine_close(engine);
    CHECK(emx_completion_wait(last, 0) == EMX_OK); /* it outlives its engine */
    emx_completion_release(last);
    emx_link_stats stats;
    CHECK(emx_link_get_stats(shared_link, &stats) == EMX_OK);
    CHECK(stats.read_bytes == (uint64_t)NUM_THREADS * NUM_ROUNDS * 4096);
    CHECK(stats.write_bytes == (uint64_t)(NUM_THREADS * NUM_ROUNDS + 1) * 4096);
    emx_context_close(context);
    emx_link_close(shared_link);
}

static void run_cancels(uint32_t clock) {
    const emx_link_config config = {sizeof config, 1, 1, 1, 5};
    CHECK(emx_link_create(&config, &shared_link) == EMX_OK);
    open_context(clock);
    pthread_t threads[NUM_THREADS];
    for (uintptr_t i = 0; i < NUM_THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, cancel, (void*)i) == 0);
    for (int i = 0; i < NUM_THREADS; i++) pthread_join(threads[i], NULL);
    CHECK(emx_free(context, near_block) == EMX_OK && emx_free(context, far_block) == EMX_OK);
    emx_engine_close(engine);
    emx_context_close(context);
    emx_link_close(shared_link);
}

static void run_reservations(void) {
    const emx_link_config config = {sizeof config, 1, 3, 3, 0}; /* 333.3 ns each: fractions must add up too */
    CHECK(emx_link_create(&config, &shared_link) == EMX_OK);
    pthread_t threads[NUM_THREADS];
    uint64_t ends_ns[NUM_THREADS], end_ns = 0, transfers = (uint64_t)NUM_THREADS * NUM_ROUNDS * 10;
    for (int i = 0; i < NUM_THREADS; i++) CHECK(pthread_create(&threads[i], NULL, reserve, &ends_ns[i]) == 0);
    for (int i = 0; i < NUM_THREADS; i++) {
        pthread_join(threads[i], NULL);
        if (ends_ns[i] > end_ns) end_ns = ends_ns[i];
    }
    CHECK(end_ns >= transfers * 1000 / 3 - 1 && end_ns <= transfers * 1000 / 3 + 1);
    emx_link_stats stats;
    CHECK(emx_link_get_stats(shared_link, &stats) == EMX_OK);
    CHECK(stats.write_transfers == transfers && stats.write_bytes == transfers * 1000);
    CHECK(stats.write_busy_ns == end_ns);
    emx_link_close(shared_link);
}

int main(void) {
    run_reservations();
    run_engine(EMX_CLOCK_VIRTUAL);
    run_engine(EMX_CLOCK_REAL);
    run_cancels(EMX_CLOCK_VIRTUAL);
    run_cancels(EMX_CLOCK_REAL);
    puts("ok");
    return 0;
}
