/* Transfers: bytes that move, and what the model says they cost.
 *
 * A `path` is a tier's timing with its queues. A `model_clock` is the clock of a context. transfer_run moves the bytes
 * of a batch and returns when the model says they have arrived.
 */
#ifndef EMX_TRANSFER_H
#define EMX_TRANSFER_H

#include <stdatomic.h>
#include <stdbool.h>

#include "emucxl/timing.h"

typedef struct path path;

/* `link` may be NULL. On the real clock `calibration` is needed, and checked against (EMX_E_TOO_FAST). *created is NULL
 * when nothing is modelled: timing all zero and no link. */
emx_status path_create(const emx_timing *timing, emx_link *link, const emx_calibration *calibration, bool real_clock,
                       path **created);
void path_destroy(path *path);

typedef struct model_clock {
  bool is_virtual;
  double exit_overhead_ns; /* of the calibration; 0 on the virtual clock */
  _Atomic uint64_t now_ns; /* virtual only */
} model_clock;

uint64_t model_clock_now(const model_clock *clock);
/* To `time_ns`: waits on the real clock; on the virtual one moves it there, never back. */
void model_clock_reach(model_clock *clock, uint64_t time_ns);

typedef struct transfer {
  void *destination;  /* NULL: nothing is moved, only priced (memory that is not there) */
  const void *source; /* NULL: destination is filled with `value` */
  int value;
  size_t size_bytes;
  path *read_path;  /* priced as a read on it, if not NULL */
  path *write_path; /* priced as a write on it, if not NULL */
} transfer;

/* Moves and prices a batch: the transfers run at the same time, so each path's latency counts once and its bytes add
 * up. Ranges within a transfer may overlap (memmove). Long transfers reserve their queues piece by piece, so that
 * others who share them get their turn. Unpriced transfers cost a memmove and one branch. Returns the modelled duration
 * (0 when nothing is priced). `done_ns`, if not NULL, receives the time of arrival and the virtual clock is left where
 * it was (the copy engine moves it when the batch is waited for). */
uint64_t transfer_run(model_clock *clock, const transfer *transfers, size_t num_transfers, uint64_t *done_ns);

/* The two halves of that on the virtual clock, for who prices at another time than it moves: when a batch that begins
 * at `start_ns` has arrived, and moving its bytes. */
uint64_t transfer_price(const transfer *transfers, size_t num_transfers, uint64_t start_ns);
void transfer_move(const transfer *transfers, size_t num_transfers);

#endif
