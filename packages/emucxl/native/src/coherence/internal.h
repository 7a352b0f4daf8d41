/* A cache, as its files share it. */
#ifndef EMX_COHERENCE_INTERNAL_H
#define EMX_COHERENCE_INTERNAL_H

#include <pthread.h>

#include "coherence/lines.h"
#include "handle.h"
#include "timing/transfer.h"

/* The bytes that an access moved over the link: whole lines, or single bytes if uncached. */
typedef struct cache_traffic {
    uint64_t fetched_bytes, written_bytes;
} cache_traffic;

struct emx_cache {
    handle handle;
    uint64_t fork_count; /* at opening */
    emx_cache_config config;
    unsigned char *base, *region_base; /* of the range, and of the region that has it */
    uint64_t max_lines;
    path* path; /* NULL: fetching and writing back costs nothing */

    pthread_mutex_t lock; /* of everything below */
    line_set lines;
    uint64_t random;
    emx_cache_stats stats;
};

/* Part of one line: what an access touches of it. */
typedef struct line_piece {
    uint64_t number; /* of the cache_line */
    unsigned first, length;
} line_piece;

/* An access to one line. The lock is held, and there is room for the line. */
void line_read(emx_cache* cache, line_piece piece, unsigned char* out, cache_traffic* traffic);
void line_write(emx_cache* cache, line_piece piece, const unsigned char* in, cache_traffic* traffic);

/* A flush or an invalidate of one line; true: the line is to be removed. `lost` is the part that an
 * invalidate may throw away. */
bool line_flush(emx_cache* cache, cache_line* line, uint64_t lost, cache_traffic* traffic);
bool line_invalidate(emx_cache* cache, cache_line* line, uint64_t lost, cache_traffic* traffic);
bool line_flush_invalidate(emx_cache* cache, cache_line* line, uint64_t lost, cache_traffic* traffic);

static inline uint64_t mask_of(unsigned first, unsigned length) {
    return (length == EMX_LINE_BYTES ? ~UINT64_C(0) : (UINT64_C(1) << length) - 1) << first;
}

/* The pricing: the path made and freed, and an access charged for what it moved (0: a hit), outside of the
 * lock. */
emx_status price_open(emx_cache* cache);
void price_close(emx_cache* cache);
void price_charge(emx_cache* cache, cache_traffic traffic);

#endif
