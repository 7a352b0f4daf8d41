/* The coherence model: what a host sees of bytes that another host wrote.
 *
 * Memory that several hosts map (a region of a pool, a shm tier, a shared segment) is coherent by itself on one
 * machine. On CXL it need not be. A cache stands between one host and such a range, and makes of it what the mode says:
 *
 *   hardware   every access sees the newest bytes, as with CXL 3 back-invalidation. Flushes and invalidates do nothing.
 *   software   each host has lines of its own. What it writes stays there until it flushes (or the line is evicted);
 *              what it has read once it reads again, however old, until it invalidates. A program that lacks a flush or
 *              an invalidate gets stale bytes here, on any machine, every time.
 *   uncached   every access goes to the memory, and pays for it.
 *
 * Only accesses through these calls are modelled. Loads and stores through a pointer see the memory itself.
 *
 * Flags, indices and locks that hosts share and never want stale go through emx_cache_load_u64 and emx_cache_store_u64,
 * which bypass the cache in every mode. Atomic read-modify-write operations are not offered: between hosts they need
 * hardware coherence; a lock must be made of loads and stores (Lamport's bakery, a ring with one index for each side).
 *
 * Thread safety: every call but open and close may run in any number of threads. The threads of a host share its cache.
 *
 * Invariants
 *   1. A write-back writes the bytes that this host wrote, and no others: hosts that share a line lose nothing by it
 *      (unless whole_line_writes asks for what processors do).
 *   2. Naturally aligned 1, 2, 4 and 8 bytes that were written at once are never seen, or written back, in part.
 *   3. What a host writes back (or stores uncached) is seen by the others in that order.
 *   4. The same calls with the same seed do the same.
 */
#ifndef EMUCXL_COHERENCE_H
#define EMUCXL_COHERENCE_H

#include "context.h"

#ifdef __cplusplus
extern "C" {
#endif

#define EMX_LINE_BYTES 64

typedef enum emx_coherence {
    EMX_COHERENCE_HARDWARE = 0,
    EMX_COHERENCE_SOFTWARE = 1,
    EMX_COHERENCE_UNCACHED = 2,
} emx_coherence;

typedef struct emx_cache emx_cache;

typedef struct emx_cache_config {
    uint32_t struct_bytes;
    uint32_t mode; /* emx_coherence */
    void* base;    /* of the shared range where this process has it mapped; a multiple of EMX_LINE_BYTES */
    uint64_t size_bytes;
    emx_region* region; /* or NULL: of a pool, which has the range. Every access then asks whether this host
                           may (EMX_E_FENCED, _POISONED, _PERMISSION). It must outlive the cache */
    uint64_t capacity_bytes;    /* of the cache, in whole lines; 0: unlimited, nothing is ever evicted */
    uint64_t seed;              /* decides which lines are evicted */
    uint32_t detect_stale;      /* 1: count the bytes read that the memory no longer has; costs a compare */
    uint32_t whole_line_writes; /* 1: a write makes all of its line dirty, as in a processor: two hosts that
                                   write to one line then overwrite each other's bytes */
    /* The modelled cost. Fetching and writing back lines is priced by `timing` and `link` on the clock
     * of `context`, which outlives the cache; an access that finds all its lines takes hit_latency_ns. NULL:
     * no price. */
    emx_context* context;
    emx_link* link;
    double hit_latency_ns;
    emx_timing timing;
} emx_cache_config;

typedef struct emx_cache_stats {
    uint64_t reads, writes; /* accesses, uncached ones included */
    uint64_t hits, misses;  /* lines that an access found, and that it had to fetch (or take over) */
    uint64_t evictions;
    uint64_t fetched_bytes;      /* from the memory */
    uint64_t written_back_bytes; /* to the memory, by flushes, evictions and uncached writes */
    uint64_t dropped_bytes;      /* written by this host, and lost by an invalidate before any flush */
    uint64_t stale_reads;        /* accesses that returned a byte the memory no longer held (detect_stale) */
    uint64_t stale_bytes;
    uint64_t lines, dirty_bytes; /* held now */
    uint64_t delayed_ns;         /* modelled time that accesses took */
} emx_cache_stats;

EMX_API emx_status emx_cache_open(const emx_cache_config* config, emx_cache** cache);
/* Lines that were not flushed never reach the memory, as when a host loses its power. */
EMX_API void emx_cache_close(emx_cache* cache);

/* `offset` counts from the base of the range, and is checked with `size_bytes` against its end. */
EMX_API emx_status emx_cache_read(emx_cache* cache, uint64_t offset, void* buffer, size_t size_bytes);
EMX_API emx_status emx_cache_write(emx_cache* cache, uint64_t offset, const void* buffer, size_t size_bytes);

/* These work on every line that the range touches. When flush returns, the bytes are in the memory.
 *   flush             writes back what this host wrote; the lines stay
 *   invalidate        forgets the lines. Bytes of the range that were written and not flushed are lost; those beside
 *                     the range, in its first and last line, are kept
 *   flush_invalidate  writes back, then forgets */
EMX_API emx_status emx_cache_flush(emx_cache* cache, uint64_t offset, uint64_t size_bytes);
EMX_API emx_status emx_cache_invalidate(emx_cache* cache, uint64_t offset, uint64_t size_bytes);
EMX_API emx_status emx_cache_flush_invalidate(emx_cache* cache, uint64_t offset, uint64_t size_bytes);
/* A full barrier: others see what this thread did before it before they see what it does after. Needed only
 * where a host writes one thing and then reads another that answers it (as both sides do in Dekker's or
 * Lamport's locks). */
EMX_API void emx_cache_fence(emx_cache* cache);

/* Straight from and to the memory, whole and in order, in every mode. `offset` is a multiple of 8. A store
 * drops the eight bytes from this host's cache, written or not. */
EMX_API emx_status emx_cache_load_u64(emx_cache* cache, uint64_t offset, uint64_t* value);
EMX_API emx_status emx_cache_store_u64(emx_cache* cache, uint64_t offset, uint64_t value);

EMX_API emx_status emx_cache_get_stats(emx_cache* cache, emx_cache_stats* stats);

#ifdef __cplusplus
}
#endif
#endif
