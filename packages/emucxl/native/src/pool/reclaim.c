/* Fencing hosts, and finishing or undoing what they left. Everything here may be run by any number of hosts
 * at once, and be cut off anywhere: each step is one compare-and-swap from a state that only such a step
 * leaves.
 *
 *   host    free -> joining -> active -> fenced -> drained -> free
 *                      |          `-----------------^ (leaving, or its process is gone)
 *                      `--------------------------------^ (its process is gone)
 *   region  free -> naming -> named -> filling -> live <-> resizing
 *                      `---------`--------`---------`--> dying -> free
 *   extent  free -> claimed -> ready -> free, or retired
 */
#include <stdlib.h>

#include "pool/internal.h"

static const uint64_t JOIN_PATIENCE_NS = 2u * UINT64_C(1000000000); /* for one that cannot be looked at */
/* For one whose PID lives, maybe reused. */
static const uint64_t LIVING_JOIN_PATIENCE_NS = 60u * UINT64_C(1000000000);
static const uint64_t MIN_LEASE_NS = 1000000u, MAX_LEASE_NS = 3600u * UINT64_C(1000000000);
enum { KILL_POLLS = 200, KILL_POLL_NS = 5000000 };

/* ---- regions ------------------------------------------------------------------------------------------- */

void region_bury(emx_pool* pool, uint32_t slot) {
    region_record* record = &pool->regions[slot];
    const uint64_t word = shared_load(&record->word);
    if (region_state(word) != REGION_DYING) return;
    extents_give_back(pool, slot, (uint32_t)region_gen(word), 0, &record->word, word);
    uint64_t next = with_region_gen(0, region_gen(word) + 1);
    next = with_region_version(next, region_version(word) + 1);
    shared_swap(&record->word, word, next);
}

static bool is_held(const emx_pool* pool, const region_record* record, uint64_t word) {
    for (uint32_t slot = 0; slot < POOL_HOSTS; slot++) {
        const uint64_t holder = shared_load(&record->holders[slot]);
        if (holder_mode(holder) && holder_gen(holder) == region_gen(word) &&
            host_may_hold(pool, slot, holder_epoch(holder), holder_epoch_WIDTH))
            return true;
    }
    return false;
}

void region_settle(emx_pool* pool, uint32_t slot) {
    region_record* record = &pool->regions[slot];
    for (;;) {
        const uint64_t word = shared_load(&record->word);
        if (region_state(word) == REGION_DYING) return region_bury(pool, slot);
        if (region_state(word) != REGION_LIVE || region_persistent(word) || is_held(pool, record, word))
            return;
        /* Whoever opened it since `word` was read has raised its version. */
        if (shared_swap(&record->word, word, with_region_state(word, REGION_DYING)))
            return region_bury(pool, slot);
    }
}

/* Undoes or finishes the change to a region that a host was last seen making. */
static void region_repair(emx_pool* pool, uint32_t slot) {
    region_record* record = &pool->regions[slot];
    const uint64_t word = shared_load(&record->word);
    const unsigned state = region_state(word);
    const bool at_work = state == REGION_NAMING || state == REGION_NAMED || state == REGION_FILLING ||
                         state == REGION_RESIZING;
    if (at_work &&
        !host_may_hold(pool, (uint32_t)region_worker(word), region_epoch(word), region_epoch_WIDTH)) {
        if (state == REGION_RESIZING) {
            const uint32_t kept = extents_for(pool, shared_load(&record->size_bytes));
            extents_give_back(pool, slot, (uint32_t)region_gen(word), kept, &record->word, word);
            uint64_t live = with_region_state(word, REGION_LIVE);
            live = with_region_version(live, region_version(word) + 1);
            shared_swap(&record->word, word, live);
        } else {
            shared_swap(&record->word, word, with_region_state(word, REGION_DYING));
        }
    }
    region_settle(pool, slot);
}

/* An owner that was killed while it grew the region left extents beyond its size. */
static void drop_owner(emx_pool* pool, uint32_t slot, uint64_t owner) {
    region_record* record = &pool->regions[slot];
    const uint64_t word = shared_load(&record->word);
    if (region_state(word) == REGION_LIVE && region_gen(word) == owner_gen(owner)) {
        const uint32_t kept = extents_for(pool, shared_load(&record->size_bytes));
        extents_give_back(pool, slot, (uint32_t)owner_gen(owner), kept, &record->owner, owner);
    }
    shared_swap(&record->owner, owner, 0);
}

void region_drop_dead_owner(emx_pool* pool, uint32_t slot) {
    const uint64_t owner = shared_load(&pool->regions[slot].owner);
    if (owner_valid(owner) && !owner_holds(pool, owner, owner_gen(owner))) drop_owner(pool, slot, owner);
}

/* ---- hosts --------------------------------------------------------------------------------------------- */

void host_clean(emx_pool* pool, uint32_t slot, uint64_t epoch, emx_reclaim_report* report) {
    host_record* record = &pool->hosts[slot];
    const uint64_t word = shared_load(&record->word);
    if (host_state(word) != HOST_DRAINED || host_epoch(word) != epoch) return;
    for (uint32_t i = 0; i < pool->header.max_regions; i++) {
        shared_word* holder = &pool->regions[i].holders[slot];
        const uint64_t held = shared_load(holder);
        region_repair(pool, i); /* before the owner goes: what it was growing is found by it */
        region_drop_dead_owner(pool, i);
        if (held && holder_epoch(held) == epoch) shared_swap(holder, held, 0);
        region_settle(pool, i);
    }
    if (shared_swap(&record->word, word, with_host_epoch(0, epoch)) && report) report->freed_hosts++;
}

/* For how long this process has seen a host say nothing new. */
static uint64_t unchanged_ns(emx_pool* pool, uint32_t slot, uint64_t word) {
    const uint64_t heartbeats = shared_load(&pool->hosts[slot].heartbeats), now_ns = process_monotonic_ns();
    pthread_mutex_lock(&pool->lock);
    observation* seen = &pool->observations[slot];
    if (seen->word != word || seen->heartbeats != heartbeats || seen->since_ns == 0)
        *seen = (observation){.word = word, .heartbeats = heartbeats, .since_ns = now_ns};
    const uint64_t duration_ns = now_ns - seen->since_ns;
    pthread_mutex_unlock(&pool->lock);
    return duration_ns;
}

static uint64_t lease_of(const host_record* record) {
    const uint64_t lease_ns = shared_load(&record->lease_ns);
    return lease_ns < MIN_LEASE_NS ? MIN_LEASE_NS : lease_ns > MAX_LEASE_NS ? MAX_LEASE_NS : lease_ns;
}

static bool lease_ran_out(emx_pool* pool, uint32_t slot, uint64_t word, const process_identity* identity) {
    const host_record* record = &pool->hosts[slot];
    const uint64_t lease_ns = lease_of(record), beat_ns = shared_load(&record->heartbeat_ns);
    if (process_shares_clock(&pool->self, identity)) {
        const uint64_t now_ns = process_boottime_ns();
        if (beat_ns <= now_ns) return now_ns - beat_ns > lease_ns;
        if (beat_ns - now_ns <= lease_ns)
            return false; /* it beat since `now_ns` was read; from further ahead, it isn't believed */
    }
    return unchanged_ns(pool, slot, word) > lease_ns;
}

/* Its record isn't written yet, so that it isn't known which lock it should have; but if it has this one, it
 * lives. */
static bool joiner_is_gone(emx_pool* pool, uint32_t slot, uint64_t word) {
    const bool is_here = host_machine(word) == host_machine_hash(&pool->self);
    const process_state state = is_here ? process_look_at_pid(&pool->self, host_pid(word)) : PROCESS_UNKNOWN;
    if (state == PROCESS_DEAD) return true;
    if (presence_is_locked(pool, slot)) return false;
    return unchanged_ns(pool, slot, word) >
           (state == PROCESS_ALIVE ? LIVING_JOIN_PATIENCE_NS : JOIN_PATIENCE_NS);
}

static bool kill_and_wait(const emx_pool* pool, uint32_t slot, const process_identity* identity) {
    if (process_kill(&pool->self, identity) != 0) return presence_of(pool, slot, identity) == PROCESS_DEAD;
    for (int i = 0; i < KILL_POLLS; i++) {
        if (presence_of(pool, slot, identity) == PROCESS_DEAD) return true;
        process_sleep_ns(KILL_POLL_NS);
    }
    return false;
}

/* A fenced host is drained once it can write to nothing: it said so itself, its process is gone, or (where
 * nobody here can tell whether that is) it kept silent for one more lease, in which a host that lives
 * surrenders. */
static bool fenced_is_gone(emx_pool* pool, uint32_t slot, uint64_t word, const process_identity* identity,
                           uint32_t flags) {
    const bool is_own = process_shares_pids(&pool->self, identity) && identity->pid == pool->self.pid;
    switch (presence_of(pool, slot, identity)) {
        case PROCESS_DEAD:
            return true;
        case PROCESS_ALIVE:
            return (flags & EMX_RECLAIM_KILL) && !is_own && kill_and_wait(pool, slot, identity);
        default:
            return unchanged_ns(pool, slot, word) > lease_of(&pool->hosts[slot]);
    }
}

/* The state that the host has to go to now; its own if it may stay. */
static unsigned next_state(emx_pool* pool, uint32_t slot, uint64_t word, uint32_t flags) {
    process_identity identity;
    host_identity(&pool->hosts[slot], &identity);
    switch (host_state(word)) {
        case HOST_JOINING:
            return joiner_is_gone(pool, slot, word) ? HOST_DRAINED : HOST_JOINING;
        case HOST_ACTIVE:
            if (presence_of(pool, slot, &identity) == PROCESS_DEAD) return HOST_DRAINED;
            return lease_ran_out(pool, slot, word, &identity) ? HOST_FENCED : HOST_ACTIVE;
        case HOST_FENCED:
            return fenced_is_gone(pool, slot, word, &identity, flags) ? HOST_DRAINED : HOST_FENCED;
        default:
            return (unsigned)host_state(word);
    }
}

static void reclaim_host(emx_pool* pool, uint32_t slot, uint32_t flags, emx_reclaim_report* report) {
    for (;;) {
        const uint64_t word = shared_load(&pool->hosts[slot].word);
        const unsigned state = host_state(word), next = next_state(pool, slot, word, flags);
        if (state == HOST_DRAINED) return host_clean(pool, slot, host_epoch(word), report);
        if (next == state) {
            report->quarantined_hosts += state == HOST_FENCED;
            return;
        }
        if (shared_swap(&pool->hosts[slot].word, word, with_host_state(word, next)))
            report->fenced_hosts += state == HOST_ACTIVE;
    }
}

/* ---- all of it ----------------------------------------------------------------------------------------- */

/* An extent whose region has gone: a host claimed it after it was given up for dead. */
static void reclaim_orphan(emx_pool* pool, uint32_t extent) {
    const uint64_t word = shared_load(&pool->extents[extent]);
    if (extent_state(word) != EXTENT_CLAIMED && extent_state(word) != EXTENT_READY) return;
    bool is_orphan = extent_region(word) >= pool->header.max_regions;
    if (!is_orphan) {
        const uint64_t region = shared_load(&pool->regions[extent_region(word)].word);
        const unsigned state = region_state(region);
        is_orphan = region_gen(region) != extent_gen(word) || state == REGION_FREE ||
                    state == REGION_NAMING || state == REGION_NAMED;
    }
    if (is_orphan) extent_give_back(pool, extent, word);
}

static void count_use(const emx_pool* pool, uint32_t* num_extents, uint32_t* num_regions) {
    emx_pool_info info;
    *num_extents = *num_regions = 0;
    if (emx_pool_get_info(pool, &info) != EMX_OK) return;
    *num_extents = (uint32_t)info.held_extents;
    *num_regions = info.num_regions;
}

emx_status reclaim(emx_pool* pool, uint32_t flags, emx_reclaim_report* report) {
    emx_reclaim_report unseen = {0};
    for (uint32_t slot = 0; slot < POOL_HOSTS; slot++)
        reclaim_host(pool, slot, flags, report ? report : &unseen);
    for (uint32_t slot = 0; slot < pool->header.max_regions; slot++) region_repair(pool, slot);
    if (!(flags & RECLAIM_SWEEP)) return EMX_OK;
    for (uint32_t extent = 0; extent < pool->header.num_extents; extent++) reclaim_orphan(pool, extent);
    poison_restore_flags(pool);
    return EMX_OK;
}

emx_status emx_pool_reclaim(emx_pool* pool, uint32_t flags, emx_reclaim_report* report) {
    emx_reclaim_report counted = {0};
    uint32_t extents_before, regions_before, extents_after, regions_after;
    emx_status status = pool_require_writable(pool);
    if (!status && flags & ~(uint32_t)EMX_RECLAIM_KILL)
        status = fail(EMX_E_INVALID, "got flags=%#x; expected EMX_RECLAIM_KILL or none", flags);
    if (status) return status;
    count_use(pool, &extents_before, &regions_before);
    status = reclaim(pool, flags | RECLAIM_SWEEP, &counted);
    count_use(pool, &extents_after, &regions_after);
    /* Differences, so that they are right whoever finished the work; others may carve meanwhile. */
    counted.freed_extents = extents_before > extents_after ? extents_before - extents_after : 0;
    counted.freed_regions = regions_before > regions_after ? regions_before - regions_after : 0;
    if (report) *report = counted;
    return status;
}
