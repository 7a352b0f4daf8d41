#include "clock.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <sys/prctl.h>
#include <time.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <x86intrin.h>
#endif

#define MEASURE_NS 1000000ull

static pthread_once_t once = PTHREAD_ONCE_INIT;
static bool counter_is_usable;
static double ticks_per_ns = 1;

uint64_t clock_read_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000ull + (uint64_t)time.tv_nsec;
}

static void sleep_until_stopped(uint64_t deadline_ns, const stop_flag* stop) {
    while (!stop_is_set(stop) && clock_read_ns() < deadline_ns) stop_sleep_until(stop, deadline_ns);
}

void clock_sleep_until(uint64_t deadline_ns, const stop_flag* stop) {
    struct timespec time = {.tv_sec = (time_t)(deadline_ns / 1000000000ull),
                            .tv_nsec = (long)(deadline_ns % 1000000000ull)};
    int slack_ns = prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0);
    if (slack_ns > 1) prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);
    if (stop != NULL) sleep_until_stopped(deadline_ns, stop);
    else
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL) == EINTR) {}
    if (slack_ns > 1) prctl(PR_SET_TIMERSLACK, slack_ns, 0, 0, 0);
}

#if defined(__x86_64__)
/* Constant rate, and running in every power state: the "invariant TSC" bit of leaf 0x80000007. */
static bool has_invariant_counter(void) {
    unsigned int a, b, c, d;
    return __get_cpuid(0x80000007, &a, &b, &c, &d) != 0 && (d & (1u << 8)) != 0;
}

static uint64_t read_counter(void) { return __rdtsc(); }
#else
static bool has_invariant_counter(void) { return false; }

static uint64_t read_counter(void) { return 0; }
#endif

static void measure(void) {
    if (!has_invariant_counter()) return;
    uint64_t begin_ns = clock_read_ns(), begin = read_counter(), end_ns;
    while ((end_ns = clock_read_ns()) - begin_ns < MEASURE_NS) clock_relax();
    uint64_t passed = read_counter() - begin;
    double rate = (double)passed / (double)(end_ns - begin_ns);
    if (rate < 0.01 || rate > 100) return; /* emulated, or stepped while we looked */
    ticks_per_ns = rate;
    counter_is_usable = true;
}

double clock_ticks_per_ns(void) {
    pthread_once(&once, measure);
    return ticks_per_ns;
}

uint64_t clock_ticks(void) {
    pthread_once(&once, measure);
    return counter_is_usable ? read_counter() : clock_read_ns();
}

uint64_t clock_ticks_in_order(void) {
#if defined(__x86_64__)
    _mm_lfence(); /* all that came before has ended ... */
    uint64_t ticks = clock_ticks();
    _mm_lfence(); /* ... and nothing that comes after has begun */
    return ticks;
#else
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return clock_ticks();
#endif
}

uint32_t clock_usable_cores(void) {
    cpu_set_t usable;
    if (sched_getaffinity(0, sizeof usable, &usable) != 0) return 1;
    int count = CPU_COUNT(&usable);
    return count > 0 ? (uint32_t)count : 1;
}
