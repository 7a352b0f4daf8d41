/* A request to stop: one thread makes it, another looks for it now and then, or is woken by it. */
#ifndef EMX_PRIM_STOP_H
#define EMX_PRIM_STOP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* All zero: nobody asked. It is asked once and never taken back. */
typedef struct stop_flag {
    _Atomic uint32_t is_set;
} stop_flag;

/* NULL is a flag that nobody can set. */
static inline bool stop_is_set(const stop_flag* flag) {
    return flag != NULL && atomic_load_explicit(&flag->is_set, memory_order_acquire) != 0;
}

/* Wakes who sleeps on it, too. */
void stop_set(stop_flag* flag);

/* Sleeps until `deadline_ns` of CLOCK_MONOTONIC, or until the flag is set, or now and then for no reason. */
void stop_sleep_until(const stop_flag* flag, uint64_t deadline_ns);

#endif
