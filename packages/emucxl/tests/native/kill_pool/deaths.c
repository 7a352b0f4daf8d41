/* Death at each step, and who comes after. */
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kill_pool/kills.h"

static long kill_step, steps;
int kill_signal = SIGKILL;

void pool_step(void) {
    if (++steps == kill_step) kill(getpid(), kill_signal);
}

_Noreturn void run_until_signalled(const char* name, operation run, long at_step) {
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

bool dies(operation run, long at_step) {
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) run_until_signalled("victim", run, at_step);
    int status;
    REQUIRE(waitpid(child, &status, 0) == child);
    REQUIRE(WIFSIGNALED(status) ? WTERMSIG(status) == SIGKILL : WEXITSTATUS(status) == 0);
    return WIFSIGNALED(status);
}

survivor make_survivor(void) {
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

void verify(const survivor* self) {
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

void end(survivor* self) {
    emx_pool_close(self->pool);
    unlink(path);
}

void run_steps(void) {
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

void run_double(long stride) {
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
