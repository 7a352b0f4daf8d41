/* Measuring what priced accesses take, with less than a caller in another language would add. */
#ifndef EMUCXL_MEASURE_H
#define EMUCXL_MEASURE_H

#include "context.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Times `num_samples` calls of emx_read, one after the other, each of `size_bytes` at a random line of the
 * allocation that `pointer` points to, `gap_ns` apart (spinning). samples_ns[i] is what call i took, on this
 * thread's own clock, less what reading that clock takes. For a context on the real clock. */
EMX_API emx_status emx_measure_reads(emx_context* context, const void* pointer, size_t size_bytes,
                                     uint64_t gap_ns, uint32_t num_samples, double* samples_ns);

#ifdef __cplusplus
}
#endif
#endif
