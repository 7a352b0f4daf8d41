// What the C ABI's functions share: argument checks, and the split of rows among workers.
#pragma once

#include <new>

#include "kernels.h"
#include "pool.h"
#include "tokenweave.h"

struct tw_pool {
    tokenweave::Pool pool;
    tw_pool(int num_threads, const tokenweave::KernelTable& kernels) : pool(num_threads, kernels) {}
};

namespace tokenweave {

inline bool is_dtype(int dtype) { return dtype == TW_FLOAT32 || dtype == TW_BFLOAT16; }
inline int64_t element_bytes(int dtype) { return dtype == TW_FLOAT32 ? 4 : 2; }
inline int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Work below these sizes is done before a second worker would have started on it: 64 KiB of float32 or of
// packed weights, some 6 us where a core reads 10 GB/s.
constexpr int64_t MIN_PART_ELEMENTS = 16 * 1024;
constexpr int64_t MIN_PART_BYTES = 64 * 1024;

inline int64_t rows_of_grain(int64_t row_elements) {
    return row_elements > MIN_PART_ELEMENTS ? 1 : MIN_PART_ELEMENTS / (row_elements > 0 ? row_elements : 1);
}

// Panels of packed weights that are worth a worker.
inline int64_t panels_of_grain(int64_t panel_bytes) {
    return div_up(MIN_PART_BYTES, panel_bytes > 0 ? panel_bytes : 1);
}

// Calls part(first, last, scratch) over [0, count) in parts of at least `grain`, a few to each worker.
template <typename Part>
void run_range(Pool& pool, int64_t count, int64_t grain, const Part& part, int64_t parts_per_worker = 4) {
    struct Context {
        const Part& part;
        int64_t count, step;
    };
    int64_t step = div_up(count, pool.num_threads() * parts_per_worker);
    if (step < grain) step = grain;
    const Context context{part, count, step};
    const auto task = [](const void* opaque, char* scratch, int64_t item) {
        const Context& c = *static_cast<const Context*>(opaque);
        const int64_t first = item * c.step;
        c.part(first, first + c.step < c.count ? first + c.step : c.count, scratch);
    };
    pool.run(task, &context, div_up(count, step));
}

}  // namespace tokenweave
