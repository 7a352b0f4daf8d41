/* The page in which a context shows itself to `emucxl top` while it runs.
 *
 * Each context keeps one page of this layout in a memfd named "emucxl-context". Whoever may read the
 * process's descriptors (/proc/PID/fd) may map it read-only; it goes away with the process, however that
 * ends.
 *
 * Thread safety: every 64-bit figure is written with relaxed atomic stores and adds, each by itself: figures
 * that are read together need not be of the same instant. `num_tiers` is stored with release order after the
 * tier it counts.
 */
#ifndef EMUCXL_MONITOR_H
#define EMUCXL_MONITOR_H

#include "context.h"

#ifdef __cplusplus
extern "C" {
#endif

#define EMX_MONITOR_NAME "emucxl-context"
#define EMX_MONITOR_MAGIC UINT64_C(0x31786e6f4d786d65) /* "emxMonx1" in memory */
#define EMX_MONITOR_VERSION 1
#define EMX_MONITOR_SHARDS 16

/* The counts of one thread, or, in the last shard, of all threads that have none of their own; a tier's
 * figures are the sums over its shards. One cache line each. */
typedef struct emx_monitor_counters {
    uint64_t read_bytes, write_bytes;
    uint64_t read_accesses, write_accesses;
    uint64_t delayed_ns; /* modelled */
    uint64_t unused[3];
} emx_monitor_counters;

typedef struct emx_monitor_tier {
    char name[EMX_NAME_BYTES];
    uint32_t provider; /* emx_provider */
    uint32_t modelled;
    uint64_t capacity_bytes;
    /* These lag: they are refreshed every 256 small allocations, at once for a megabyte, and by
     * emx_tier_get_stats. */
    uint64_t allocated_bytes, reserved_bytes, num_allocations;
    uint64_t unused[7];
    emx_monitor_counters shards[EMX_MONITOR_SHARDS];
} emx_monitor_tier;

typedef struct emx_monitor_page {
    uint64_t magic;
    uint32_t version;
    uint32_t page_bytes; /* sizeof(emx_monitor_page) */
    uint32_t pid;        /* of the process that opened the context, in its own namespace */
    uint32_t clock;      /* emx_clock */
    uint32_t num_tiers;
    uint32_t reserved;
    char name[EMX_NAME_BYTES]; /* of emx_context_set_name; empty: it was given none */
    uint64_t unused[8];
    emx_monitor_tier tiers[EMX_MAX_TIERS];
} emx_monitor_page;

#ifdef __cplusplus
}
#endif
#endif
