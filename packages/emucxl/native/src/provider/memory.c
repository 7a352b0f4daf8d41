/* Promises: the capacities of tiers that come out of the system's memory, so that no tier is made, or grows,
 * into the hands of the kernel's killer.
 *
 * A tier takes its pages when they are touched. Until then its capacity is promised but not in use, and the
 * system's own figures do not know of it; other processes' promises are not known here either, which is why
 * growth is checked again.
 */
#include <pthread.h>

#include "fail.h"
#include "fork.h"
#include "prim/system_memory.h"
#include "provider/provider.h"

static const size_t CHECK_BYTES = (size_t)64 << 20; /* of growth between two looks at the system's memory */

static pages* promised;
static pthread_mutex_t promised_lock = PTHREAD_MUTEX_INITIALIZER;

static void hold(void) { pthread_mutex_lock(&promised_lock); }

static void let_go(bool is_child) {
    (void)is_child;
    pthread_mutex_unlock(&promised_lock);
}

__attribute__((constructor)) static void prepare(void) { fork_watch(FORK_PROMISES, hold, let_go); }

static uint64_t above(uint64_t a, uint64_t b) { return a > b ? a - b : 0; }

static uint64_t unclaimed_bytes(void) {
    uint64_t unclaimed = 0;
    for (const pages* each = promised; each != NULL; each = each->next)
        unclaimed += above(each->capacity_bytes, each->provider->resident(each));
    return unclaimed;
}

emx_status pages_promise(pages* pages) {
    pthread_mutex_lock(&promised_lock);
    const uint64_t available = system_memory_available(), unclaimed = unclaimed_bytes();
    const uint64_t wanted = above(pages->capacity_bytes, pages->provider->resident(pages));
    const uint64_t free_bytes =
        available == UINT64_MAX ? available : above(available, unclaimed + SYSTEM_KEPT_BYTES);
    if (wanted <= free_bytes) {
        pages->next = promised;
        promised = pages;
        pages->counts = true;
    }
    pthread_mutex_unlock(&promised_lock);
    if (wanted <= free_bytes) return EMX_OK;
    return fail(
        EMX_E_NO_MEMORY,
        "got a capacity of %zu bytes; expected at most %llu: the system has %llu bytes available, of which "
        "%llu are "
        "promised to other tiers of this process and %llu are left alone; ask for less, or free memory",
        pages->capacity_bytes, (unsigned long long)free_bytes, (unsigned long long)available,
        (unsigned long long)unclaimed, (unsigned long long)SYSTEM_KEPT_BYTES);
}

void pages_withdraw(pages* gone) {
    if (!gone->counts) return;
    pthread_mutex_lock(&promised_lock);
    pages** link = &promised;
    while (*link != gone) link = &(*link)->next;
    *link = gone->next;
    gone->counts = false;
    pthread_mutex_unlock(&promised_lock);
}

emx_status pages_check_growth(pages* pages, size_t size_bytes) {
    const size_t unchecked =
        atomic_fetch_add_explicit(&pages->unchecked_bytes, size_bytes, memory_order_relaxed) + size_bytes;
    if (unchecked < CHECK_BYTES) return EMX_OK;
    const uint64_t available = system_memory_available();
    if (available >= size_bytes && available - size_bytes >= SYSTEM_KEPT_BYTES) {
        atomic_store_explicit(&pages->unchecked_bytes, 0, memory_order_relaxed);
        return EMX_OK;
    }
    atomic_fetch_sub_explicit(&pages->unchecked_bytes, size_bytes, memory_order_relaxed);
    return fail(EMX_E_NO_MEMORY,
                "%zu more bytes are wanted and the system has %llu available, of which %llu are left alone; "
                "something else "
                "took what there was when the tier was made: free memory, or allocate less",
                size_bytes, (unsigned long long)available, (unsigned long long)SYSTEM_KEPT_BYTES);
}
