/* The lines that a cache holds: found by number, added, and taken away, each in constant time.
 *
 * Thread safety: none; the cache's lock is held. A pointer to a line is good until a line is added or
 * removed. */
#ifndef EMX_COHERENCE_LINES_H
#define EMX_COHERENCE_LINES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "emucxl/coherence.h"

typedef struct cache_line {
    uint64_t number; /* offset in the range / EMX_LINE_BYTES */
    uint64_t valid;  /* a bit for each byte that is held */
    uint64_t dirty;  /* ... that this host wrote and the memory has not got; within `valid` */
    uint32_t next;   /* in its bucket: index + 1, or 0 */
    unsigned char bytes[EMX_LINE_BYTES];
} cache_line;

typedef struct line_set {
    cache_line* items; /* items[0 .. count), in no order */
    size_t count, room;
    uint32_t* buckets; /* as many as there is room for, a power of two */
} line_set;

/* Makes room for `count` lines in all, so that lines_add cannot fail; false when the system has no memory for
 * them. */
bool lines_reserve(line_set* lines, size_t count);
void lines_release(line_set* lines);
cache_line* lines_find(const line_set* lines, uint64_t number); /* NULL: not held */
/* Empty; there must be room, and no such cache_line. */
cache_line* lines_add(line_set* lines, uint64_t number);
void lines_remove(line_set* lines, size_t index); /* the last line takes its index */

#endif
