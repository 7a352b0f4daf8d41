#include "emucxl/measure.h"

#include <stdlib.h>

#include "calibration/stopwatch.h"
#include "fail.h"
#include "prim/cache.h"
#include "prim/clock.h"

static uint64_t next_random(uint64_t* state) {
    *state = *state * 6364136223846793005ull + 1442695040888963407ull;
    return *state >> 33;
}

static void pause_for(uint64_t gap_ns) {
    if (gap_ns == 0) return;
    for (uint64_t end_ns = clock_read_ns() + gap_ns; clock_read_ns() < end_ns;) clock_relax();
}

emx_status emx_measure_reads(emx_context* context, const void* pointer, size_t size_bytes, uint64_t gap_ns,
                             uint32_t num_samples, double* samples_ns) {
    if (samples_ns == NULL || size_bytes == 0)
        return fail(EMX_E_INVALID, "got no place for samples, or no bytes to read");
    emx_allocation allocation;
    emx_status status = emx_query(context, pointer, &allocation);
    if (status != EMX_OK) return status;
    if (size_bytes > allocation.size_bytes)
        return fail(EMX_E_OUT_OF_BOUNDS, "got reads of %zu bytes; the allocation has %llu", size_bytes,
                    (unsigned long long)allocation.size_bytes);
    uint64_t num_lines = (allocation.size_bytes - size_bytes) / CACHE_LINE_BYTES + 1, random = 1;
    char* target = malloc(size_bytes);
    if (target == NULL) return fail(EMX_E_NO_MEMORY, "no memory for %zu bytes", size_bytes);
    double overhead_ns = stopwatch_overhead_ns();
    for (uint32_t i = 0; i < num_samples && status == EMX_OK; i++) {
        size_t offset = next_random(&random) % num_lines * CACHE_LINE_BYTES;
        pause_for(gap_ns);
        uint64_t begin = clock_ticks_in_order();
        status = emx_read(context, allocation.base, offset, target, size_bytes);
        samples_ns[i] = stopwatch_ns(begin) - overhead_ns;
    }
    free(target);
    return status;
}
