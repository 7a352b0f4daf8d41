/* The machine's clock and cores, and ways to let time pass. No policy: how long to sleep or spin is the
 * caller's to decide. */
#ifndef EMX_PRIM_CLOCK_H
#define EMX_PRIM_CLOCK_H

#include <stdint.h>

#include "prim/stop.h"

/* CLOCK_MONOTONIC in nanoseconds: common to all processes of the machine. */
uint64_t clock_read_ns(void);

/* Sleeps until `deadline_ns` of that clock, with this thread's timer slack at its least meanwhile. Wakes
 * late, never early, unless `stop` (or NULL) is set: then at once. */
void clock_sleep_until(uint64_t deadline_ns, const stop_flag* stop);

/* A counter that is cheap to read, of the same thread: the processor's own where it is constant and does not
 * stop, nanoseconds of the clock otherwise. clock_ticks_per_ns measures it once per process (a millisecond).
 */
uint64_t clock_ticks(void);
double clock_ticks_per_ns(void);
/* The same, read after everything before it is done and before anything after it begins. */
uint64_t clock_ticks_in_order(void);

/* How many cores this process may run on. */
uint32_t clock_usable_cores(void);

/* Tells the core that this is a spinning loop. */
static inline void clock_relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#endif
