/* Extents: claiming them for a region, zeroing them, finding and mapping them, giving them back. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "pool/internal.h"
#include "prim/file.h"

static bool belongs(uint64_t word, uint32_t region, uint32_t gen) {
    const unsigned state = extent_state(word);
    return (state == EXTENT_CLAIMED || state == EXTENT_READY) && extent_region(word) == region &&
           extent_gen(word) == gen;
}

bool extent_claim(emx_pool* pool, uint32_t region, uint32_t gen, uint32_t index, claim* claimed) {
    const uint32_t count = (uint32_t)pool->header.num_extents;
    const uint32_t start = (uint32_t)(atomic_load_explicit(&pool->claim_hint, memory_order_relaxed) % count);
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t extent = (start + i) % count;
        uint64_t word = shared_load(&pool->extents[extent]);
        if (extent_state(word) != EXTENT_FREE || extent_poisoned(word)) continue;
        uint64_t mine = with_extent_state(0, EXTENT_CLAIMED);
        mine = with_extent_region(mine, region);
        mine = with_extent_index(mine, index);
        mine = with_extent_gen(mine, gen);
        mine = with_extent_version(mine, extent_version(word) + 1);
        if (!shared_swap(&pool->extents[extent], word, mine)) continue;
        *claimed = (claim){.extent = extent, .clean = extent_clean(word)};
        atomic_store_explicit(&pool->claim_hint, extent + 1, memory_order_relaxed);
        return true;
    }
    return false;
}

bool extent_give_back(emx_pool* pool, uint32_t extent, uint64_t word) {
    uint64_t free_word = with_extent_version(0, extent_version(word));
    if (extent_poisoned(word)) {
        free_word = with_extent_state(free_word, EXTENT_RETIRED);
        free_word = with_extent_poisoned(free_word, 1);
        free_word = with_extent_whole(free_word, extent_whole(word));
    }
    return shared_swap(&pool->extents[extent], word, free_word);
}

uint32_t extents_give_back(emx_pool* pool, uint32_t region, uint32_t gen, uint32_t first_index,
                           const shared_word* guard, uint64_t expected) {
    uint32_t num_given = 0;
    for (uint32_t extent = 0; extent < pool->header.num_extents; extent++) {
        uint64_t word = shared_load(&pool->extents[extent]);
        while (belongs(word, region, gen) && extent_index(word) >= first_index) {
            if (guard && shared_load(guard) != expected)
                return num_given; /* somebody else finished it, and the region goes on */
            if (extent_give_back(pool, extent, word)) {
                num_given++;
                break;
            }
            word = shared_load(&pool->extents[extent]); /* poisoned meanwhile, or given back by another */
        }
    }
    return num_given;
}

emx_status extents_find(const emx_pool* pool, uint32_t region, uint32_t gen, uint32_t first, uint32_t last,
                        uint32_t* extents) {
    for (uint32_t index = first; index < last; index++) extents[index] = UINT32_MAX;
    for (uint32_t extent = 0; extent < pool->header.num_extents; extent++) {
        const uint64_t word = shared_load(&pool->extents[extent]);
        const uint64_t index = extent_index(word);
        if (!belongs(word, region, gen) || extent_state(word) != EXTENT_READY || index < first ||
            index >= last)
            continue;
        if (extents[index] != UINT32_MAX)
            return fail(EMX_E_CORRUPT, "extents %u and %u are both number %" PRIu64 " of region %u",
                        extents[index], extent, index, region);
        extents[index] = extent;
    }
    for (uint32_t index = first; index < last; index++)
        if (extents[index] == UINT32_MAX)
            return fail(EMX_E_CORRUPT, "region %u lacks its extent number %u", region, index);
    return EMX_OK;
}

/* Neighbours in the pool that are neighbours in the region are one mapping. */
emx_status extents_map(emx_region* region, uint32_t first, uint32_t last, bool writable) {
    const pool_header* header = &region->host->pool->header;
    for (uint32_t index = first, next; index < last; index = next) {
        for (next = index + 1; next < last && region->extents[next] == region->extents[next - 1] + 1;) next++;
        void* at = region->base + index * header->extent_bytes;
        const uint64_t offset = header->data_offset + region->extents[index] * header->extent_bytes;
        const int error = map_file(region->host->pool->fd, offset, (next - index) * header->extent_bytes,
                                   writable, at, &at);
        if (error) {
            address_forbid(region->base + first * header->extent_bytes,
                           (index - first) * header->extent_bytes);
            return fail_system(
                error,
                "cannot map extents %u to %u of region \"%s\" (a process has a limited number of mappings)",
                index, next - 1, region->tag);
        }
    }
    return EMX_OK;
}

/* Claims what is missing, after reclaiming once if the pool seems full. */
static bool claim_index(emx_region* region, uint32_t index, bool* reclaimed, claim* claimed) {
    emx_pool* pool = region->host->pool;
    if (extent_claim(pool, region->slot, region->gen, index, claimed)) return true;
    if (*reclaimed) return false;
    *reclaimed = true;
    reclaim(pool, RECLAIM_SWEEP, NULL);
    return extent_claim(pool, region->slot, region->gen, index, claimed);
}

static emx_status claim_range(emx_region* region, uint32_t first, uint32_t last, bool* clean) {
    bool reclaimed = false;
    for (uint32_t index = first; index < last; index++) {
        claim claimed;
        if (!claim_index(region, index, &reclaimed, &claimed)) {
            emx_pool_info info;
            emx_pool_get_info(region->host->pool, &info);
            return fail(EMX_E_POOL_FULL,
                        "got %u of the %u extents wanted; %" PRIu64 " of the pool's %" PRIu64
                        " are held and %" PRIu64 " retired",
                        index - first, last - first, info.held_extents - (index - first), info.num_extents,
                        info.retired_extents);
        }
        region->extents[index] = claimed.extent;
        clean[index - first] = claimed.clean;
    }
    return EMX_OK;
}

/* Claimed -> zero -> ready. A host that is killed in between leaves claimed extents, which go back as
 * unclean. */
static emx_status make_ready(emx_region* region, uint32_t first, uint32_t last, const bool* clean) {
    emx_pool* pool = region->host->pool;
    const uint64_t extent_bytes = pool->header.extent_bytes;
    for (uint32_t index = first; index < last; index++) {
        shared_word* word = &pool->extents[region->extents[index]];
        if (!clean[index - first]) {
            pool_step();
            memset(region->base + index * extent_bytes, 0, extent_bytes);
        }
        uint64_t claimed = shared_load(word);
        while (belongs(claimed, region->slot, region->gen) && extent_index(claimed) == index &&
               extent_state(claimed) == EXTENT_CLAIMED) {
            if (shared_swap(word, claimed, with_extent_state(claimed, EXTENT_READY))) break;
            claimed = shared_load(word);
        }
        if (!belongs(claimed, region->slot, region->gen))
            return fail(EMX_E_FENCED, "this host was taken for dead while it zeroed region \"%s\"",
                        region->tag);
    }
    return EMX_OK;
}

emx_status extents_add(emx_region* region, uint32_t first, uint32_t last) {
    emx_pool* pool = region->host->pool;
    if (first >= last) return EMX_OK;
    bool* clean = malloc(last - first);
    if (!clean) return fail(EMX_E_NO_MEMORY, "no memory to list %u extents", last - first);
    emx_status status = claim_range(region, first, last, clean);
    if (!status) status = extents_map(region, first, last, true);
    if (!status) status = make_ready(region, first, last, clean);
    free(clean);
    if (!status) {
        region->mapped_extents = last;
        return EMX_OK;
    }
    address_forbid(region->base + first * pool->header.extent_bytes,
                   (last - first) * pool->header.extent_bytes);
    extents_give_back(pool, region->slot, region->gen, first, NULL, 0);
    return status;
}
