/* Waiting on the real clock. */
#ifndef EMX_CLOCK_H
#define EMX_CLOCK_H

#include <stdint.h>

/* Like emx_wait_until, for a deadline that need not be met to the microsecond: sleeps where it can, and may wake some
 * tens of microseconds late. */
void wait_roughly_until(uint64_t deadline_ns);

#endif
