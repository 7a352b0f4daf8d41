/* How a link lies in its memfd or file, for programs that watch links without taking part (`emucxl top`): map
 * it read-only.
 *
 * Everything is little-endian and naturally aligned. Fields above `lanes` are written once, before the link
 * is seen by anyone, except `clock` and `boot_id`. On the real clock the times of the lanes are
 * CLOCK_MONOTONIC of the machine, without the offset of a time namespace. Those of the lanes change all the
 * time, each by itself: load them atomically, and expect the sums of two fields to be off by a transfer that
 * is just being queued.
 */
#ifndef EMUCXL_LINK_LAYOUT_H
#define EMUCXL_LINK_LAYOUT_H

#include <stdint.h>

#define EMX_LINK_MAGIC 0x316b6e696c786d65ull /* the bytes "emxlink1" */
#define EMX_LINK_VERSION 2u
#define EMX_LINK_FILE_BYTES 4096u
#define EMX_LINK_WINDOW_NS 100000ull /* utilisation looks back over one to two of these */
/* On the real clock no queue reaches further than this beyond the present: what does was left by a clock that
 * restarted, or is damage, and is not waited for. */
#define EMX_LINK_MOST_AHEAD_NS 60000000000ull

/* One queue. The arrays are indexed by emx_direction; on a full-duplex link each lane uses one of the two
 * only. */
typedef struct emx_lane {
    uint64_t free_ns;  /* when the last byte that was queued so far has passed */
    uint32_t fraction; /* of a nanosecond (in 2^-32) that transfers so far took beyond what free_ns counts */
    uint32_t reserved;
    uint64_t latest_ns; /* the latest arrival */
    uint64_t queued_ns; /* modelled time that transfers waited for others */
    uint64_t bytes[2];
    uint64_t transfers[2];
    uint64_t busy_ns[2]; /* modelled time that transfers occupied the queue, or will */
    /* Window i begins at (i - 1) * EMX_LINK_WINDOW_NS. Slot i mod 4 holds i (24 bits, at the top) and the
     * lane's busy time up to that moment (40 bits). */
    uint64_t windows[4];
    uint64_t padding[2];
} emx_lane;

typedef struct emx_link_page {
    uint64_t magic;
    uint32_t version;
    uint32_t struct_bytes; /* sizeof(emx_link_page) */
    uint32_t full_duplex;  /* 1: lanes[0] carries reads, lanes[1] writes; 0: lanes[0] carries both */
    uint32_t clock;        /* 0: no tier used it yet, 1: the real clock, 2: virtual clocks */
    double read_bandwidth_gbps;
    double write_bandwidth_gbps;
    double latency_ns;
    uint64_t check; /* FNV-1a of the bytes from read_bandwidth_gbps up to here, then full_duplex */
    uint64_t creator_pid;
    uint64_t boot_id; /* a hash of that in which the lanes' times count: a link that is opened after a restart
                         begins anew */
    uint64_t padding[7];
    emx_lane lanes[2];
} emx_link_page;

#endif
