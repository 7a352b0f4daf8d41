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
double best_rate(Pool& pool, double seconds, const Part& part) {
    using Clock = std::chrono::steady_clock;
    const auto elapsed = [](Clock::time_point since) {
        return std::chrono::duration<double>(Clock::now() - since).count();
    };
    const double work_of_part = part(0);
    double best = 0;
    const Clock::time_point start = Clock::now();
    do {
        const Clock::time_point pass = Clock::now();
        run_range(pool, PARTS, 1, [&](int64_t first, int64_t last, char*) {
            for (int64_t i = first; i < last; ++i) part(i);
        });
        const double rate = work_of_part * PARTS / elapsed(pass) * 1e-9;
        if (rate > best) best = rate;
    } while (elapsed(start) < seconds);
    return best;
}

using Memory = std::unique_ptr<char, decltype(&std::free)>;

Memory stream_memory() {
    Memory memory(static_cast<char*>(std::aligned_alloc(HUGE_PAGE_BYTES, STREAM_BYTES)), &std::free);
    if (memory) {
        madvise(memory.get(), STREAM_BYTES, MADV_HUGEPAGE);  // as weights are; a refusal costs only speed
        std::memset(memory.get(), 1, STREAM_BYTES);
    }
    return memory;
}

// The better of writing through the caches and past them.
double best_mix(Pool& pool, char* memory, double seconds, int update_ratio) {
    const size_t size_bytes = STREAM_PART_BYTES / (3 + update_ratio) / 64 * 64;
    double best = 0;
    for (const bool past_caches : {false, true}) {
        const double rate = best_rate(pool, seconds / 2, [&](int64_t part) {
            return pool.kernels().limits.mix_bytes(
                {memory + part * STREAM_PART_BYTES, size_bytes, update_ratio, past_caches});
        });
        if (rate > best) best = rate;
    }
    return best;
}

}  // namespace

int tw_measure_limit(tw_pool* pool, int limit, double seconds, double* value) {
    if (!pool || !value || !(seconds >= 0)) return TW_ERROR_INVALID_ARGUMENT;
    const LimitsTable& kernels = pool->pool.kernels().limits;
    if (limit == TW_LIMIT_FMA_GFLOPS) {
        *value = best_rate(pool->pool, seconds, [&](int64_t) { return kernels.spin_fma(); });
    } else if (limit == TW_LIMIT_BF16_GFLOPS) {
        *value = best_rate(pool->pool, seconds, [&](int64_t) { return kernels.spin_bf16(); });
    } else if (limit == TW_LIMIT_READ_GBPS) {
        const Memory memory = stream_memory();
        if (!memory) return TW_ERROR_OUT_OF_MEMORY;
        *value = best_rate(pool->pool, seconds, [&](int64_t part) {
            return kernels.read_bytes(memory.get() + part * STREAM_PART_BYTES, STREAM_PART_BYTES);
        });
    } else if (limit == TW_LIMIT_FUSED_F32_GBPS || limit == TW_LIMIT_FUSED_BF16_GBPS) {
        const Memory memory = stream_memory();
        if (!memory) return TW_ERROR_OUT_OF_MEMORY;
        *value = best_mix(pool->pool, memory.get(), seconds, limit == TW_LIMIT_FUSED_F32_GBPS ? 1 : 2);
    } else {
        return TW_ERROR_INVALID_ARGUMENT;
    }
    return TW_OK;
}
