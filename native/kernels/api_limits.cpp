// Measures what the machine can do at most, with every thread of a pool.
#include <sys/mman.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "checks.h"

using namespace tokenweave;

namespace {

constexpr size_t STREAM_BYTES = size_t{256} << 20;  // well past the last cache
constexpr size_t STREAM_PART_BYTES = size_t{1} << 20;
constexpr size_t HUGE_PAGE_BYTES = size_t{2} << 20;
constexpr int64_t PARTS = 256;

// The best of the passes that fit in `seconds`, in units of 1e9 per second: a limit is what was once reached.
template <typename Part>
double best_rate(Pool &pool, double seconds, const Part &part) {
    using Clock = std::chrono::steady_clock;
    const auto elapsed = [](Clock::time_point since) {
        return std::chrono::duration<double>(Clock::now() - since).count();
    };
    const double work_of_part = part(0);
    double best = 0;
    const Clock::time_point start = Clock::now();
    do {
        const Clock::time_point pass = Clock::now();
        run_range(pool, PARTS, 1, [&](int64_t first, int64_t last, char *) {
            for (int64_t i = first; i < last; ++i) part(i);
        });
        const double rate = work_of_part * PARTS / elapsed(pass) * 1e-9;
        if (rate > best) best = rate;
    } while (elapsed(start) < seconds);
    return best;
}

}  // namespace

int tw_measure_limit(tw_pool *pool, int limit, double seconds, double *value) {
    if (!pool || !value || !(seconds >= 0)) return TW_ERROR_INVALID_ARGUMENT;
    const KernelTable &kernels = pool->pool.kernels();
    if (limit == TW_LIMIT_FMA_GFLOPS) {
        *value = best_rate(pool->pool, seconds, [&](int64_t) { return kernels.spin_fma(); });
    } else if (limit == TW_LIMIT_BF16_GFLOPS) {
        *value = best_rate(pool->pool, seconds, [&](int64_t) { return kernels.spin_bf16(); });
    } else if (limit == TW_LIMIT_READ_GBPS) {
        const std::unique_ptr<char, decltype(&std::free)> memory(
            static_cast<char *>(std::aligned_alloc(HUGE_PAGE_BYTES, STREAM_BYTES)), &std::free);
        if (!memory) return TW_ERROR_OUT_OF_MEMORY;
        madvise(memory.get(), STREAM_BYTES, MADV_HUGEPAGE);  // as weights are; a refusal costs only speed
        std::memset(memory.get(), 1, STREAM_BYTES);
        *value = best_rate(pool->pool, seconds, [&](int64_t part) {
            return kernels.read_bytes(memory.get() + part * STREAM_PART_BYTES, STREAM_PART_BYTES);
        });
    } else {
        return TW_ERROR_INVALID_ARGUMENT;
    }
    return TW_OK;
}
