/* The invariants of a pool, checked while it is in use: what a change in flight looks like is no fault, and
 * what seems wrong is looked at again for a tenth of a second before it is called so. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "pool/internal.h"

enum { MAX_LOOKS = 100, LOOK_AGAIN_NS = 1000000 };

typedef struct snapshot {
    uint64_t word, size_bytes, max_bytes, owner;
} snapshot;

static snapshot look(const region_record* record) {
    return (snapshot){.word = shared_load(&record->word),
                      .size_bytes = shared_load(&record->size_bytes),
                      .max_bytes = shared_load(&record->max_bytes),
                      .owner = shared_load(&record->owner)};
}

static bool belongs(uint64_t word, uint32_t slot, uint64_t gen) {
    return (extent_state(word) == EXTENT_CLAIMED || extent_state(word) == EXTENT_READY) &&
           extent_region(word) == slot && extent_gen(word) == gen;
}

/* Each extent of the region once and ready; beyond its size, only what its owner is adding. */
static emx_status check_extents(const emx_pool* pool, uint32_t slot, const snapshot* seen, const char* tag,
                                uint8_t* present) {
    const uint32_t count = extents_for(pool, seen->size_bytes);
    const bool may_grow = owner_holds(pool, seen->owner, region_gen(seen->word));
    memset(present, 0, count);
    for (uint32_t extent = 0; extent < pool->header.num_extents; extent++) {
        const uint64_t word = shared_load(&pool->extents[extent]), index = extent_index(word);
        if (!belongs(word, slot, region_gen(seen->word))) continue;
        if (index >= count) {
            if (may_grow) continue;
            return fail(EMX_E_CORRUPT, "extent %u lies beyond the end of region \"%s\"", extent, tag);
        }
        if (extent_state(word) != EXTENT_READY)
            return fail(EMX_E_CORRUPT, "extent %u of region \"%s\" is not ready", extent, tag);
        if (present[index]++)
            return fail(EMX_E_CORRUPT, "region \"%s\" has two extents number %" PRIu64, tag, index);
    }
    for (uint32_t index = 0; index < count; index++)
        if (!present[index])
            return fail(EMX_E_CORRUPT, "region \"%s\" lacks its extent number %u", tag, index);
    return EMX_OK;
}

static bool is_held(const emx_pool* pool, const region_record* record, uint64_t gen) {
    for (uint32_t slot = 0; slot < POOL_HOSTS; slot++) {
        const uint64_t holder = shared_load(&record->holders[slot]);
        if (holder_mode(holder) && holder_gen(holder) == gen &&
            host_may_hold(pool, slot, holder_epoch(holder), holder_epoch_WIDTH))
            return true;
    }
    return false;
}

static emx_status check_live(const emx_pool* pool, uint32_t slot, const snapshot* seen, uint8_t* present) {
    const uint64_t pool_bytes = pool->header.num_extents * pool->header.extent_bytes;
    char tag[EMX_TAG_BYTES];
    text_load(pool->regions[slot].tag, tag);
    if (seen->size_bytes == 0 || seen->size_bytes > seen->max_bytes || seen->max_bytes > pool_bytes)
        return fail(EMX_E_CORRUPT,
                    "region \"%s\" has %" PRIu64 " of at most %" PRIu64 " bytes, in a pool of %" PRIu64, tag,
                    seen->size_bytes, seen->max_bytes, pool_bytes);
    if (!tag[0]) return fail(EMX_E_CORRUPT, "region %u has no tag", slot);
    if (shared_load(&pool->regions[slot].sharing) > EMX_SHARE_NONE)
        return fail(EMX_E_CORRUPT, "region \"%s\" is shared in a way that does not exist", tag);
    if (!region_persistent(seen->word) && !is_held(pool, &pool->regions[slot], region_gen(seen->word)))
        return fail(EMX_E_CORRUPT, "region \"%s\" is neither held nor persistent; reclaim the pool", tag);
    return check_extents(pool, slot, seen, tag, present);
}

static emx_status check_region_once(const emx_pool* pool, uint32_t slot, const snapshot* seen,
                                    uint8_t* present) {
    switch (region_state(seen->word)) {
        case REGION_LIVE:
            return check_live(pool, slot, seen, present);
        case REGION_FREE:
        case REGION_NAMING:
        case REGION_NAMED:
        case REGION_FILLING:
        case REGION_RESIZING:
        case REGION_DYING:
            return EMX_OK; /* on the way from one consistent state to another, and reclaim's to finish */
        default:
            return fail(EMX_E_CORRUPT, "region %u is in a state that does not exist", slot);
    }
}

static emx_status check_region(const emx_pool* pool, uint32_t slot, uint8_t* present) {
    emx_status status = EMX_OK;
    for (int i = 0; i < MAX_LOOKS; i++) {
        const snapshot before = look(&pool->regions[slot]);
        status = check_region_once(pool, slot, &before, present);
        if (status == EMX_OK) return EMX_OK;
        process_sleep_ns(LOOK_AGAIN_NS);
    }
    return status;
}

static emx_status check_extent_once(const emx_pool* pool, uint32_t extent) {
    const uint64_t word = shared_load(&pool->extents[extent]);
    switch (extent_state(word)) {
        case EXTENT_FREE:
            return extent_poisoned(word) ? fail(EMX_E_CORRUPT, "extent %u is free and poisoned", extent)
                                         : EMX_OK;
        case EXTENT_RETIRED:
            return extent_poisoned(word) ? EMX_OK
                                         : fail(EMX_E_CORRUPT, "extent %u is retired without poison", extent);
        default:
            break;
    }
    if (extent_region(word) >= pool->header.max_regions)
        return fail(EMX_E_CORRUPT, "extent %u belongs to region %u of %u", extent,
                    (unsigned)extent_region(word), pool->header.max_regions);
    const uint64_t region = shared_load(&pool->regions[extent_region(word)].word);
    if (shared_load(&pool->extents[extent]) != word) return EMX_OK; /* it moved on */
    if (region_gen(region) == extent_gen(word) && region_state(region) >= REGION_FILLING) return EMX_OK;
    return fail(EMX_E_CORRUPT, "extent %u belongs to a region that is gone; reclaim the pool", extent);
}

static emx_status check_extent(const emx_pool* pool, uint32_t extent) {
    emx_status status = check_extent_once(pool, extent);
    for (int i = 1; i < MAX_LOOKS && status; i++) {
        process_sleep_ns(LOOK_AGAIN_NS);
        status = check_extent_once(pool, extent);
    }
    return status;
}

static emx_status check_host_once(const emx_pool* pool, uint32_t slot) {
    const uint64_t word = shared_load(&pool->hosts[slot].word);
    if (host_state(word) > HOST_DRAINED)
        return fail(EMX_E_CORRUPT, "host %u is in a state that does not exist", slot);
    if (host_state(word) != HOST_ACTIVE) return EMX_OK;
    const uint64_t quota_bytes = shared_load(&pool->hosts[slot].quota_bytes);
    const uint64_t owned_bytes = host_owned_bytes(pool, slot, host_epoch(word));
    if (quota_bytes && owned_bytes > quota_bytes && shared_load(&pool->hosts[slot].word) == word)
        return fail(EMX_E_CORRUPT, "host %u owns %" PRIu64 " bytes, over its quota of %" PRIu64, slot,
                    owned_bytes, quota_bytes);
    return EMX_OK;
}

static emx_status check_host(const emx_pool* pool, uint32_t slot) {
    emx_status status = check_host_once(pool, slot);
    for (int i = 1; i < MAX_LOOKS && status; i++) {
        process_sleep_ns(LOOK_AGAIN_NS);
        status = check_host_once(pool, slot);
    }
    return status;
}

static emx_status check_tags(const emx_pool* pool) {
    char tags[2][EMX_TAG_BYTES];
    for (uint32_t i = 0; i < pool->header.max_regions; i++) {
        const uint64_t one = shared_load(&pool->regions[i].word);
        if (region_state(one) != REGION_LIVE) continue;
        text_load(pool->regions[i].tag, tags[0]);
        for (uint32_t j = i + 1; j < pool->header.max_regions; j++) {
            const uint64_t other = shared_load(&pool->regions[j].word);
            if (region_state(other) != REGION_LIVE) continue;
            text_load(pool->regions[j].tag, tags[1]);
            if (strcmp(tags[0], tags[1]) == 0 &&
                region_gen(shared_load(&pool->regions[i].word)) == region_gen(one) &&
                region_state(shared_load(&pool->regions[i].word)) == REGION_LIVE &&
                shared_load(&pool->regions[j].word) == other)
                return fail(EMX_E_CORRUPT, "regions %u and %u are both \"%s\"", i, j, tags[0]);
        }
    }
    return EMX_OK;
}

emx_status emx_pool_check(const emx_pool* pool) {
    emx_status status = pool_require_open(pool);
    if (status) return status;
    uint8_t* present = malloc(pool->header.num_extents);
    if (!present)
        return fail(EMX_E_NO_MEMORY, "no memory to check %" PRIu64 " extents", pool->header.num_extents);
    for (uint32_t i = 0; i < POOL_HOSTS && !status; i++) status = check_host(pool, i);
    for (uint32_t i = 0; i < pool->header.max_regions && !status; i++)
        status = check_region(pool, i, present);
    for (uint32_t i = 0; i < pool->header.num_extents && !status; i++) status = check_extent(pool, i);
    if (!status) status = check_tags(pool);
    free(present);
    return status;
}
