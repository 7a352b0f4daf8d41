/* Waiting on the real clock. */
#ifndef EMX_CLOCK_H
#define EMX_CLOCK_H

#include <stdint.h>

#include "prim/stop.h"

/* Once `stop` (or NULL) is set, these return: at once where they sleep, at the deadline where they spin (some
 * 200 us at most). */

/* Like emx_wait_until, for a deadline that need not be met to the microsecond: sleeps where it can, and may
 * wake some tens of microseconds late. */
void wait_roughly_until(uint64_t deadline_ns, const stop_flag* stop);

/* Returns when `duration_ns` have passed since clock_ticks() was `entry_ticks`, if that is too soon to sleep
 * for; otherwise like emx_wait_until(deadline_ns). Exact to what one turn of the loop takes. */
void wait_since(uint64_t entry_ticks, uint64_t duration_ns, uint64_t deadline_ns, const stop_flag* stop);

#endif
