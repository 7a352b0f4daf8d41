#include "timing/lane.h"

#include <math.h>

/* A slot of the windows: the window's number, and how many ns the lane had been busy when it began (18
 * minutes before that wraps; what is read is the difference over two windows). */
#define INDEX_BITS 24
#define BUSY_BITS 40
#define INDEX_MASK ((1u << INDEX_BITS) - 1)
#define BUSY_MASK ((1ull << BUSY_BITS) - 1)
#define LATE_WINDOWS \
    4096u /* an arrival this much behind the newest window comes from a clock that lags, not from a wrap */

static uint64_t load(const uint64_t* field) { return __atomic_load_n(field, __ATOMIC_RELAXED); }

static void add(uint64_t* field, uint64_t value) { __atomic_fetch_add(field, value, __ATOMIC_RELAXED); }

static uint64_t sum_saturated(uint64_t left, uint64_t right) {
    return left > UINT64_MAX - right ? UINT64_MAX : left + right;
}

lane_rate lane_rate_of(double bandwidth_gbps) {
    /* Rounded up, so that transfers which take whole nanoseconds are not cut down to one less. */
    return bandwidth_gbps > 0 ? (lane_rate)ceil(ldexp(1.0, 32) / bandwidth_gbps) : 0;
}

/* Whole nanoseconds of a transfer. The fraction is left on the lane, until it makes one more. */
static uint64_t occupancy_ns(emx_lane* lane, lane_rate rate, uint64_t size_bytes) {
    unsigned __int128 product = (unsigned __int128)rate * size_bytes;
    uint32_t fraction = (uint32_t)product;
    uint32_t before = __atomic_fetch_add(&lane->fraction, fraction, __ATOMIC_RELAXED);
    unsigned __int128 whole = (product >> 32) + ((uint32_t)(before + fraction) < before);
    return whole > UINT64_MAX ? UINT64_MAX : (uint64_t)whole;
}

/* Busy time up to `time_ns`, which may not lie before the last arrival: what is not over yet is one stretch
 * up to free.
 */
static uint64_t busy_until(uint64_t busy_ns, uint64_t free_ns, uint64_t time_ns) {
    uint64_t ahead_ns = free_ns > time_ns ? free_ns - time_ns : 0;
    return busy_ns > ahead_ns ? busy_ns - ahead_ns : 0;
}

static uint64_t window_of(uint64_t now_ns) { return now_ns / EMX_LINK_WINDOW_NS + 1; }

static uint64_t window_begin_ns(uint64_t window) {
    return window > 0 ? (window - 1) * EMX_LINK_WINDOW_NS : 0;
}

static uint32_t windows_ahead(uint64_t slot, uint64_t window) {
    return ((uint32_t)(slot >> BUSY_BITS) - (uint32_t)window) & INDEX_MASK;
}

/* Notes how busy the lane had been when this window and the one before began. Nothing arrived in between
 * (else it would be noted already), so that both can still be told. Costs a load and a compare unless the
 * window is new. */
static void note_windows(emx_lane* lane, uint64_t now_ns) {
    uint64_t window = window_of(now_ns);
    uint32_t ahead = windows_ahead(load(&lane->windows[window % 4]), window);
    if (ahead < LATE_WINDOWS) return;
    uint64_t busy_ns = load(&lane->busy_ns[0]) + load(&lane->busy_ns[1]), free_ns = load(&lane->free_ns);
    for (uint64_t i = window - 1; i <= window; i++) {
        uint64_t* slot = &lane->windows[i % 4];
        if (windows_ahead(load(slot), i) < LATE_WINDOWS) continue;
        uint64_t busy = i > 0 ? busy_until(busy_ns, free_ns, window_begin_ns(i)) : 0;
        __atomic_store_n(slot, (i & INDEX_MASK) << BUSY_BITS | (busy & BUSY_MASK), __ATOMIC_RELAXED);
    }
}

lane_slot lane_reserve(emx_lane* lane, lane_rate rate, emx_direction direction, uint64_t size_bytes,
                       uint64_t now_ns, uint64_t most_ahead_ns) {
    note_windows(lane, now_ns);
    uint64_t busy_ns = occupancy_ns(lane, rate, size_bytes);
    uint64_t free_ns = load(&lane->free_ns), start_ns, release_ns;
    do {
        start_ns = now_ns > free_ns || free_ns - now_ns > most_ahead_ns ? now_ns : free_ns;
        release_ns = sum_saturated(start_ns, busy_ns);
    } while (!__atomic_compare_exchange_n(&lane->free_ns, &free_ns, release_ns, true, __ATOMIC_RELAXED,
                                          __ATOMIC_RELAXED));
    if (load(&lane->latest_ns) < now_ns) __atomic_store_n(&lane->latest_ns, now_ns, __ATOMIC_RELAXED);
    if (start_ns > now_ns) add(&lane->queued_ns, start_ns - now_ns);
    add(&lane->bytes[direction], size_bytes);
    add(&lane->transfers[direction], 1);
    add(&lane->busy_ns[direction], busy_ns);
    return (lane_slot){start_ns, release_ns};
}

void lane_restart(emx_lane* lane) {
    __atomic_store_n(&lane->free_ns, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&lane->latest_ns, 0, __ATOMIC_RELAXED);
    for (int i = 0; i < 4; i++) __atomic_store_n(&lane->windows[i], 0, __ATOMIC_RELAXED);
}

double lane_utilisation(emx_lane* lane, uint64_t now_ns) {
    uint64_t free_ns = load(&lane->free_ns);
    if (free_ns > now_ns && free_ns - now_ns >= EMX_LINK_WINDOW_NS) return 1;
    note_windows(lane, now_ns);
    uint64_t window = window_of(now_ns), slot = load(&lane->windows[(window - 1) % 4]);
    if (windows_ahead(slot, window - 1) != 0) return free_ns > now_ns ? 1 : 0;
    uint64_t busy_ns = busy_until(load(&lane->busy_ns[0]) + load(&lane->busy_ns[1]), free_ns, now_ns);
    uint64_t recent_ns = (busy_ns - slot) & BUSY_MASK;
    uint64_t past_ns = now_ns - window_begin_ns(window) + EMX_LINK_WINDOW_NS;
    if (recent_ns > BUSY_MASK / 2) return 0; /* two fields of different moments */
    return recent_ns < past_ns ? (double)recent_ns / (double)past_ns : 1;
}
