/* Kills hosts of a pool and looks at what they leave. Built with EMX_POOL_STEPS, so that every store into the
 * pool's tables is a step at which a host can be made to die.
 *
 *   kill_pool PATH steps            a host dies at each step of every operation; another one reclaims
 *   kill_pool PATH double STRIDE    so does the one that reclaims, at each of its steps, after every STRIDEth death
 *   kill_pool PATH stop VARIANT     a host is stopped at each step while another one does what may collide, and goes on
 *   kill_pool PATH random KILLS SEED   several hosts compete, and die at random instants
 *
 * Prints what it did; exits with 1 and a line on standard error at the first thing that is wrong.
 */
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "emucxl/pool.h"
#include "require.h"

enum { EXTENT = 4096, EXTENTS = 64, WORKERS = 3, TAGS = 6 };

static const char* path;
static long kill_step, steps;
static int kill_signal = SIGKILL;

void pool_step(void) {
    if (++steps == kill_step) kill(getpid(), kill_signal);
}

static const emx_join_config QUIET = {.struct_bytes = sizeof QUIET,
                                      .flags = EMX_JOIN_NO_HEARTBEAT,
                                      .lease_ns = UINT64_C(600000000000),
                                      .quota_bytes = EXTENTS * EXTENT};
static const emx_carve_config PERSISTENT = {.struct_bytes = sizeof PERSISTENT, .flags = EMX_CARVE_PERSISTENT};

static emx_pool* make_pool(void) {
    const emx_pool_config config = {.struct_bytes = sizeof config,
                                    .size_bytes = EXTENTS * EXTENT,
                                    .extent_bytes = EXTENT,
                                    .max_regions = 16};
    emx_pool* pool;
    unlink(path);
    REQUIRE(emx_pool_create(path, &config, &pool) == EMX_OK);
    return pool;
}

static emx_pool_info info_of(emx_pool* pool) {
    emx_pool_info info;
    REQUIRE(emx_pool_get_info(pool, &info) == EMX_OK);
    return info;
}

static unsigned char* bytes_of(emx_region* region, uint64_t* size_bytes) {
    emx_region_info info;
    REQUIRE(emx_region_get_info(region, &info) == EMX_OK);
    *size_bytes = info.size_bytes;
    return info.base;
}

static bool is_filled(emx_region* region, int value) {
    uint64_t size_bytes;
    const unsigned char* bytes = bytes_of(region, &size_bytes);
    for (uint64_t i = 0; i < size_bytes; i++)
        if (bytes[i] != value) return false;
    return true;
}

/* Takes all that is free, finds it zero, and leaves it dirty. */
static void foul_free_extents(emx_host* host, emx_pool* pool) {
    const uint64_t free_bytes = info_of(pool).free_extents * EXTENT;
    emx_region* region;
    REQUIRE(free_bytes > 0);
    REQUIRE(emx_host_carve(host, "all of it", free_bytes, NULL, &region) == EMX_OK);
    REQUIRE(is_filled(region, 0));
    REQUIRE(emx_region_fill(region, 0, 0xAA, free_bytes) == EMX_OK);
    emx_region_close(region);
}

/* ---- what a host does before it dies ------------------------------------------------------------------- */

typedef void (*operation)(emx_pool* pool, emx_host* host);

static void do_nothing(emx_pool* pool, emx_host* host) { (void)pool, (void)host; }

static void do_carve(emx_pool* pool, emx_host* host) {
    emx_region* region;
    (void)pool;
    REQUIRE(emx_host_carve(host, "mine", 3 * EXTENT, NULL, &region) == EMX_OK);
    REQUIRE(is_filled(region, 0));
    REQUIRE(emx_region_fill(region, 0, 0x11, 3 * EXTENT) == EMX_OK);
    emx_region_close(region);
}

static void do_persist(emx_pool* pool, emx_host* host) {
    emx_region* region;
    (void)pool;
    REQUIRE(emx_host_carve(host, "kept", 2 * EXTENT, &PERSISTENT, &region) == EMX_OK);
    emx_region_close(region);
    REQUIRE(emx_host_open(host, "kept", true, &region) == EMX_OK);
    REQUIRE(emx_region_release(region) == EMX_OK);
}

static void do_resize(emx_pool* pool, emx_host* host) {
    emx_region* region;
    (void)pool;
    REQUIRE(emx_host_carve(host, "kept", EXTENT, &PERSISTENT, &region) == EMX_OK);
    REQUIRE(emx_region_resize(region, 4 * EXTENT + 7) == EMX_OK);
    REQUIRE(is_filled(region, 0));
    REQUIRE(emx_region_resize(region, 10) == EMX_OK);
    REQUIRE(emx_region_resize(region, 2 * EXTENT) == EMX_OK);
    REQUIRE(emx_region_release(region) == EMX_OK);
}

static void do_share(emx_pool* pool, emx_host* host) {
    emx_region* region;
    (void)pool;
    REQUIRE(emx_host_open(host, "shared", false, &region) == EMX_OK);
    REQUIRE(is_filled(region, 0x55));
    emx_region_close(region);
    REQUIRE(emx_host_open(host, "shared", true, &region) == EMX_OK);
    REQUIRE(emx_region_fill(region, 0, 0x55, EXTENT) == EMX_OK);
    emx_region_close(region);
    REQUIRE(emx_host_carve(host, "shared", EXTENT, NULL, &region) == EMX_E_EXISTS);
}

static void do_adopt(emx_pool* pool, emx_host* host) {
    emx_region* region;
    (void)pool;
    REQUIRE(emx_host_open(host, "orphan", true, &region) == EMX_OK);
    REQUIRE(is_filled(region, 0x77));
    REQUIRE(emx_region_resize(region, 3 * EXTENT) == EMX_OK);
    REQUIRE(emx_region_resize(region, EXTENT) == EMX_OK);
    emx_region_close(region);
}

static void do_heartbeat(emx_pool* pool, emx_host* host) {
    (void)pool;
    REQUIRE(emx_host_heartbeat(host) == EMX_OK);
}

static void do_poison(emx_pool* pool, emx_host* host) {
    emx_region* region;
    (void)pool;
    REQUIRE(emx_host_carve(host, "mine", 2 * EXTENT, NULL, &region) == EMX_OK);
    REQUIRE(emx_region_poison(region, EXTENT - 64, 128) == EMX_OK);
    REQUIRE(emx_region_fill(region, 0, 1, EXTENT) == EMX_E_POISONED);
    emx_region_close(region);
}

/* A carve that takes all there is, and then finds it too little. */
static void do_refuse(emx_pool* pool, emx_host* host) {
    emx_region* region;
    REQUIRE(emx_host_carve(host, "mine", info_of(pool).free_extents * EXTENT + 1, NULL, &region) ==
            EMX_E_POOL_FULL);
}

static const struct {
    const char* name;
    operation run;
} OPERATIONS[] = {{"join, leave", do_nothing}, {"carve", do_carve},   {"persist, release", do_persist},
                  {"grow, shrink", do_resize}, {"share", do_share},   {"adopt", do_adopt},
                  {"heartbeat", do_heartbeat}, {"poison", do_poison}, {"refused carve", do_refuse}};
enum { NUM_OPERATIONS = sizeof OPERATIONS / sizeof *OPERATIONS };

/* ---- death, and who comes after ------------------------------------------------------------------------ */

/* Runs an operation as a new host, and ends the process; `kill_signal` comes at a step before, if it has so many. */
_Noreturn static void run_until_signalled(const char* name, operation run, long at_step) {
    emx_pool* pool;
    emx_host* host;
    REQUIRE(emx_pool_open(path, 0, &pool) == EMX_OK);
    kill_step = at_step;
    steps = 0;
    REQUIRE(emx_pool_join(pool, name, &QUIET, &host) == EMX_OK);
    run(pool, host);
    emx_host_leave(host);
    emx_pool_close(pool);
    _exit(0);
}

/* Runs an operation in a process that dies at a step. True: it did; false: the operation has fewer steps. */
static bool dies(operation run, long at_step) {
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) run_until_signalled("victim", run, at_step);
    int status;
    REQUIRE(waitpid(child, &status, 0) == child);
    REQUIRE(WIFSIGNALED(status) ? WTERMSIG(status) == SIGKILL : WEXITSTATUS(status) == 0);
    return WIFSIGNALED(status);
}

static void do_reclaim(emx_pool* pool, emx_host* host) {
    (void)host;
    REQUIRE(emx_pool_reclaim(pool, 0, NULL) == EMX_OK);
}

typedef struct survivor {
    emx_pool* pool;
    emx_host* host;
    emx_region *own, *shared;
} survivor;

static survivor make_survivor(void) {
    survivor made = {.pool = make_pool()};
    emx_region* orphan;
    REQUIRE(emx_pool_join(made.pool, "survivor", &QUIET, &made.host) == EMX_OK);
    foul_free_extents(made.host, made.pool);
    REQUIRE(emx_host_carve(made.host, "own", 5 * EXTENT, NULL, &made.own) == EMX_OK);
    REQUIRE(emx_region_fill(made.own, 0, 0x33, 5 * EXTENT) == EMX_OK);
    REQUIRE(emx_host_carve(made.host, "shared", 2 * EXTENT, NULL, &made.shared) == EMX_OK);
    REQUIRE(emx_region_fill(made.shared, 0, 0x55, 2 * EXTENT) == EMX_OK);
    REQUIRE(emx_host_carve(made.host, "orphan", EXTENT, &PERSISTENT, &orphan) == EMX_OK);
    REQUIRE(emx_region_fill(orphan, 0, 0x77, EXTENT) == EMX_OK);
    emx_region_close(orphan);
    return made;
}

/* A dead host may leave for long its persistent region, whole and zero, and retired extents. */
static void remove_legacy(const survivor* self) {
    emx_region *kept, *orphan;
    if (emx_host_open(self->host, "kept", true, &kept) == EMX_OK) {
        REQUIRE(is_filled(kept, 0));
        REQUIRE(emx_region_release(kept) == EMX_OK);
    }
    REQUIRE(emx_host_open(self->host, "orphan", true, &orphan) == EMX_OK);
    uint64_t size_bytes;
    const unsigned char* bytes = bytes_of(orphan, &size_bytes);
    REQUIRE(size_bytes == EXTENT || size_bytes == 3 * EXTENT);
    for (uint64_t i = 0; i < size_bytes; i++) REQUIRE(bytes[i] == (i < EXTENT ? 0x77 : 0));
    REQUIRE(emx_region_resize(orphan, EXTENT) == EMX_OK);
    emx_region_close(orphan);
}

static void verify(const survivor* self) {
    REQUIRE(emx_pool_reclaim(self->pool, 0, NULL) == EMX_OK);
    REQUIRE(emx_pool_check(self->pool) == EMX_OK);
    remove_legacy(self);
    REQUIRE(emx_pool_check(self->pool) == EMX_OK);
    const emx_pool_info info = info_of(self->pool);
    REQUIRE(info.num_hosts == 1);
    REQUIRE(info.num_regions == 3);
    REQUIRE(info.held_extents == 5 + 2 + 1);
    REQUIRE(info.free_extents + info.retired_extents + info.held_extents == EXTENTS);
    REQUIRE(is_filled(self->own, 0x33) && is_filled(self->shared, 0x55));
    foul_free_extents(self->host, self->pool);
}

static void end(survivor* self) {
    emx_pool_close(self->pool);
    unlink(path);
}

static void run_steps(void) {
    long total = 0;
    for (int i = 0; i < NUM_OPERATIONS; i++) {
        long step = 1;
        for (bool died = true; died; step++) {
            survivor self = make_survivor();
            died = dies(OPERATIONS[i].run, step);
            verify(&self);
            end(&self);
        }
        printf("%s: killed at each of %ld steps\n", OPERATIONS[i].name, step - 2);
        total += step - 2;
    }
    printf("%ld kills\n", total);
}

static void run_double(long stride) {
    long total = 0;
    for (int i = 0; i < NUM_OPERATIONS; i++)
        for (long first = 1;; first += stride) {
            bool died = true;
            long second = 1;
            for (bool second_died = true; second_died && died; second++) {
                survivor self = make_survivor();
                died = dies(OPERATIONS[i].run, first);
                if (died) second_died = dies(do_reclaim, second);
                total += died + (died && second_died);
                verify(&self);
                end(&self);
            }
            if (!died) break;
        }
    printf("%ld kills\n", total);
}

/* ---- two hosts, step by step --------------------------------------------------------------------------- */

/* Lives with whatever the other host does to the region meanwhile. */
static void do_live(emx_pool* pool, emx_host* host) {
    emx_region* region;
    (void)pool;
    if (emx_host_carve(host, "duel", 3 * EXTENT, NULL, &region) == EMX_OK) {
        (void)emx_region_resize(region, 5 * EXTENT);
        (void)emx_region_resize(region, 2 * EXTENT);
        emx_region_close(region);
    }
    if (emx_host_open(host, "duel", true, &region) == EMX_OK) REQUIRE(emx_region_release(region) == EMX_OK);
    if (emx_host_open(host, "orphan", true, &region) == EMX_OK) {
        (void)emx_region_resize(region, 2 * EXTENT);
        emx_region_close(region);
    }
}

/* Who has it open can reach all of it, whatever the other one did. */
static void require_whole(emx_region* region) {
    emx_region_info info;
    REQUIRE(emx_region_get_info(region, &info) == EMX_OK);
    REQUIRE(emx_region_check_access(region, 0, info.size_bytes, false) == EMX_OK);
}

typedef struct counterpart {
    emx_region *duel, *orphan;
} counterpart;

static counterpart interfere(const survivor* self, long variant) {
    counterpart held = {0};
    if (variant == 0) {
        (void)emx_host_open(self->host, "duel", true, &held.duel);
        if (emx_host_open(self->host, "orphan", true, &held.orphan) == EMX_OK)
            (void)emx_region_resize(held.orphan, 4 * EXTENT);
    } else if (variant == 1) {
        if (emx_host_carve(self->host, "duel", 2 * EXTENT, NULL, &held.duel) == EMX_OK)
            REQUIRE(is_filled(held.duel, 0));
    } else {
        if (emx_host_open(self->host, "duel", false, &held.duel) == EMX_OK) emx_region_close(held.duel);
        held.duel = NULL;
        do_reclaim(self->pool, self->host);
    }
    if (held.duel) require_whole(held.duel);
    return held;
}

/* `death`: the step at which a host that adopts "orphan" and grows it died before; 0: none did. */
static bool stops(operation run, long at_step, long variant, long death) {
    survivor self = make_survivor();
    if (death) REQUIRE(dies(do_adopt, death));
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        kill_signal = SIGSTOP;
        run_until_signalled("slow", run, at_step);
    }
    int status;
    REQUIRE(waitpid(child, &status, WUNTRACED) == child);
    const bool stopped = WIFSTOPPED(status);
    counterpart held = {0};
    if (stopped) {
        held = interfere(&self, variant);
        kill(child, SIGCONT);
        REQUIRE(waitpid(child, &status, 0) == child);
    }
    REQUIRE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    if (held.duel) require_whole(held.duel);
    if (held.orphan) require_whole(held.orphan);
    REQUIRE(emx_pool_check(self.pool) == EMX_OK);
    emx_region_close(held.duel);
    if (held.orphan) {
        REQUIRE(emx_region_resize(held.orphan, 6 * EXTENT) == EMX_OK);
        require_whole(held.orphan);
        REQUIRE(emx_region_resize(held.orphan, EXTENT) == EMX_OK);
    }
    emx_region_close(held.orphan);
    emx_region* orphan;
    REQUIRE(emx_host_open(self.host, "orphan", true, &orphan) == EMX_OK);
    REQUIRE(emx_region_resize(orphan, EXTENT) == EMX_OK);
    emx_region_close(orphan);
    verify(&self);
    end(&self);
    return stopped;
}

static void run_stop(long variant) {
    long total = 0;
    for (long step = 1; stops(do_live, step, variant, 0); step++) total++;
    for (long death = 20; death < 38; death++)
        for (long step = 1; stops(do_reclaim, step, variant, death); step++) total++;
    printf("%ld stops\n", total);
}

/* ---- several hosts at once ----------------------------------------------------------------------------- */

static uint64_t random_state;

static uint64_t draw(uint64_t below) { /* splitmix64 */
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (z ^ z >> 31) % below;
}

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

static void run_random(long num_kills, uint64_t seed) {
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

int main(int argc, char** argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    REQUIRE(argc >= 3);
    path = argv[1];
    if (strcmp(argv[2], "steps") == 0) run_steps();
    else if (strcmp(argv[2], "double") == 0) run_double(atol(argv[3]));
    else if (strcmp(argv[2], "stop") == 0) run_stop(atol(argv[3]));
    else run_random(atol(argv[3]), strtoull(argv[4], NULL, 0));
    return 0;
}
