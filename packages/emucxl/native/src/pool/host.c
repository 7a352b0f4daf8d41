/* Joining, heartbeats and leaving; and what a host does once it finds itself fenced. */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "pool/internal.h"
#include "prim/file.h"

static const uint64_t MIN_LEASE_NS = 1000000u, MAX_LEASE_NS = 3600u * UINT64_C(1000000000);
static const uint64_t DEFAULT_LEASE_NS = 5u * UINT64_C(1000000000);
enum { HEARTBEATS_PER_LEASE = 4 };

/* ---- what the tables say of hosts ---------------------------------------------------------------------- */

void host_identity(const host_record* record, process_identity* identity) {
    *identity = (process_identity){
        .pid = shared_load(&record->pid),
        .start_time = shared_load(&record->start_time),
        .boot_id = {shared_load(&record->boot_id[0]), shared_load(&record->boot_id[1])},
        .pid_namespace = shared_load(&record->pid_namespace),
        .time_namespace = shared_load(&record->time_namespace),
    };
}

bool host_may_hold(const emx_pool* pool, uint32_t slot, uint64_t epoch, unsigned epoch_bits) {
    const uint64_t word = shared_load(&pool->hosts[slot].word);
    const uint64_t mask = (UINT64_C(1) << epoch_bits) - 1;
    const unsigned state = host_state(word);
    return (state == HOST_ACTIVE || state == HOST_FENCED) && (host_epoch(word) & mask) == (epoch & mask);
}

uint64_t host_owned_bytes(const emx_pool* pool, uint32_t slot, uint64_t epoch) {
    uint64_t num_extents = 0;
    for (uint32_t i = 0; i < pool->header.max_regions; i++) {
        const region_record* record = &pool->regions[i];
        const uint64_t word = shared_load(&record->word), owner = shared_load(&record->owner);
        const unsigned state = region_state(word);
        if (state != REGION_FILLING && state != REGION_LIVE && state != REGION_RESIZING) continue;
        if (!owner_valid(owner) || owner_slot(owner) != slot || owner_epoch(owner) != epoch) continue;
        if (owner_gen(owner) == region_gen(word))
            num_extents += extents_for(pool, shared_load(&record->size_bytes));
    }
    return num_extents * pool->header.extent_bytes;
}

emx_status host_require_active(const emx_host* host) {
    if (pool_is_inherited(host->pool))
        return fail(EMX_E_CLOSED,
                    "the host was joined by the parent of this process; open the pool and join it here too");
    const emx_status status = pool_require_whole(host->pool);
    if (status) return status;
    if (shared_load(&host->pool->hosts[host->slot].word) == host->word) return EMX_OK;
    return fail(EMX_E_FENCED,
                "the lease of host %u, epoch %u, ran out; leave, and join again for a new epoch", host->slot,
                host->epoch);
}

/* ---- joining ------------------------------------------------------------------------------------------- */

uint64_t host_machine_hash(const process_identity* self) {
    return ((self->boot_id[0] ^ self->boot_id[1] ^ self->pid_namespace) * 0x9e3779b97f4a7c15u) >> 57;
}

/* The word of a host of this process that is joining. */
static uint64_t joining_word(const emx_pool* pool, uint64_t epoch) {
    uint64_t word = with_host_state(0, HOST_JOINING);
    word = with_host_epoch(word, epoch);
    word = with_host_pid(word, pool->self.pid);
    return with_host_machine(word, host_machine_hash(&pool->self));
}

static bool take_slot(emx_host* host) {
    emx_pool* pool = host->pool;
    for (uint32_t slot = 0; slot < POOL_HOSTS; slot++) {
        const uint64_t word = shared_load(&pool->hosts[slot].word);
        if (host_state(word) != HOST_FREE) continue;
        if (!presence_take(host, slot)) continue;
        host->word = joining_word(pool, host_epoch(word) + 1);
        if (!shared_swap(&pool->hosts[slot].word, word, host->word)) {
            presence_let_go(host);
            continue;
        }
        host->epoch = (uint32_t)host_epoch(host->word);
        return true;
    }
    return false;
}

static void write_record(emx_host* host, const char* name) {
    host_record* record = &host->pool->hosts[host->slot];
    const process_identity* self = &host->pool->self;
    text_store(record->name, name);
    shared_store(&record->pid, self->pid);
    shared_store(&record->start_time, self->start_time);
    shared_store(&record->boot_id[0], self->boot_id[0]);
    shared_store(&record->boot_id[1], self->boot_id[1]);
    shared_store(&record->pid_namespace, self->pid_namespace);
    shared_store(&record->time_namespace, self->time_namespace);
    shared_store(&record->lock_inode, host->lock_inode);
    shared_store(&record->lease_ns, host->lease_ns);
    shared_store(&record->quota_bytes, host->quota_bytes);
    shared_store(&record->heartbeats, 0);
    shared_store(&record->heartbeat_ns, process_boottime_ns());
}

static emx_status become_active(emx_host* host, const char* name) {
    for (int attempt = 0; attempt < 4; attempt++) {
        if (!take_slot(host)) return fail(EMX_E_POOL_FULL, "all %d host slots are taken", POOL_HOSTS);
        write_record(host, name);
        const uint64_t active = with_host_state(host->word, HOST_ACTIVE);
        const bool joined = shared_swap(&host->pool->hosts[host->slot].word, host->word, active);
        host->word = active;
        if (joined) return EMX_OK; /* else it took so long that it was taken for dead */
        presence_let_go(host);
    }
    return fail(EMX_E_TIMEOUT, "this process was too slow to join before others took it for dead");
}

static emx_status check_join(const emx_join_config* config) {
    if (config->struct_bytes != sizeof *config)
        return fail(EMX_E_INVALID, "got struct_bytes=%u; expected %zu", config->struct_bytes, sizeof *config);
    if (config->flags & ~(uint32_t)(EMX_JOIN_NO_HEARTBEAT | EMX_JOIN_FAULT_ON_FENCE))
        return fail(EMX_E_INVALID, "got flags=%#x; expected flags of emx_join_flag", config->flags);
    if (config->lease_ns && (config->lease_ns < MIN_LEASE_NS || config->lease_ns > MAX_LEASE_NS))
        return fail(EMX_E_INVALID, "got lease_ns=%" PRIu64 "; expected 1 ms to 1 h", config->lease_ns);
    return EMX_OK;
}

static emx_host* make_host(emx_pool* pool, const emx_join_config* config) {
    pthread_rwlockattr_t attributes;
    pthread_condattr_t clock;
    emx_host* host = handle_alloc(HANDLE_HOST, sizeof *host);
    if (!host) return NULL;
    host->pool = pool;
    host->flags = config->flags;
    host->lease_ns = config->lease_ns ? config->lease_ns : DEFAULT_LEASE_NS;
    host->quota_bytes = config->quota_bytes;
    pthread_mutex_init(&host->lock, NULL);
    pthread_rwlockattr_init(&attributes);
    pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&host->mapping, &attributes);
    pthread_rwlockattr_destroy(&attributes);
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&host->wake, &clock);
    pthread_condattr_destroy(&clock);
    return host;
}

static void destroy_host(emx_host* host) {
    if (!pool_is_inherited(host->pool)) { /* in a child, a thread that isn't there may hold them */
        pthread_cond_destroy(&host->wake);
        pthread_rwlock_destroy(&host->mapping);
        pthread_mutex_destroy(&host->lock);
    }
    handle_free(HANDLE_HOST, host);
}

/* ---- heartbeats ---------------------------------------------------------------------------------------- */

/* Prolongs the lease; false if this host was fenced. Takes no lock, so that a long carve doesn't cost the
 * lease. */
static bool beat(emx_host* host) {
    host_record* record = &host->pool->hosts[host->slot];
    if (shared_load(&record->word) != host->word) return false;
    shared_store(&record->heartbeat_ns, process_boottime_ns());
    shared_store(&record->heartbeats, shared_load(&record->heartbeats) + 1);
    return shared_load(&record->word) == host->word;
}

void host_surrender(emx_host* host) {
    if (host->unmapped) return;
    emx_pool* pool = host->pool;
    pthread_rwlock_wrlock(&host->mapping); /* copies in flight end first */
    for (emx_region* region = host->regions; region; region = region->next) {
        const size_t mapped_bytes = region->mapped_extents * pool->header.extent_bytes;
        if (host->flags & EMX_JOIN_FAULT_ON_FENCE) address_forbid(region->base, mapped_bytes);
        else address_blank(region->base, mapped_bytes);
    }
    host->unmapped = true;
    pthread_rwlock_unlock(&host->mapping);
    if (pool_require_whole(pool)) return; /* nothing is left to tell others in */
    const uint64_t fenced = with_host_state(host->word, HOST_FENCED);
    shared_swap(&pool->hosts[host->slot].word, fenced, with_host_state(fenced, HOST_DRAINED));
    host_clean(pool, host->slot, host->epoch, NULL);
    presence_let_go(host);
}

static void surrender_locked(emx_host* host) {
    pthread_mutex_lock(&host->lock);
    host_surrender(host);
    pthread_mutex_unlock(&host->lock);
}

emx_status emx_host_heartbeat(emx_host* host) {
    const emx_status known = handle_require(HANDLE_HOST, host);
    if (known) return known;
    if (pool_is_inherited(host->pool)) return host_require_active(host);
    emx_status status = pool_require_whole(host->pool);
    if (status) {
        surrender_locked(host); /* views lead to zeroes then, instead of nowhere */
        return status;
    }
    if (!beat(host)) {
        surrender_locked(host);
        return host_require_active(host);
    }
    reclaim(host->pool, 0, NULL);
    return host_require_active(host);
}

static void wait_for_turn(emx_host* host, uint64_t duration_ns) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    const uint64_t end_ns = (uint64_t)until.tv_nsec + duration_ns;
    until.tv_sec += (time_t)(end_ns / 1000000000u);
    until.tv_nsec = (long)(end_ns % 1000000000u);
    while (!host->stopping)
        if (pthread_cond_timedwait(&host->wake, &host->lock, &until) == ETIMEDOUT) break;
}

static bool is_over(emx_status status) { return status == EMX_E_FENCED || status == EMX_E_CORRUPT; }

static void* beat_until_stopped(void* argument) {
    emx_host* host = argument;
    for (;;) {
        pthread_mutex_lock(&host->lock);
        wait_for_turn(host, host->lease_ns / HEARTBEATS_PER_LEASE);
        const bool stopping = host->stopping;
        pthread_mutex_unlock(&host->lock);
        if (stopping || is_over(emx_host_heartbeat(host))) return NULL;
    }
}

static emx_status start_thread(emx_host* host) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are the program's */
    const int error = pthread_create(&host->thread, NULL, beat_until_stopped, host);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error) return fail_system(error, "cannot start the thread that sends heartbeats");
    host->has_thread = true;
    return EMX_OK;
}

static void stop_thread(emx_host* host) {
    if (!host->has_thread) return;
    pthread_mutex_lock(&host->lock);
    host->stopping = true;
    pthread_cond_signal(&host->wake);
    pthread_mutex_unlock(&host->lock);
    pthread_join(host->thread, NULL);
}

/* ---- the calls ----------------------------------------------------------------------------------------- */

emx_status emx_pool_join(emx_pool* pool, const char* name, const emx_join_config* config, emx_host** joined) {
    const emx_join_config plain = {.struct_bytes = sizeof plain};
    emx_status status = pool_require_writable(pool);
    if (!status && !joined) status = fail(EMX_E_INVALID, "got nowhere to put the host");
    if (!status) status = text_check(name, "host's name");
    if (!status) status = check_join(config ? config : &plain);
    if (status) return status;
    reclaim(pool, 0, NULL);
    emx_host* host = make_host(pool, config ? config : &plain);
    if (!host) return fail(EMX_E_NO_MEMORY, "no memory for a host's handle");
    status = become_active(host, name);
    if (status) {
        destroy_host(host);
        return status;
    }
    handle_open(HANDLE_HOST, host);
    pthread_mutex_lock(&pool->lock);
    host->next = pool->joined;
    pool->joined = host;
    pthread_mutex_unlock(&pool->lock);
    if (!(host->flags & EMX_JOIN_NO_HEARTBEAT)) status = start_thread(host);
    if (status) emx_host_leave(host);
    else *joined = host;
    return status;
}

static void forget_host(emx_host* host) {
    const bool inherited = pool_is_inherited(host->pool);
    if (!inherited) pthread_mutex_lock(&host->pool->lock);
    emx_host** at = &host->pool->joined;
    while (*at && *at != host) at = &(*at)->next;
    if (*at) *at = host->next;
    if (!inherited) pthread_mutex_unlock(&host->pool->lock);
}

/* Unmapped first: what is drained may be handed out at once. */
static void drain_self(emx_host* host) {
    emx_pool* pool = host->pool;
    pthread_mutex_lock(&host->lock);
    for (emx_region* region = host->regions; region; region = region->next) region_unmap(region);
    if (pool_require_whole(pool)) {
        pthread_mutex_unlock(&host->lock);
        return;
    }
    if (!shared_swap(&pool->hosts[host->slot].word, host->word, with_host_state(host->word, HOST_DRAINED)))
        host_surrender(host);
    host_clean(pool, host->slot, host->epoch, NULL);
    presence_let_go(host);
    pthread_mutex_unlock(&host->lock);
}

void emx_host_leave(emx_host* host) {
    if (!handle_is(HANDLE_HOST, host)) return;
    if (!pool_is_inherited(host->pool)) {
        stop_thread(host);
        drain_self(host);
    }
    while (host->regions) {
        emx_region* region = host->regions;
        host->regions = region->next;
        free(region->extents);
        handle_free(HANDLE_REGION, region);
    }
    forget_host(host);
    destroy_host(host);
}
