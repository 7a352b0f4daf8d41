/* A path: a tier's timing with its queues, as transfers use it. See timing/transfer.h for making one. */
#ifndef EMX_PATH_H
#define EMX_PATH_H

#include "timing/lane.h"
#include "timing/transfer.h"

/* The wait besides queueing of an access that arrives at `now_ns`: latency at the present load, hops, the
 * link. */
uint64_t path_latency_ns(path* path, emx_direction direction, uint64_t now_ns);

/* Queues bytes that arrive at `now_ns` on the tier's own queue and its link's; tells when the later of the
 * two starts to let them pass, and when both have. */
lane_slot path_reserve(path* path, emx_direction direction, uint64_t size_bytes, uint64_t now_ns);

/* How much a transfer queues at a time, so that others on the same queue get their turn: the same for all of
 * them. */
size_t path_piece_bytes(const path* path);

#endif
