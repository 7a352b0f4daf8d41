/* Links as paths see them. A link is counted: whoever retains it releases it, and the last one unmaps it. */
#ifndef EMX_LINK_H
#define EMX_LINK_H

#include "timing/lane.h"

/* Keeps the link for a path. Its queues follow either the real clock or virtual ones, from the first user on:
 * EMX_E_INVALID for the other kind, whose times would mean nothing here. */
emx_status link_join(emx_link* link, bool real_clock);
void link_release(emx_link* link);
/* Whether others can cut its file short, and EMX_E_CORRUPT once they have. */
bool link_may_shrink(const emx_link* link);
emx_status link_check(const emx_link* link);

/* Queues bytes that arrive at `now_ns` of the caller's clock, and tells times of that clock. */
lane_slot link_queue(emx_link* link, emx_direction direction, uint64_t size_bytes, uint64_t now_ns);
double link_utilisation(const emx_link* link, emx_direction direction, uint64_t now_ns);
double link_latency_ns(const emx_link* link);
double link_bandwidth_gbps(const emx_link* link, emx_direction direction);

/* Bandwidths that the arithmetic of lanes can carry. */
#define LEAST_BANDWIDTH_GBPS 0.001
#define MOST_BANDWIDTH_GBPS 100000.0
#define MOST_LATENCY_NS 1e10

#endif
