/* Poison: lines in a table, a flag on each extent that has any.
 *
 * A line is listed before its extent is flagged, so a host killed in between leaves a line that the next
 * sweep flags. A range that finds the table full makes its whole extent bad. Nothing ever leaves the table:
 * bad memory stays bad.
 */
#include <inttypes.h>
#include <string.h>

#include "pool/internal.h"

static uint64_t lines_per_extent(const emx_pool* pool) { return pool->header.extent_bytes / POOL_LINE; }

bool poison_first(const emx_pool* pool, uint32_t extent, uint64_t offset, uint64_t size_bytes,
                  uint64_t* bad_offset) {
    const uint64_t extent_line = extent * lines_per_extent(pool);
    const uint64_t first = extent_line + offset / POOL_LINE,
                   last = extent_line + (offset + size_bytes - 1) / POOL_LINE;
    uint64_t bad_line = UINT64_MAX;
    if (extent_whole(shared_load(&pool->extents[extent]))) bad_line = first;
    for (uint32_t i = 0; i < POOL_POISON_WORDS; i++) {
        const uint64_t word = shared_load(&pool->poison[i]);
        const uint64_t start = poison_line(word), end = start + poison_lines(word); /* one past the last */
        if (word == 0 || start > last || end <= first) continue;
        const uint64_t line = start > first ? start : first;
        if (line < bad_line) bad_line = line;
    }
    if (bad_line == UINT64_MAX) return false;
    *bad_offset = (bad_line - extent_line) * POOL_LINE;
    if (*bad_offset < offset) *bad_offset = offset; /* the line begins before the range */
    return true;
}

/* False: the table is full. */
static bool list_lines(emx_pool* pool, uint64_t line, uint64_t num_lines) {
    const uint64_t mine = with_poison_lines(with_poison_line(0, line), num_lines);
    for (uint32_t i = 0; i < POOL_POISON_WORDS; i++) {
        uint64_t word = shared_load(&pool->poison[i]);
        if (word == 0 && shared_swap(&pool->poison[i], 0, mine)) return true;
        word = shared_load(&pool->poison[i]);
        if (poison_line(word) <= line && line + num_lines <= poison_line(word) + poison_lines(word))
            return true;
    }
    return false;
}

static void flag_extent(emx_pool* pool, uint32_t extent, bool whole) {
    for (;;) {
        const uint64_t word = shared_load(&pool->extents[extent]);
        uint64_t flagged = with_extent_poisoned(word, 1);
        if (whole) flagged = with_extent_whole(flagged, 1);
        if (extent_state(word) == EXTENT_FREE)
            flagged = with_extent_clean(with_extent_state(flagged, EXTENT_RETIRED), 0);
        if (flagged == word || shared_swap(&pool->extents[extent], word, flagged)) return;
    }
}

emx_status poison_mark(emx_pool* pool, uint32_t extent, uint64_t offset, uint64_t size_bytes) {
    const uint64_t first = offset / POOL_LINE, last = (offset + size_bytes - 1) / POOL_LINE;
    const bool listed = list_lines(pool, extent * lines_per_extent(pool) + first, last - first + 1);
    flag_extent(pool, extent, !listed);
    return EMX_OK;
}

void poison_restore_flags(emx_pool* pool) {
    const uint64_t per_extent = lines_per_extent(pool);
    for (uint32_t i = 0; i < POOL_POISON_WORDS; i++) {
        const uint64_t word = shared_load(&pool->poison[i]);
        if (poison_lines(word) == 0) continue;
        const uint64_t first = poison_line(word) / per_extent,
                       last = (poison_line(word) + poison_lines(word) - 1) / per_extent;
        for (uint64_t extent = first; extent <= last && extent < pool->header.num_extents; extent++)
            flag_extent(pool, (uint32_t)extent, false);
    }
}

/* Runs over a range extent by extent; `extents` maps an index to an extent, NULL: itself. */
static void mark_range(emx_pool* pool, const uint32_t* extents, uint64_t offset, uint64_t size_bytes) {
    const uint64_t extent_bytes = pool->header.extent_bytes;
    while (size_bytes > 0) {
        const uint64_t index = offset / extent_bytes, within = offset % extent_bytes;
        const uint64_t part = size_bytes < extent_bytes - within ? size_bytes : extent_bytes - within;
        poison_mark(pool, extents ? extents[index] : (uint32_t)index, within, part);
        offset += part;
        size_bytes -= part;
    }
}

emx_status emx_pool_poison(emx_pool* pool, uint64_t offset, uint64_t size_bytes) {
    emx_status status = pool_require_writable(pool);
    if (!status && size_bytes == 0) status = fail(EMX_E_INVALID, "got size_bytes=0; expected at least 1");
    if (status) return status;
    const uint64_t pool_bytes = pool->header.num_extents * pool->header.extent_bytes;
    if (size_bytes > pool_bytes || offset > pool_bytes - size_bytes)
        return fail(EMX_E_OUT_OF_BOUNDS, "got bytes %" PRIu64 " to %" PRIu64 "; the pool has %" PRIu64,
                    offset, offset + size_bytes, pool_bytes);
    mark_range(pool, NULL, offset, size_bytes);
    return EMX_OK;
}

emx_status emx_region_poison(emx_region* region, uint64_t offset, uint64_t size_bytes) {
    if (size_bytes == 0) return fail(EMX_E_INVALID, "got size_bytes=0; expected at least 1");
    const emx_status status = emx_region_check_access(region, offset, size_bytes, false);
    if (status && status != EMX_E_POISONED) return status;
    emx_host* host = region->host;
    pthread_mutex_lock(&host->lock);
    const uint64_t end_bytes = atomic_load(&region->size_bytes);
    const bool inside = size_bytes <= end_bytes && offset <= end_bytes - size_bytes;
    if (inside) mark_range(host->pool, region->extents, offset, size_bytes);
    pthread_mutex_unlock(&host->lock);
    return inside ? EMX_OK : fail(EMX_E_OUT_OF_BOUNDS, "region \"%s\" was shrunk meanwhile", region->tag);
}

emx_status emx_pool_list_poison(const emx_pool* pool, emx_poison_range* entries, uint32_t capacity,
                                uint32_t* count) {
    uint32_t found = 0;
    const emx_status status = pool_require_open(pool);
    if (status) return status;
    if (!count || (!entries && capacity)) return fail(EMX_E_INVALID, "got nowhere to put the pool's poison");
    for (uint32_t i = 0; i < POOL_POISON_WORDS; i++) {
        const uint64_t word = shared_load(&pool->poison[i]);
        if (poison_lines(word) == 0) continue;
        if (found < capacity)
            entries[found] = (emx_poison_range){.offset = poison_line(word) * POOL_LINE,
                                                .size_bytes = poison_lines(word) * POOL_LINE};
        found++;
    }
    *count = found;
    return EMX_OK;
}
