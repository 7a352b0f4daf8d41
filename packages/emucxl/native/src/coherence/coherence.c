#include "emucxl/coherence.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "coherence/internal.h"
#include "coherence/memory.h"
#include "fail.h"
#include "prim/process.h"

static emx_status check_config(const emx_cache_config* config) {
    if (config == NULL || config->struct_bytes != sizeof *config)
        return fail(EMX_E_INVALID,
                    "got a cache config of %u bytes; expected %zu: set struct_bytes, and link the library "
                    "that the header belongs to",
                    config != NULL ? config->struct_bytes : 0, sizeof *config);
    if (config->mode > EMX_COHERENCE_UNCACHED)
        return fail(EMX_E_INVALID,
                    "got coherence mode %u; expected 0 (hardware), 1 (software) or 2 (uncached)",
                    config->mode);
    if (config->base == NULL || config->size_bytes == 0)
        return fail(EMX_E_INVALID, "got a range of %" PRIu64 " bytes at %p; expected memory to stand before",
                    config->size_bytes, config->base);
    if ((uintptr_t)config->base % EMX_LINE_BYTES != 0)
        return fail(EMX_E_INVALID, "got a range at %p; expected a multiple of %d, where a line begins",
                    config->base, EMX_LINE_BYTES);
    if (config->size_bytes > UINTPTR_MAX - (uintptr_t)config->base)
        return fail(EMX_E_INVALID, "got a range of %" PRIu64 " bytes at %p; it leaves the address space",
                    config->size_bytes, config->base);
    if (config->capacity_bytes % EMX_LINE_BYTES != 0)
        return fail(EMX_E_INVALID,
                    "got a capacity of %" PRIu64 " bytes; expected whole lines of %d (or 0: unlimited)",
                    config->capacity_bytes, EMX_LINE_BYTES);
    if (!(config->hit_latency_ns >= 0 && config->hit_latency_ns <= 1e9))
        return fail(EMX_E_INVALID, "got hit_latency_ns %g; expected 0 to 1e9", config->hit_latency_ns);
    return EMX_OK;
}

static emx_status check_region(const emx_cache_config* config, emx_region_info* region) {
    const emx_status status = emx_region_get_info(config->region, region);
    if (status != EMX_OK) return status;
    const uintptr_t offset = (uintptr_t)config->base - (uintptr_t)region->base; /* huge, if it lies before */
    if (offset <= region->size_bytes && config->size_bytes <= region->size_bytes - offset) return EMX_OK;
    return fail(EMX_E_OUT_OF_BOUNDS,
                "got a range of %" PRIu64 " bytes at %p; expected it within region \"%s\", %" PRIu64
                " bytes at %p",
                config->size_bytes, config->base, region->tag, region->size_bytes, region->base);
}

static bool is_inherited(const emx_cache* cache) { return cache->fork_count != process_fork_count(); }

/* A cache is one host's; a fork's child is another one. */
static emx_status require(const emx_cache* cache) {
    const emx_status status = handle_require(HANDLE_CACHE, cache);
    if (status != EMX_OK || !is_inherited(cache)) return status;
    return fail(EMX_E_CLOSED,
                "the cache belongs to the process that this one was forked from; open one here");
}

static emx_status require_buffer(const void* buffer, size_t size_bytes) {
    if (buffer != NULL || size_bytes == 0) return EMX_OK;
    return fail(EMX_E_INVALID, "got NULL for the buffer of %zu bytes", size_bytes);
}

emx_status emx_cache_open(const emx_cache_config* config, emx_cache** opened) {
    emx_region_info region = {0};
    if (opened == NULL) return fail(EMX_E_INVALID, "got NULL for where the cache goes; expected its address");
    emx_status checked = check_config(config);
    if (checked == EMX_OK && config->region != NULL) checked = check_region(config, &region);
    if (checked != EMX_OK) return checked;
    emx_cache* cache = handle_alloc(HANDLE_CACHE, sizeof *cache);
    if (cache == NULL) return fail(EMX_E_NO_MEMORY, "no memory for a cache");
    cache->config = *config;
    cache->fork_count = process_fork_count();
    cache->base = config->base;
    cache->region_base = region.base;
    cache->max_lines = config->capacity_bytes > 0 ? config->capacity_bytes / EMX_LINE_BYTES : UINT64_MAX;
    cache->random = config->seed * UINT64_C(0x9e3779b97f4a7c15) | 1; /* xorshift must not begin at 0 */
    const emx_status priced = price_open(cache);
    if (priced != EMX_OK) {
        handle_free(HANDLE_CACHE, cache);
        return priced;
    }
    pthread_mutex_init(&cache->lock, NULL);
    handle_open(HANDLE_CACHE, cache);
    *opened = cache;
    return EMX_OK;
}

void emx_cache_close(emx_cache* cache) {
    if (!handle_is(HANDLE_CACHE, cache)) return;
    price_close(cache);
    if (!is_inherited(cache)) { /* in a child, a thread that isn't there may be changing them */
        pthread_mutex_destroy(&cache->lock);
        lines_release(&cache->lines);
    }
    handle_free(HANDLE_CACHE, cache);
}

static emx_status check_range(const emx_cache* cache, uint64_t offset, uint64_t size_bytes) {
    const uint64_t end = cache->config.size_bytes;
    if (offset <= end && size_bytes <= end - offset) return EMX_OK;
    return fail(EMX_E_OUT_OF_BOUNDS,
                "got %" PRIu64 " bytes at offset %" PRIu64 "; expected them within the %" PRIu64
                " bytes that the cache stands before",
                size_bytes, offset, end);
}

/* A region must be this host's, now; evictions write only where it is. */
static emx_status check_access(const emx_cache* cache, uint64_t offset, uint64_t size_bytes, bool write) {
    const emx_region* region = cache->config.region;
    emx_status status = check_range(cache, offset, size_bytes);
    if (status == EMX_OK) status = path_check(cache->path);
    if (status != EMX_OK || region == NULL) return status;
    return emx_region_check_access(region, (uint64_t)(cache->base - cache->region_base) + offset, size_bytes,
                                   write);
}

static uint64_t lines_between(uint64_t offset, uint64_t size_bytes) {
    return (offset + size_bytes - 1) / EMX_LINE_BYTES - offset / EMX_LINE_BYTES + 1;
}

/* Room for every line that an access may add, so that it cannot fail half-way. */
static emx_status make_room(emx_cache* cache, uint64_t num_lines) {
    uint64_t needed = cache->lines.count + num_lines;
    if (needed > cache->max_lines) needed = cache->max_lines;
    if (lines_reserve(&cache->lines, needed)) return EMX_OK;
    return fail(EMX_E_NO_MEMORY, "no memory for a cache of %" PRIu64 " lines; give it a capacity", needed);
}

static line_piece piece_at(uint64_t offset, uint64_t size_bytes) {
    const unsigned first = (unsigned)(offset % EMX_LINE_BYTES);
    const uint64_t room = EMX_LINE_BYTES - first;
    return (line_piece){offset / EMX_LINE_BYTES, first, (unsigned)(size_bytes < room ? size_bytes : room)};
}

static void read_lines(emx_cache* cache, uint64_t offset, unsigned char* out, size_t size_bytes,
                       cache_traffic* traffic) {
    const uint64_t stale_before = cache->stats.stale_bytes;
    while (size_bytes > 0) {
        const line_piece piece = piece_at(offset, size_bytes);
        line_read(cache, piece, out, traffic);
        offset += piece.length, out += piece.length, size_bytes -= piece.length;
    }
    cache->stats.stale_reads += cache->stats.stale_bytes != stale_before;
}

static void write_lines(emx_cache* cache, uint64_t offset, const unsigned char* in, size_t size_bytes,
                        cache_traffic* traffic) {
    while (size_bytes > 0) {
        const line_piece piece = piece_at(offset, size_bytes);
        line_write(cache, piece, in, traffic);
        offset += piece.length, in += piece.length, size_bytes -= piece.length;
    }
}

static void read_memory(emx_cache* cache, uint64_t offset, void* buffer, size_t size_bytes,
                        cache_traffic* traffic) {
    memory_load(buffer, cache->base + offset, size_bytes);
    cache->stats.fetched_bytes += size_bytes;
    traffic->fetched_bytes += size_bytes;
}

static void write_memory(emx_cache* cache, uint64_t offset, const void* buffer, size_t size_bytes,
                         cache_traffic* traffic) {
    memory_store(cache->base + offset, buffer, size_bytes);
    cache->stats.written_back_bytes += size_bytes;
    traffic->written_bytes += size_bytes;
}

emx_status emx_cache_read(emx_cache* cache, uint64_t offset, void* buffer, size_t size_bytes) {
    emx_status status = require(cache);
    if (status == EMX_OK) status = check_access(cache, offset, size_bytes, false);
    if (status == EMX_OK) status = require_buffer(buffer, size_bytes);
    if (status != EMX_OK || size_bytes == 0) return status;
    cache_traffic traffic = {0, 0};
    pthread_mutex_lock(&cache->lock);
    if (cache->config.mode == EMX_COHERENCE_UNCACHED)
        read_memory(cache, offset, buffer, size_bytes, &traffic);
    else if ((status = make_room(cache, lines_between(offset, size_bytes))) == EMX_OK)
        read_lines(cache, offset, buffer, size_bytes, &traffic);
    cache->stats.reads += status == EMX_OK;
    pthread_mutex_unlock(&cache->lock);
    if (status == EMX_OK) price_charge(cache, traffic);
    return status;
}

emx_status emx_cache_write(emx_cache* cache, uint64_t offset, const void* buffer, size_t size_bytes) {
    emx_status status = require(cache);
    if (status == EMX_OK) status = check_access(cache, offset, size_bytes, true);
    if (status == EMX_OK) status = require_buffer(buffer, size_bytes);
    if (status != EMX_OK || size_bytes == 0) return status;
    cache_traffic traffic = {0, 0};
    pthread_mutex_lock(&cache->lock);
    if (cache->config.mode == EMX_COHERENCE_UNCACHED)
        write_memory(cache, offset, buffer, size_bytes, &traffic);
    else if ((status = make_room(cache, lines_between(offset, size_bytes))) == EMX_OK)
        write_lines(cache, offset, buffer, size_bytes, &traffic);
    cache->stats.writes += status == EMX_OK;
    pthread_mutex_unlock(&cache->lock);
    if (status == EMX_OK) price_charge(cache, traffic);
    return status;
}

typedef bool (*line_action)(emx_cache* cache, cache_line* line, uint64_t lost, cache_traffic* traffic);

/* The bytes of line `number` that lie within [offset, end). */
static uint64_t part_of(uint64_t number, uint64_t offset, uint64_t end) {
    const uint64_t begin = number * EMX_LINE_BYTES;
    const uint64_t from = offset > begin ? offset - begin : 0;
    const uint64_t to = end - begin < EMX_LINE_BYTES ? end - begin : EMX_LINE_BYTES;
    return mask_of((unsigned)from, (unsigned)(to - from));
}

static void act_on(emx_cache* cache, cache_line* line, uint64_t offset, uint64_t end, line_action action,
                   cache_traffic* traffic) {
    if (action(cache, line, part_of(line->number, offset, end), traffic))
        lines_remove(&cache->lines, (size_t)(line - cache->lines.items));
}

/* Looks up each line of the range, or walks through all that are held, whichever is less. */
static void for_lines(emx_cache* cache, uint64_t offset, uint64_t end, line_action action,
                      cache_traffic* traffic) {
    const uint64_t first = offset / EMX_LINE_BYTES, last = (end - 1) / EMX_LINE_BYTES;
    if (last - first < cache->lines.count) {
        for (uint64_t number = first; number <= last; number++) {
            cache_line* held = lines_find(&cache->lines, number);
            if (held != NULL) act_on(cache, held, offset, end, action, traffic);
        }
        return;
    }
    for (size_t index = cache->lines.count;
         index-- > 0;) { /* backwards: a removal moves the last line here */
        cache_line* held = &cache->lines.items[index];
        if (held->number >= first && held->number <= last) act_on(cache, held, offset, end, action, traffic);
    }
}

static emx_status maintain(emx_cache* cache, uint64_t offset, uint64_t size_bytes, line_action action) {
    emx_status status = require(cache);
    if (status == EMX_OK) status = check_range(cache, offset, size_bytes);
    if (status == EMX_OK)
        status = check_access(cache, offset, 0, false); /* poison there is the next read's affair */
    if (status != EMX_OK || size_bytes == 0 || cache->config.mode != EMX_COHERENCE_SOFTWARE) return status;
    cache_traffic traffic = {0, 0};
    pthread_mutex_lock(&cache->lock);
    for_lines(cache, offset, offset + size_bytes, action, &traffic);
    pthread_mutex_unlock(&cache->lock);
    if (traffic.written_bytes > 0) price_charge(cache, traffic);
    return EMX_OK;
}

emx_status emx_cache_flush(emx_cache* cache, uint64_t offset, uint64_t size_bytes) {
    return maintain(cache, offset, size_bytes, line_flush);
}

emx_status emx_cache_invalidate(emx_cache* cache, uint64_t offset, uint64_t size_bytes) {
    return maintain(cache, offset, size_bytes, line_invalidate);
}

emx_status emx_cache_flush_invalidate(emx_cache* cache, uint64_t offset, uint64_t size_bytes) {
    return maintain(cache, offset, size_bytes, line_flush_invalidate);
}

void emx_cache_fence(emx_cache* cache) {
    (void)cache;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpragmas"
#pragma GCC diagnostic ignored "-Wtsan" /* it orders all the same, tracked or not */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
#pragma GCC diagnostic pop
}

static emx_status check_word(const emx_cache* cache, uint64_t offset, bool write) {
    const emx_status status = require(cache);
    if (status != EMX_OK) return status;
    if (offset % 8 != 0)
        return fail(EMX_E_INVALID,
                    "got offset %" PRIu64
                    "; expected a multiple of 8, as eight bytes that are seen at once "
                    "have",
                    offset);
    return check_access(cache, offset, 8, write);
}

emx_status emx_cache_load_u64(emx_cache* cache, uint64_t offset, uint64_t* value) {
    emx_status status = check_word(cache, offset, false);
    if (status == EMX_OK) status = require_buffer(value, sizeof *value);
    if (status != EMX_OK) return status;
    cache_traffic traffic = {0, 0};
    pthread_mutex_lock(&cache->lock);
    read_memory(cache, offset, value, sizeof *value, &traffic);
    cache->stats.reads++;
    pthread_mutex_unlock(&cache->lock);
    price_charge(cache, traffic);
    return EMX_OK;
}

emx_status emx_cache_store_u64(emx_cache* cache, uint64_t offset, uint64_t value) {
    const emx_status status = check_word(cache, offset, true);
    if (status != EMX_OK) return status;
    cache_traffic traffic = {0, 0};
    const uint64_t stored = mask_of((unsigned)(offset % EMX_LINE_BYTES), 8);
    pthread_mutex_lock(&cache->lock);
    cache_line* held = lines_find(&cache->lines, offset / EMX_LINE_BYTES);
    if (held != NULL) held->valid &= ~stored, held->dirty &= ~stored;
    write_memory(cache, offset, &value, sizeof value, &traffic);
    cache->stats.writes++;
    pthread_mutex_unlock(&cache->lock);
    price_charge(cache, traffic);
    return EMX_OK;
}

emx_status emx_cache_get_stats(emx_cache* cache, emx_cache_stats* stats) {
    emx_status status = require(cache);
    if (status == EMX_OK && stats == NULL) status = fail(EMX_E_INVALID, "got NULL for where the stats go");
    if (status != EMX_OK) return status;
    pthread_mutex_lock(&cache->lock);
    *stats = cache->stats;
    stats->lines = cache->lines.count;
    stats->dirty_bytes = 0;
    if (cache->config.mode == EMX_COHERENCE_SOFTWARE)
        for (size_t index = 0; index < cache->lines.count; index++)
            stats->dirty_bytes += (uint64_t)__builtin_popcountll(cache->lines.items[index].dirty);
    pthread_mutex_unlock(&cache->lock);
    return EMX_OK;
}
