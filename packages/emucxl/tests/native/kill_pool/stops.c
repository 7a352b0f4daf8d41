/* Two hosts, step by step: one is stopped while the other one does what may collide. */
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kill_pool/kills.h"

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

void run_stop(long variant) {
    long total = 0;
    for (long step = 1; stops(do_live, step, variant, 0); step++) total++;
    for (long death = 20; death < 38; death++)
        for (long step = 1; stops(do_reclaim, step, variant, death); step++) total++;
    printf("%ld stops\n", total);
}
