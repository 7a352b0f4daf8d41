/* Handles of regions: what a host has of each region that it holds. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "pool/internal.h"
#include "prim/file.h"

emx_status region_make(emx_host* host, uint32_t slot, uint32_t gen, const char* tag, uint64_t max_bytes,
                       emx_region** made) {
    const uint64_t extent_bytes = host->pool->header.extent_bytes, huge_bytes = 2u << 20;
    const uint32_t max_extents = extents_for(host->pool, max_bytes);
    void* base;
    emx_region* region = handle_alloc(HANDLE_REGION, sizeof *region);
    uint32_t* extents = calloc(max_extents, sizeof *extents);
    int error = region && extents ? 0 : ENOMEM;
    if (!error)
        error = address_reserve(max_extents * extent_bytes,
                                extent_bytes % huge_bytes ? POOL_PAGE : huge_bytes, &base);
    if (error) {
        handle_free(HANDLE_REGION, region);
        free(extents);
        return fail_system(
            error, "cannot set %" PRIu64 " bytes of addresses aside for \"%s\"; give it a smaller max_bytes",
            max_bytes, tag);
    }
    *region = (emx_region){.host = host,
                           .record = &host->pool->regions[slot],
                           .slot = slot,
                           .gen = gen,
                           .base = base,
                           .room_bytes = max_extents * extent_bytes,
                           .extents = extents};
    memcpy(region->tag, tag, strlen(tag) + 1); /* text_check or text_load measured it */
    handle_open(HANDLE_REGION, region);
    *made = region;
    return EMX_OK;
}

void region_unmap(emx_region* region) {
    address_release(region->base, region->room_bytes);
    region->base = NULL;
}

void region_destroy(emx_region* region) {
    if (region->base) region_unmap(region);
    free(region->extents);
    handle_free(HANDLE_REGION, region);
}

void region_list(emx_region* region) {
    region->next = region->host->regions;
    region->host->regions = region;
}

void region_unlist(emx_region* region) {
    emx_region** at = &region->host->regions;
    while (*at && *at != region) at = &(*at)->next;
    if (*at) *at = region->next;
}
