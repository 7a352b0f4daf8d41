#include "timing/clock.h"

#include "prim/clock.h"
#include "timing/transfer.h"

/* How much before a deadline a sleep should end. Sleeps overshoot by what the machine's timers and scheduler
 * make of it, so that each one teaches: the margin follows their high end (about the 95th percentile), as the
 * spinning that it costs is less bad than a deadline missed. Starts at 60 us. */
static _Atomic uint32_t sleep_margin_ns = 60000;
#define LEAST_MARGIN_NS 5000
#define MOST_MARGIN_NS 200000

#define SHORTEST_SLEEP_NS 5000 /* a system call and a wake-up cost about as much */
#define LAST_SPIN_NS 200       /* no pausing in the end: a pause may take 50 ns */

static void learn_overshoot(uint64_t late_ns) {
    uint32_t margin_ns = atomic_load_explicit(&sleep_margin_ns, memory_order_relaxed);
    uint64_t capped_ns = late_ns < MOST_MARGIN_NS ? late_ns : MOST_MARGIN_NS;
    /* Up by a quarter of the miss, down by a 64th: one late sleep counts as much as 16 early ones. */
    uint64_t next_ns = capped_ns > margin_ns ? margin_ns + (capped_ns - margin_ns) / 4
                                             : margin_ns - (margin_ns - capped_ns) / 64;
    if (next_ns < LEAST_MARGIN_NS) next_ns = LEAST_MARGIN_NS;
    atomic_store_explicit(&sleep_margin_ns, (uint32_t)next_ns, memory_order_relaxed);
}

static void spin_until_ticks(uint64_t end, double ticks_per_ns) {
    int64_t last = (int64_t)(LAST_SPIN_NS * ticks_per_ns), left;
    while ((left = (int64_t)(end - clock_ticks())) > 0)
        if (left > last) clock_relax();
}

static void spin_until(uint64_t deadline_ns, uint64_t now_ns) {
    double per_ns = clock_ticks_per_ns();
    spin_until_ticks(clock_ticks() + (uint64_t)((double)(deadline_ns - now_ns) * per_ns), per_ns);
}

uint64_t emx_now_ns(void) { return clock_read_ns(); }

static void wait_until(uint64_t deadline_ns, const stop_flag* stop) {
    uint64_t now_ns = clock_read_ns();
    if (now_ns >= deadline_ns) return;
    uint64_t margin_ns = atomic_load_explicit(&sleep_margin_ns, memory_order_relaxed);
    if (deadline_ns - now_ns > margin_ns + SHORTEST_SLEEP_NS) {
        uint64_t wake_ns = deadline_ns - margin_ns;
        clock_sleep_until(wake_ns, stop);
        if (stop_is_set(stop)) return;
        now_ns = clock_read_ns();
        learn_overshoot(now_ns - wake_ns);
        if (now_ns >= deadline_ns) return;
    }
    spin_until(deadline_ns, now_ns);
}

void emx_wait_until(uint64_t deadline_ns) { wait_until(deadline_ns, NULL); }

void wait_since(uint64_t entry_ticks, uint64_t duration_ns, uint64_t deadline_ns, const stop_flag* stop) {
    uint64_t margin_ns = atomic_load_explicit(&sleep_margin_ns, memory_order_relaxed);
    if (duration_ns > margin_ns + SHORTEST_SLEEP_NS) {
        wait_until(deadline_ns, stop);
        return;
    }
    double per_ns = clock_ticks_per_ns();
    spin_until_ticks(entry_ticks + (uint64_t)((double)duration_ns * per_ns), per_ns);
}

void wait_roughly_until(uint64_t deadline_ns, const stop_flag* stop) {
    uint64_t now_ns = clock_read_ns();
    if (now_ns >= deadline_ns) return;
    if (deadline_ns - now_ns > SHORTEST_SLEEP_NS) clock_sleep_until(deadline_ns, stop);
    else spin_until(deadline_ns, now_ns);
}

/* Acquire here, release in model_clock_reach: who reads a time sees what was done before the clock reached
 * it. */
uint64_t model_clock_now(const model_clock* clock) {
    return clock->is_virtual ? atomic_load_explicit(&clock->now_ns, memory_order_acquire) : clock_read_ns();
}

void model_clock_reach(model_clock* clock, uint64_t time_ns) {
    if (!clock->is_virtual) {
        emx_wait_until(time_ns);
        return;
    }
    uint64_t now_ns = atomic_load_explicit(&clock->now_ns, memory_order_relaxed);
    while (now_ns < time_ns &&
           !atomic_compare_exchange_weak_explicit(&clock->now_ns, &now_ns, time_ns, memory_order_acq_rel,
                                                  memory_order_relaxed)) {}
}
