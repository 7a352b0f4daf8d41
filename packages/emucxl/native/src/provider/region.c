/* region: a region of a pool that this host holds. Its pages are the pool's; every access asks the pool
 * first.
 *
 * A region has one heap on it at a time. Within this process that is checked here; between hosts it is for
 * them to agree on.
 */
#include <pthread.h>

#include "fail.h"
#include "fork.h"
#include "prim/memory.h"
#include "provider/provider.h"

static const char* unavailable(void) { return NULL; }

/* Regions that tiers of this process have a heap on. */
static pages* tiers;
static pthread_mutex_t tiers_lock = PTHREAD_MUTEX_INITIALIZER;

static void hold(void) { pthread_mutex_lock(&tiers_lock); }

static void let_go(bool is_child) {
    (void)is_child;
    pthread_mutex_unlock(&tiers_lock);
}

__attribute__((constructor)) static void prepare(void) { fork_watch(FORK_REGION_TIERS, hold, let_go); }

static emx_status claim(pages* pages, const char* tag) {
    pthread_mutex_lock(&tiers_lock);
    bool is_free = true;
    for (const struct pages* each = tiers; each != NULL; each = each->next)
        is_free &= each->base != pages->base;
    if (is_free) {
        pages->next = tiers;
        tiers = pages;
    }
    pthread_mutex_unlock(&tiers_lock);
    return is_free ? EMX_OK
                   : fail(EMX_E_BUSY, "region '%s' is in use by another tier; close that first", tag);
}

static void region_close(pages* closed) {
    pthread_mutex_lock(&tiers_lock);
    pages** link = &tiers;
    while (*link != closed) link = &(*link)->next;
    *link = closed->next;
    pthread_mutex_unlock(&tiers_lock);
    closed->base = NULL; /* the mapping is the pool's */
}

static emx_status region_open(const emx_tier_config* config, pages* pages) {
    emx_region_info info;
    if (config->region == NULL)
        return fail(EMX_E_INVALID, "got no region; expected one that this host holds in a pool");
    const emx_status status = emx_region_get_info(config->region, &info);
    if (status != EMX_OK) return status;
    if (!info.writable)
        return fail(EMX_E_PERMISSION, "region '%s' is read-only here; a tier writes: hold it for writing",
                    info.tag);
    const size_t page = memory_page_bytes();
    const uint64_t wanted = config->capacity_bytes > 0 ? config->capacity_bytes : info.size_bytes;
    if (wanted > info.size_bytes || wanted < page)
        return fail(EMX_E_INVALID,
                    "got a capacity of %llu bytes; expected %zu to %llu, the size of region '%s'",
                    (unsigned long long)wanted, page, (unsigned long long)info.size_bytes, info.tag);
    if ((uintptr_t)info.base % PAGES_ALIGNMENT != 0)
        return fail(EMX_E_INVALID, "region '%s' is mapped at %p; expected a multiple of %zu", info.tag,
                    info.base, PAGES_ALIGNMENT);
    pages->base = info.base;
    pages->capacity_bytes = (size_t)(wanted / page * page);
    pages->region = config->region;
    pages->touchable = true;
    return claim(pages, info.tag);
}

const provider provider_region = {
    .name = "region",
    .unavailable = unavailable,
    .open = region_open,
    .close = region_close,
};
