#include "calibration/stopwatch.h"

#include <stdlib.h>

#include "prim/clock.h"

#define NUM_SAMPLES 101

double stopwatch_ns(uint64_t begin) {
    return (double)(clock_ticks_in_order() - begin) / clock_ticks_per_ns();
}

double stopwatch_overhead_ns(void) {
    double samples[NUM_SAMPLES];
    for (int i = 0; i < NUM_SAMPLES; i++) samples[i] = stopwatch_ns(clock_ticks_in_order());
    return quantile(samples, NUM_SAMPLES, 0.5);
}

static int compare(const void* left, const void* right) {
    double a = *(const double*)left, b = *(const double*)right;
    return (a > b) - (a < b);
}

double quantile(double* values, size_t num_values, double share) {
    qsort(values, num_values, sizeof *values, compare);
    return values[(size_t)(share * (double)(num_values - 1) + 0.5)];
}
