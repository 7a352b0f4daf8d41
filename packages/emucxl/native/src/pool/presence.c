/* Whether a host's process is still there: a lock on one byte of the pool's file, which the kernel drops when the
 * last descriptor and mapping of that open file are gone. It says so in every PID and time namespace of this running
 * kernel, and no PID that is used again can be taken for it. Where there is no such lock (another kernel, another
 * node of the same device, a filesystem without) the PID is asked, and where that means nothing, the lease.
 *
 * Thread safety: `own_slots` is atomic; the list of open pools has a lock of its own.
 *
 * Invariants
 *   1. A host has its slot's lock before its word leaves "free", and until it is drained.
 *   2. A child of fork() has no descriptor of its parent's pools, so that it does not keep the locks of a dead parent.
 */
#include <errno.h>

#include "pool/internal.h"
#include "prim/file.h"

/* ---- children of fork() -------------------------------------------------------------------------------- */

static pthread_mutex_t open_lock = PTHREAD_MUTEX_INITIALIZER;
static emx_pool* open_pools;

static void lock_list(void) { pthread_mutex_lock(&open_lock); }

static void unlock_list(void) { pthread_mutex_unlock(&open_lock); }

static void close_in_child(void) {
    for (emx_pool* pool = open_pools; pool; pool = pool->next_open) {
        close_file(pool->fd);
        pool->fd = -1;
    }
    open_pools = NULL;
    pthread_mutex_unlock(&open_lock);
}

static void watch_forks(void) { pthread_atfork(lock_list, unlock_list, close_in_child); }

void presence_watch(emx_pool* pool) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_forks);
    pthread_mutex_lock(&open_lock);
    pool->next_open = open_pools;
    open_pools = pool;
    pthread_mutex_unlock(&open_lock);
}

void presence_unwatch(emx_pool* pool) {
    pthread_mutex_lock(&open_lock);
    emx_pool** at = &open_pools;
    while (*at && *at != pool) at = &(*at)->next_open;
    if (*at) *at = pool->next_open;
    pthread_mutex_unlock(&open_lock);
}

/* ---- locks --------------------------------------------------------------------------------------------- */

bool presence_take(emx_host* host, uint32_t slot) {
    emx_pool* pool = host->pool;
    const uint64_t bit = UINT64_C(1) << slot;
    if (atomic_fetch_or(&pool->own_slots, bit) & bit)
        return false; /* to this open file its own locks are no obstacle */
    const int error = pool->lock_inode ? file_lock_byte(pool->fd, slot) : ENOTSUP;
    if (error == EAGAIN) {
        atomic_fetch_and(&pool->own_slots, ~bit);
        return false;
    }
    host->slot = slot;
    host->lock_inode = error ? 0 : pool->lock_inode;
    host->has_slot = true;
    return true;
}

void presence_let_go(emx_host* host) {
    if (!host->has_slot) return;
    host->has_slot = false;
    if (host->lock_inode) file_unlock_byte(host->pool->fd, host->slot);
    atomic_fetch_and(&host->pool->own_slots, ~(UINT64_C(1) << host->slot));
}

bool presence_is_locked(const emx_pool* pool, uint32_t slot) {
    return (atomic_load(&pool->own_slots) >> slot & 1) || file_byte_is_locked(pool->fd, slot) == 1;
}

process_state presence_of(const emx_pool* pool, uint32_t slot, const process_identity* identity) {
    const uint64_t lock_inode = shared_load(&pool->hosts[slot].lock_inode);
    if (!lock_inode || lock_inode != pool->lock_inode || !process_shares_boot(&pool->self, identity))
        return process_look(&pool->self, identity);
    if (!presence_is_locked(pool, slot)) return PROCESS_DEAD;
    /* A copy of its descriptor may outlive a host, its mappings cannot. Start times have no say: they differ
     * by namespace. */
    const bool is_gone = process_shares_pids(&pool->self, identity) &&
                         process_look_at_pid(&pool->self, identity->pid) == PROCESS_DEAD;
    return is_gone ? PROCESS_DEAD : PROCESS_ALIVE;
}
