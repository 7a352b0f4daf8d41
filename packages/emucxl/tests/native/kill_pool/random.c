/* Several hosts at once, killed at random instants. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "kill_pool/kills.h"
#include "splitmix64.h"

enum { WORKERS = 3, TAGS = 6 };

static uint64_t random_state;

static uint64_t draw(uint64_t below) { return splitmix64(&random_state) % below; }

/* The first word is the seed of all others, and written last: a region whose writer died has none. */
static void write_pattern(emx_region* region) {
    uint64_t size_bytes;
    volatile uint64_t* words = (volatile uint64_t*)bytes_of(region, &size_bytes);
    const uint64_t seed = draw(UINT64_MAX - 1) + 1;
    for (uint64_t i = 1; i < size_bytes / 8; i++) words[i] = seed * i;
    __atomic_store_n(&words[0], seed, __ATOMIC_RELEASE); /* pairs with verify_pattern */
}

static void verify_pattern(emx_region* region) {
    uint64_t size_bytes;
    uint64_t* words = (uint64_t*)bytes_of(region, &size_bytes);
    const uint64_t seed = __atomic_load_n(&words[0], __ATOMIC_ACQUIRE);
    for (uint64_t i = 1; seed && i < size_bytes / 8; i++) REQUIRE(words[i] == seed * i || words[i] == 0);
}

static void carve_something(emx_host* host, const char* tag, emx_region** region) {
    const emx_carve_config* config = draw(2) ? &PERSISTENT : NULL;
    const emx_status status = emx_host_carve(host, tag, (1 + draw(8)) * EXTENT, config, region);
    REQUIRE(status == EMX_OK || status == EMX_E_EXISTS || status == EMX_E_POOL_FULL);
    if (status) return;
    REQUIRE(is_filled(*region, 0));
    write_pattern(*region);
}

static void use_region(emx_region** region) {
    uint64_t size_bytes;
    verify_pattern(*region);
    emx_region_info info;
    REQUIRE(emx_region_get_info(*region, &info) == EMX_OK);
    switch (draw(4)) {
        case 0:
            if (!info.writable) break;
            REQUIRE(emx_region_release(*region) == EMX_OK);
            *region = NULL;
            return;
        case 1:
            if (info.writable) /* The owner alone may, and only if it's alone. */
                (void)emx_region_resize(*region, (1 + draw(8)) * EXTENT);
            bytes_of(*region, &size_bytes);
            break;
        case 2:
            verify_pattern(*region);
            break;
        default:
            emx_region_close(*region);
            *region = NULL;
    }
}

static void work(uint64_t seed) {
    emx_region* regions[TAGS] = {0};
    emx_pool* pool;
    emx_host* host;
    char tag[16];
    random_state = seed;
    REQUIRE(emx_pool_open(path, 0, &pool) == EMX_OK);
    REQUIRE(emx_pool_join(pool, "worker", &QUIET, &host) == EMX_OK);
    for (;;) {
        const uint64_t i = draw(TAGS);
        snprintf(tag, sizeof tag, "region %u", (unsigned)i);
        if (regions[i]) use_region(&regions[i]);
        else if (draw(2)) carve_something(host, tag, &regions[i]);
        else if (emx_host_open(host, tag, draw(2), &regions[i]) == EMX_OK) verify_pattern(regions[i]);
        else regions[i] = NULL;
        if (draw(16) == 0) REQUIRE(emx_host_heartbeat(host) == EMX_OK);
        if (draw(64) == 0) {
            emx_host_leave(host);
            memset(regions, 0, sizeof regions);
            REQUIRE(emx_pool_join(pool, "worker", &QUIET, &host) == EMX_OK);
        }
    }
}

static pid_t start_worker(uint64_t seed) {
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) work(seed);
    return child;
}

static void kill_worker(pid_t child) {
    int status;
    kill(child, SIGKILL);
    REQUIRE(waitpid(child, &status, 0) == child);
    /* Else it found something wrong, and said what. */
    REQUIRE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

static void verify_rest(emx_pool* pool) {
    emx_host* host;
    emx_region* region;
    char tag[16];
    REQUIRE(emx_pool_reclaim(pool, 0, NULL) == EMX_OK);
    REQUIRE(emx_pool_check(pool) == EMX_OK);
    REQUIRE(emx_pool_join(pool, "last", &QUIET, &host) == EMX_OK);
    for (unsigned i = 0; i < TAGS; i++) {
        snprintf(tag, sizeof tag, "region %u", i);
        if (emx_host_open(host, tag, true, &region) != EMX_OK) continue;
        verify_pattern(region);
        REQUIRE(emx_region_release(region) == EMX_OK);
    }
    REQUIRE(emx_pool_check(pool) == EMX_OK);
    const emx_pool_info info = info_of(pool);
    REQUIRE(info.num_hosts == 1 && info.num_regions == 0 && info.free_extents == EXTENTS);
    emx_host_leave(host);
}

void run_random(long num_kills, uint64_t seed) {
    pid_t workers[WORKERS];
    random_state = seed;
    emx_pool* pool = make_pool();
    for (int i = 0; i < WORKERS; i++) workers[i] = start_worker(draw(UINT64_MAX));
    for (long kills = 0; kills < num_kills; kills++) {
        const struct timespec pause = {.tv_nsec = (long)draw(3000000)};
        nanosleep(&pause, NULL);
        const uint64_t victim = draw(WORKERS);
        kill_worker(workers[victim]);
        workers[victim] = start_worker(draw(UINT64_MAX));
        if (draw(8) == 0) REQUIRE(emx_pool_check(pool) == EMX_OK);
    }
    for (int i = 0; i < WORKERS; i++) kill_worker(workers[i]);
    verify_rest(pool);
    emx_pool_close(pool);
    unlink(path);
    printf("%ld kills\n", num_kills);
}
