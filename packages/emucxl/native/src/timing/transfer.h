/* Transfers: bytes that move, and what the model says they cost.
 *
 * A `path` is a tier's timing with its queues. A `model_clock` is the clock of a context. transfer_run moves
 * the bytes of a batch and returns when the model says they have arrived.
 */
#ifndef EMX_TRANSFER_H
#define EMX_TRANSFER_H

#include <stdatomic.h>
#include <stdbool.h>

#include "emucxl/timing.h"
#include "prim/clock.h"
#include "prim/stop.h"

typedef struct path path;

/* `link` may be NULL. On the real clock `calibration` is needed, and checked against (EMX_E_TOO_FAST).
 * *created is NULL when nothing is modelled: timing all zero and no link. */
emx_status path_create(const emx_timing* timing, emx_link* link, const emx_calibration* calibration,
                       bool real_clock, path** created);
void path_destroy(path* path);
/* Whether the link's file can be cut short by others, and EMX_E_CORRUPT once it was. `path` may be NULL. */
bool path_may_shrink(const path* path);
emx_status path_check(const path* path);

typedef struct model_clock {
    bool is_virtual;
    _Atomic bool is_paced;   /* the real clock, and a tier that is modelled on it */
    double exit_overhead_ns; /* of the calibration; 0 on the virtual clock */
    _Atomic uint64_t now_ns; /* virtual only */
} model_clock;

uint64_t model_clock_now(const model_clock* clock);
/* To `time_ns`: waits on the real clock; on the virtual one moves it there, never back. */
void model_clock_reach(model_clock* clock, uint64_t time_ns);

typedef struct transfer {
    void* destination;  /* NULL: nothing is moved, only priced (memory that is not there) */
    const void* source; /* NULL: destination is filled with `value` */
    int value;
    size_t size_bytes;
    path* read_path;  /* priced as a read on it, if not NULL */
    path* write_path; /* priced as a write on it, if not NULL */
} transfer;

/* When a call began, for transfer_start: read first of all, so that what the call does before counts towards
 * its delay. 0 where nothing is delayed: an unmodelled access does not read the clock. */
static inline uint64_t transfer_entry(const model_clock* clock) {
    return atomic_load_explicit(&clock->is_paced, memory_order_relaxed) ? clock_ticks() : 0;
}

/* A delay that is not over yet. */
typedef struct transfer_wait {
    uint64_t entry_ticks, duration_ns; /* 0: nothing to wait for */
    uint64_t end_ns;
} transfer_wait;

/* Moves and prices a batch: the transfers run at the same time, so each path's latency counts once and its
 * bytes add up. Ranges within a transfer may overlap (memmove). Long transfers reserve their queues piece by
 * piece, so that others who share them get their turn. Unpriced transfers cost a memmove and one branch.
 * Returns the modelled duration (0 when nothing is priced). */
uint64_t transfer_run(model_clock* clock, const transfer* transfers, size_t num_transfers);

/* transfer_run in two parts: what the caller does between them (its bookkeeping) passes within the delay.
 * `entry_ticks` is transfer_entry() at the caller's beginning. */
uint64_t transfer_start(model_clock* clock, const transfer* transfers, size_t num_transfers,
                        uint64_t entry_ticks, transfer_wait* wait);
void transfer_finish(const model_clock* clock, const transfer_wait* wait);

/* transfer_run on the real clock, which ends between two pieces once `stop` is set: *num_moved tells how many
 * transfers were whole by then, and what is returned is the time that it took. */
uint64_t transfer_run_until(model_clock* clock, const transfer* transfers, size_t num_transfers,
                            const stop_flag* stop, size_t* num_moved);

/* The two halves of that on the virtual clock, for who prices at another time than it moves: when a batch
 * that begins at `start_ns` has arrived, and moving its bytes. */
uint64_t transfer_price(const transfer* transfers, size_t num_transfers, uint64_t start_ns);
/* Returns how many were moved: all, unless `stop` (or NULL) was set meanwhile. */
size_t transfer_move(const transfer* transfers, size_t num_transfers, const stop_flag* stop);

#endif
