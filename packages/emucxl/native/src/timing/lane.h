/* A lane: one queue of the timing model, in memory that threads and processes may share.
 *
 * Thread safety: every call may run in any number of threads and processes; each is a few atomic operations,
 * no locks. A process that is killed in the middle leaves at most one transfer uncounted, and the queue never
 * waits for it.
 *
 * Invariants
 *   1. free_ns only grows, by exactly what was queued: any number of transfers, however small, add up to
 * bytes/bandwidth. Only a leftover of another clock is dropped.
 *   2. What is queued at one time is a stretch without gaps that ends at free_ns.
 */
#ifndef EMX_LANE_H
#define EMX_LANE_H

#include "emucxl/link_layout.h"
#include "emucxl/timing.h"

/* Nanoseconds per byte with 32 bits of fraction; 0 for a bandwidth of 0, which stands for unlimited. */
typedef uint64_t lane_rate;

lane_rate lane_rate_of(double bandwidth_gbps);

/* Queues `size_bytes` that arrive at `now_ns`; tells when the first of them passes, and when the last has. */
typedef struct lane_slot {
    uint64_t start_ns, release_ns;
} lane_slot;

/* A queue that ends more than `most_ahead_ns` after `now_ns` is taken for a leftover: it begins anew. */
lane_slot lane_reserve(emx_lane* lane, lane_rate rate, emx_direction direction, uint64_t size_bytes,
                       uint64_t now_ns, uint64_t most_ahead_ns);
/* Forgets what is queued, and when; not how much there was. */
void lane_restart(emx_lane* lane);

/* The share of the recent past (one to two windows up to `now_ns`) in which the lane was busy, 0 to 1. Clocks
 * that run behind others on the same lane see it as busy as soon as the others queued a window ahead of them.
 */
double lane_utilisation(emx_lane* lane, uint64_t now_ns);

#endif
