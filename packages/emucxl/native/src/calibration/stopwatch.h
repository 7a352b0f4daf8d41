/* Timing single calls, and what that adds. */
#ifndef EMX_STOPWATCH_H
#define EMX_STOPWATCH_H

#include <stddef.h>
#include <stdint.h>

/* Nanoseconds since clock_ticks_in_order() was `begin`. */
double stopwatch_ns(uint64_t begin);
/* The median that a stopwatch shows when nothing lies between its start and its end. */
double stopwatch_overhead_ns(void);

/* Sorts `values`; the one that `share` (0 to 1) of them do not exceed. */
double quantile(double* values, size_t num_values, double share);

#endif
