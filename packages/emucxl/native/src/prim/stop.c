#include "stop.h"

#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

void stop_set(stop_flag* flag) {
    atomic_store_explicit(&flag->is_set, 1, memory_order_release);
    syscall(SYS_futex, &flag->is_set, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, INT_MAX, NULL, NULL, 0);
}

void stop_sleep_until(const stop_flag* flag, uint64_t deadline_ns) {
    struct timespec time = {.tv_sec = (time_t)(deadline_ns / 1000000000ull),
                            .tv_nsec = (long)(deadline_ns % 1000000000ull)};
    /* Of this kind of wait alone the time is when to end, and not how long to take. */
    syscall(SYS_futex, &flag->is_set, FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, 0, &time, NULL,
            FUTEX_BITSET_MATCH_ANY);
}
