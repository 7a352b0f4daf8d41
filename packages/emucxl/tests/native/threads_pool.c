/* Threads that share one host of a pool, for the thread sanitizer: they carve, grow, read, write and close,
 * while heartbeats run, and in the end the host is fenced under them. What they write to a region that is
 * theirs alone is what they read.
 *
 *   threads_pool PATH TURNS
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "emucxl/pool.h"
#include "require.h"

enum { EXTENT = 4096, EXTENTS = 64, THREADS = 4 };

static emx_host* host;
static emx_region* shared;
static long turns;

static void use_own_region(unsigned number, long turn) {
    unsigned char bytes[3 * EXTENT], read[3 * EXTENT];
    emx_region* region;
    char tag[32];
    snprintf(tag, sizeof tag, "%u %ld", number, turn);
    REQUIRE(emx_host_carve(host, tag, EXTENT, NULL, &region) == EMX_OK);
    REQUIRE(emx_region_resize(region, 3 * EXTENT) == EMX_OK);
    memset(bytes, (int)(number + 1), sizeof bytes);
    REQUIRE(emx_region_write(region, 0, bytes, sizeof bytes) == EMX_OK);
    REQUIRE(emx_region_read(region, 0, read, sizeof read) == EMX_OK);
    REQUIRE(memcmp(bytes, read, sizeof bytes) == 0);
    REQUIRE(emx_region_resize(region, 100) == EMX_OK);
    REQUIRE(emx_region_read(region, 100, read, 1) == EMX_E_OUT_OF_BOUNDS);
    emx_region_close(region);
}

static void* work(void* argument) {
    const unsigned number = (unsigned)(uintptr_t)argument;
    unsigned char bytes[64] = {0};
    for (long turn = 0; turn < turns; turn++) {
        use_own_region(number, turn);
        REQUIRE(emx_region_write(shared, number * 64, bytes, sizeof bytes) == EMX_OK);
        REQUIRE(emx_host_heartbeat(host) == EMX_OK);
    }
    return NULL;
}

static void* write_until_fenced(void* argument) {
    unsigned char bytes[64] = {0};
    const uint64_t offset = (uint64_t)(uintptr_t)argument * 64;
    emx_status status;
    while ((status = emx_region_write(shared, offset, bytes, sizeof bytes)) == EMX_OK) continue;
    REQUIRE(status == EMX_E_FENCED);
    return NULL;
}

static void run(void* (*body)(void*)) {
    pthread_t threads[THREADS];
    for (uintptr_t i = 0; i < THREADS; i++) REQUIRE(pthread_create(&threads[i], NULL, body, (void*)i) == 0);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
}

int main(int argc, char** argv) {
    const emx_pool_config config = {
        .struct_bytes = sizeof config, .size_bytes = EXTENTS * EXTENT, .extent_bytes = EXTENT};
    const emx_join_config short_lease = {
        .struct_bytes = sizeof short_lease, .flags = EMX_JOIN_NO_HEARTBEAT, .lease_ns = 50000000};
    const emx_join_config long_lease = {.struct_bytes = sizeof long_lease, .lease_ns = 2000000000};
    emx_pool* pool;
    emx_host* other;
    REQUIRE(argc == 3);
    turns = atol(argv[2]);
    REQUIRE(emx_pool_create(argv[1], &config, &pool) == EMX_OK);
    REQUIRE(emx_pool_join(pool, "threads", &long_lease, &host) == EMX_OK);
    REQUIRE(emx_host_carve(host, "shared", EXTENT, NULL, &shared) == EMX_OK);
    run(work);
    emx_host_leave(host);
    REQUIRE(emx_pool_join(pool, "silent", &short_lease, &host) == EMX_OK);
    REQUIRE(emx_host_carve(host, "shared", EXTENT, NULL, &shared) == EMX_OK);
    /* Fences it, by and by. */
    const emx_join_config watching = {.struct_bytes = sizeof watching, .lease_ns = 100000000};
    REQUIRE(emx_pool_join(pool, "watcher", &watching, &other) == EMX_OK);
    run(write_until_fenced);
    REQUIRE(emx_host_heartbeat(host) == EMX_E_FENCED);
    REQUIRE(emx_pool_check(pool) == EMX_OK);
    emx_pool_close(pool);
    unlink(argv[1]);
    return 0;
}
