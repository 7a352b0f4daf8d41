/* Reads, writes, flushes and invalidates of one line of a cache. */
#include <string.h>

#include "coherence/internal.h"
#include "coherence/memory.h"

static bool is_software(const emx_cache* cache) { return cache->config.mode == EMX_COHERENCE_SOFTWARE; }

static unsigned char* memory_of(const emx_cache* cache, uint64_t number) {
    return cache->base + number * EMX_LINE_BYTES;
}

/* The bytes that the line has: all, but for the last one of a range that ends within a line. */
static uint64_t bytes_of(const emx_cache* cache, uint64_t number) {
    const uint64_t rest = cache->config.size_bytes - number * EMX_LINE_BYTES;
    return mask_of(0, rest < EMX_LINE_BYTES ? (unsigned)rest : EMX_LINE_BYTES);
}

static void load_line(const emx_cache* cache, uint64_t number, unsigned char* copy) {
    memory_load(copy, memory_of(cache, number), (size_t)__builtin_popcountll(bytes_of(cache, number)));
}

/* Under hardware coherence the memory has the bytes already; only the traffic counts. */
static void write_back(emx_cache* cache, cache_line* line, cache_traffic* traffic) {
    if (line->dirty == 0) return;
    if (is_software(cache)) memory_store_masked(memory_of(cache, line->number), line->bytes, line->dirty);
    cache->stats.written_back_bytes += (uint64_t)__builtin_popcountll(line->dirty);
    traffic->written_bytes += EMX_LINE_BYTES;
    line->dirty = 0;
}

static uint64_t next_random(emx_cache* cache) { /* xorshift64 */
    uint64_t x = cache->random;
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    return cache->random = x;
}

/* A line that was not held: evicts another one if the cache is full. */
static cache_line* add_line(emx_cache* cache, uint64_t number, cache_traffic* traffic) {
    if (cache->lines.count == cache->max_lines) {
        const size_t victim = (size_t)(next_random(cache) % cache->lines.count);
        write_back(cache, &cache->lines.items[victim], traffic);
        lines_remove(&cache->lines, victim);
        cache->stats.evictions++;
    }
    return lines_add(&cache->lines, number);
}

/* Fills what is not held of the line with what the memory has now. */
static void fill(emx_cache* cache, cache_line* line, cache_traffic* traffic) {
    unsigned char fresh[EMX_LINE_BYTES];
    load_line(cache, line->number, fresh);
    const uint64_t missing = bytes_of(cache, line->number) & ~line->valid;
    for (uint64_t left = missing; left != 0; left &= left - 1) {
        const int byte = __builtin_ctzll(left);
        line->bytes[byte] = fresh[byte];
    }
    line->valid |= missing;
    cache->stats.fetched_bytes += EMX_LINE_BYTES;
    traffic->fetched_bytes += EMX_LINE_BYTES;
}

/* Software coherence: the host's own copy, if it has one, whatever the memory has. */
static cache_line* hold_own(emx_cache* cache, uint64_t number, uint64_t needed, cache_traffic* traffic) {
    cache_line* held = lines_find(&cache->lines, number);
    if (held != NULL && (needed & ~held->valid) == 0) {
        cache->stats.hits++;
        return held;
    }
    cache->stats.misses++;
    if (held == NULL) held = add_line(cache, number, traffic);
    if ((needed & ~held->valid) != 0) fill(cache, held, traffic);
    return held;
}

/* Hardware coherence: a copy that another host has changed since is a miss. */
static cache_line* hold_coherent(emx_cache* cache, uint64_t number, cache_traffic* traffic) {
    unsigned char fresh[EMX_LINE_BYTES] = {0};
    load_line(cache, number, fresh);
    cache_line* held = lines_find(&cache->lines, number);
    if (held != NULL && memcmp(held->bytes, fresh, sizeof fresh) == 0) {
        cache->stats.hits++;
        return held;
    }
    if (held == NULL) held = add_line(cache, number, traffic);
    memcpy(held->bytes, fresh, sizeof fresh);
    held->valid = bytes_of(cache, number);
    held->dirty = 0;
    cache->stats.misses++;
    cache->stats.fetched_bytes += EMX_LINE_BYTES;
    traffic->fetched_bytes += EMX_LINE_BYTES;
    return held;
}

static uint64_t count_stale(const emx_cache* cache, const cache_line* line, uint64_t touched) {
    unsigned char fresh[EMX_LINE_BYTES];
    load_line(cache, line->number, fresh);
    uint64_t stale = 0;
    for (uint64_t left = touched & ~line->dirty; left != 0; left &= left - 1) {
        const int byte = __builtin_ctzll(left);
        stale += line->bytes[byte] != fresh[byte];
    }
    return stale;
}

void line_read(emx_cache* cache, line_piece piece, unsigned char* out, cache_traffic* traffic) {
    const uint64_t touched = mask_of(piece.first, piece.length);
    const cache_line* held = is_software(cache) ? hold_own(cache, piece.number, touched, traffic)
                                                : hold_coherent(cache, piece.number, traffic);
    if (cache->config.detect_stale && is_software(cache))
        cache->stats.stale_bytes += count_stale(cache, held, touched);
    memcpy(out, held->bytes + piece.first, piece.length);
}

void line_write(emx_cache* cache, line_piece piece, const unsigned char* in, cache_traffic* traffic) {
    const uint64_t touched = mask_of(piece.first, piece.length), whole = bytes_of(cache, piece.number);
    cache_line* held;
    if (is_software(cache)) {
        /* A line is fetched to be written to, unless all of it is. */
        held = hold_own(cache, piece.number, touched == whole ? 0 : whole, traffic);
    } else {
        held = hold_coherent(cache, piece.number, traffic);
        memory_store(memory_of(cache, piece.number) + piece.first, in, piece.length);
    }
    memcpy(held->bytes + piece.first, in, piece.length);
    held->valid |= touched;
    held->dirty |= is_software(cache) && cache->config.whole_line_writes ? whole : touched;
}

bool line_flush(emx_cache* cache, cache_line* line, uint64_t lost, cache_traffic* traffic) {
    (void)lost;
    write_back(cache, line, traffic);
    return false;
}

bool line_invalidate(emx_cache* cache, cache_line* line, uint64_t lost, cache_traffic* traffic) {
    (void)traffic;
    cache->stats.dropped_bytes += (uint64_t)__builtin_popcountll(line->dirty & lost);
    line->dirty &= ~lost;
    line->valid = line->dirty;
    return line->valid == 0;
}

bool line_flush_invalidate(emx_cache* cache, cache_line* line, uint64_t lost, cache_traffic* traffic) {
    (void)lost;
    write_back(cache, line, traffic);
    return true;
}
