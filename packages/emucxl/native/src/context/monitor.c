/* Statistics of tiers, kept in the page that `emucxl top` reads. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "context/internal.h"
#include "fail.h"
#include "fork.h"
#include "prim/backing.h"
#include "prim/memory.h"
#include "prim/system_memory.h"
#include "thread.h"

enum { SHOW_AT = 256 };

static uint64_t load(const uint64_t* counter) { return __atomic_load_n(counter, __ATOMIC_RELAXED); }
static void store(uint64_t* counter, uint64_t value) { __atomic_store_n(counter, value, __ATOMIC_RELAXED); }

emx_status monitor_open(emx_context* context, uint32_t clock) {
    void* base = NULL;
    context->monitor_fd = -1;
    if (memory_create_file(EMX_MONITOR_NAME, sizeof(emx_monitor_page), &context->monitor_fd) == 0 &&
        memory_map_anywhere(sizeof(emx_monitor_page), context->monitor_fd, &base) != 0) {
        backing_close(context->monitor_fd);
        context->monitor_fd = -1;
    }
    if (context->monitor_fd >= 0) (void)backing_seal(context->monitor_fd);
    if (base == NULL) base = calloc(1, sizeof(emx_monitor_page));
    if (base == NULL)
        return fail(EMX_E_NO_MEMORY, "no memory for the %zu bytes of a monitor page",
                    sizeof(emx_monitor_page));
    emx_monitor_page* page = context->monitor = base;
    page->version = EMX_MONITOR_VERSION;
    page->page_bytes = sizeof *page;
    page->pid = system_process_id();
    page->clock = clock;
    /* Release: a process that maps the page and finds the magic finds the fields before it. */
    __atomic_store_n(&page->magic, EMX_MONITOR_MAGIC, __ATOMIC_RELEASE);
    return EMX_OK;
}

void monitor_close(emx_context* context) {
    if (context->monitor_fd < 0) {
        free(context->monitor);
    } else {
        memory_release(context->monitor, sizeof *context->monitor);
        backing_close(context->monitor_fd);
    }
    context->monitor = NULL;
}

emx_status emx_context_set_name(emx_context* context, const char* name) {
    emx_status status = context_require(context);
    if (status == EMX_OK) status = context_check_name("context", name);
    if (status != EMX_OK) return status;
    char padded[EMX_NAME_BYTES] = {0};
    snprintf(padded, sizeof padded, "%s", name);
    pthread_mutex_lock(&context->adding);
    memcpy(context->monitor->name, padded, sizeof padded);
    pthread_mutex_unlock(&context->adding);
    return EMX_OK;
}

void monitor_add_tier(emx_context* context, tier* tier) {
    emx_monitor_tier* shown = tier->monitor = &context->monitor->tiers[tier->number];
    memcpy(shown->name, tier->name, sizeof shown->name);
    shown->modelled = tier->path != NULL;
    shown->capacity_bytes = tier->pages.capacity_bytes;
    tier_show(tier);
}

/* ---- shards -------------------------------------------------------------------------------------------- */

/* All but the last shard belong to one thread each, which adds without an atomic operation; threads beyond
 * these, and a fork's child, share the last one and add atomically. A bit is set while its shard has an
 * owner: who takes it over sees what the owner before added. */
enum { SHARED_SHARD = EMX_MONITOR_SHARDS - 1, UNASSIGNED = 0 };

static _Atomic uint32_t owned_shards;

static void end_thread(thread_state* self) {
    if (self->shard == UNASSIGNED || self->shard == SHARED_SHARD + 1) return;
    /* Release: pairs with the acquire in assign_shard. */
    atomic_fetch_and_explicit(&owned_shards, ~(UINT32_C(1) << (self->shard - 1)), memory_order_release);
}

/* The parent's threads go on writing to the pages that the child has, too. */
static void after_fork(bool is_child) {
    if (!is_child) return;
    thread_self()->shard = SHARED_SHARD + 1;
    atomic_store(&owned_shards, UINT32_MAX);
}

__attribute__((constructor)) static void prepare(void) {
    fork_watch(FORK_SHARDS, NULL, after_fork);
    thread_watch_ends(end_thread);
}

static unsigned assign_shard(thread_state* self) {
    if (self->is_ending) return SHARED_SHARD + 1;
    uint32_t owned = atomic_load(&owned_shards);
    for (unsigned shard = 0; shard < SHARED_SHARD;) {
        const uint32_t bit = UINT32_C(1) << shard;
        if ((owned & bit) != 0) {
            shard++;
        } else if (atomic_compare_exchange_weak_explicit(&owned_shards, &owned, owned | bit,
                                                         memory_order_acquire, memory_order_relaxed)) {
            return self->shard = shard + 1;
        }
    }
    return self->shard = SHARED_SHARD + 1;
}

static inline void add(uint64_t* counter, uint64_t value, bool is_shared) {
    if (is_shared) {
        __atomic_fetch_add(counter, value, __ATOMIC_RELAXED);
    } else {
        store(counter, load(counter) + value);
    }
}

void tier_count(tier* tier, emx_direction direction, size_t size_bytes, uint64_t delayed_ns) {
    thread_state* self = thread_self();
    unsigned own = self->shard;
    if (__builtin_expect(own == UNASSIGNED, 0)) own = assign_shard(self);
    const bool is_shared = own == SHARED_SHARD + 1;
    emx_monitor_counters* shard = &tier->monitor->shards[own - 1];
    add(direction == EMX_READ ? &shard->read_bytes : &shard->write_bytes, size_bytes, is_shared);
    add(direction == EMX_READ ? &shard->read_accesses : &shard->write_accesses, 1, is_shared);
    if (delayed_ns > 0) add(&shard->delayed_ns, delayed_ns, is_shared);
}

void monitor_sum(const tier* tier, emx_tier_stats* stats) {
    for (uint32_t i = 0; i < EMX_MONITOR_SHARDS; i++) {
        const emx_monitor_counters* shard = &tier->monitor->shards[i];
        stats->read_bytes += load(&shard->read_bytes);
        stats->write_bytes += load(&shard->write_bytes);
        stats->read_accesses += load(&shard->read_accesses);
        stats->write_accesses += load(&shard->write_accesses);
        stats->delayed_ns += load(&shard->delayed_ns);
    }
}

void tier_show(tier* tier) {
    heap_stats stats;
    heap_get_stats(tier->heap, &stats);
    store(&tier->monitor->allocated_bytes, stats.allocated_bytes);
    store(&tier->monitor->reserved_bytes, stats.reserved_bytes);
    store(&tier->monitor->num_allocations, stats.num_allocations);
}

/* A lock or two each time: so every 256 small calls, or at once for a megabyte. */
void tier_show_sometimes(tier* tier, size_t size_bytes) {
    static _Thread_local size_t weight __attribute__((tls_model("initial-exec"))) = SHOW_AT - 1;
    weight += 1 + size_bytes / 4096;
    if (weight < SHOW_AT) return;
    weight = 0;
    tier_show(tier);
}
