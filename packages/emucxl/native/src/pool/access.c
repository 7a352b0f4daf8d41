/* Reaching a region's bytes, and asking whether one may. */
#include <inttypes.h>
#include <string.h>

#include "pool/internal.h"

emx_status emx_region_get_info(const emx_region* region, emx_region_info* info) {
    emx_status status = handle_require(HANDLE_REGION, region);
    if (!status && !info) status = fail(EMX_E_INVALID, "got nowhere to put the region's description");
    if (!status) status = host_require_active(region->host);
    if (!status && shared_load(&region->record->size_bytes) > atomic_load(&region->size_bytes))
        status = region_follow((emx_region*)region);
    if (status) return status;
    *info = (emx_region_info){
        .base = region->base,
        .size_bytes = atomic_load(&region->size_bytes),
        .writable = region->writable,
        .epoch = region->host->epoch,
    };
    memcpy(info->tag, region->tag, sizeof info->tag);
    return EMX_OK;
}

/* One extent's part of a range: it must still be this region's, and good. */
static emx_status check_extent(const emx_region* region, uint32_t index, uint64_t offset,
                               uint64_t size_bytes) {
    const emx_pool* pool = region->host->pool;
    const uint32_t extent = region->extents[index];
    const uint64_t word = shared_load(&pool->extents[extent]);
    uint64_t bad_offset;
    if (extent_state(word) != EXTENT_READY || extent_region(word) != region->slot ||
        extent_index(word) != index || extent_gen(word) != region->gen) {
        const emx_status status = host_require_active(region->host);
        return status ? status
                      : fail(EMX_E_CORRUPT, "extent %u was taken from region \"%s\"", extent, region->tag);
    }
    if (extent_poisoned(word) && poison_first(pool, extent, offset, size_bytes, &bad_offset))
        return fail(EMX_E_POISONED, "the line at offset %" PRIu64 " of region \"%s\" was reported bad",
                    index * pool->header.extent_bytes + bad_offset, region->tag);
    return EMX_OK;
}

static bool is_inside(const emx_region* region, uint64_t offset, uint64_t size_bytes) {
    const uint64_t end_bytes = atomic_load(&region->size_bytes);
    return size_bytes <= end_bytes && offset <= end_bytes - size_bytes;
}

emx_status emx_region_check_access(const emx_region* region, uint64_t offset, uint64_t size_bytes,
                                   bool write) {
    emx_status status = handle_require(HANDLE_REGION, region);
    if (!status) status = host_require_active(region->host);
    if (status) return status;
    if (write && !region->writable)
        return fail(EMX_E_PERMISSION, "region \"%s\" is open here read-only", region->tag);
    if (!is_inside(region, offset, size_bytes)) {
        status = region_follow((emx_region*)region); /* its owner may have grown it */
        if (status) return status;
        if (!is_inside(region, offset, size_bytes))
            return fail(EMX_E_OUT_OF_BOUNDS,
                        "got bytes %" PRIu64 " to %" PRIu64 "; region \"%s\" has %" PRIu64, offset,
                        offset + size_bytes, region->tag, atomic_load(&region->size_bytes));
    }
    const uint64_t extent_bytes = region->host->pool->header.extent_bytes;
    while (size_bytes > 0) {
        const uint64_t within = offset % extent_bytes;
        const uint64_t part = size_bytes < extent_bytes - within ? size_bytes : extent_bytes - within;
        status = check_extent(region, (uint32_t)(offset / extent_bytes), within, part);
        if (status) return status;
        offset += part;
        size_bytes -= part;
    }
    return EMX_OK;
}

/* Begins an access: until the unlock nothing of this host is unmapped, and so nothing of it is handed out to
 * others. */
static emx_status begin(emx_region* region, uint64_t offset, const void* buffer, uint64_t size_bytes,
                        bool write) {
    if (!buffer && size_bytes)
        return fail(EMX_E_INVALID, "got NULL for the buffer of %" PRIu64 " bytes", size_bytes);
    emx_status status = emx_region_check_access(region, offset, size_bytes, write);
    if (status) return status;
    pthread_rwlock_rdlock(&region->host->mapping);
    status = region->host->unmapped ? host_require_active(region->host) : EMX_OK;
    if (!status && !is_inside(region, offset, size_bytes)) /* shrunk by another thread since */
        status = fail(EMX_E_OUT_OF_BOUNDS, "region \"%s\" was shrunk meanwhile", region->tag);
    if (status) pthread_rwlock_unlock(&region->host->mapping);
    return status;
}

static emx_status end(emx_region* region, uint64_t offset, uint64_t size_bytes, bool write) {
    pthread_rwlock_unlock(&region->host->mapping);
    return emx_region_check_access(region, offset, size_bytes, write);
}

emx_status emx_region_read(emx_region* region, uint64_t offset, void* buffer, uint64_t size_bytes) {
    const emx_status status = begin(region, offset, buffer, size_bytes, false);
    if (status) return status;
    memcpy(buffer, region->base + offset, size_bytes);
    return end(region, offset, size_bytes, false);
}

emx_status emx_region_write(emx_region* region, uint64_t offset, const void* buffer, uint64_t size_bytes) {
    const emx_status status = begin(region, offset, buffer, size_bytes, true);
    if (status) return status;
    memcpy(region->base + offset, buffer, size_bytes);
    return end(region, offset, size_bytes, true);
}

emx_status emx_region_fill(emx_region* region, uint64_t offset, int value, uint64_t size_bytes) {
    const emx_status status = begin(region, offset, region, size_bytes, true);
    if (status) return status;
    memset(region->base + offset, value, size_bytes);
    return end(region, offset, size_bytes, true);
}
