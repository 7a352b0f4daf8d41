// The C ABI of pools, weights and the kernels that work row by row.
#include <system_error>

#include "checks.h"

using namespace tokenweave;

namespace {

constexpr int MAX_THREADS = 1024;
// Work below these sizes is done before a second worker would have started on it.
constexpr int64_t MIN_PART_ELEMENTS = 16 * 1024;
constexpr int64_t MIN_PART_BYTES = 64 * 1024;
// Rows of x that pass over a panel together: half of a second-level cache, the other half is the panel's.
constexpr int64_t ROW_BLOCK_BYTES = 384 * 1024;

const KernelTable *table_of(int isa) {
    if (isa < 0 || isa > tw_best_isa()) return nullptr;
    static const KernelTable *const tables[] = {&baseline::table, &avx2::table, &avx512::table, &avx512bf16::table};
    return tables[isa];
}

int64_t rows_of_grain(int64_t row_elements) {
    return row_elements > MIN_PART_ELEMENTS ? 1 : MIN_PART_ELEMENTS / (row_elements > 0 ? row_elements : 1);
}

}  // namespace

int tw_best_isa(void) {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("bmi2"))
        return TW_BASELINE;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl") ||
        !__builtin_cpu_supports("avx512cd"))
        return TW_AVX2;
    return __builtin_cpu_supports("avx512bf16") ? TW_AVX512_BF16 : TW_AVX512;
}

int tw_pool_create(int num_threads, int isa, tw_pool **pool) {
    const KernelTable *table = table_of(isa);
    if (!pool || num_threads < 1 || num_threads > MAX_THREADS) return TW_ERROR_INVALID_ARGUMENT;
    if (!table) return TW_ERROR_UNSUPPORTED;
    try {
        *pool = new tw_pool(num_threads, *table);
    } catch (const std::bad_alloc &) {
        return TW_ERROR_OUT_OF_MEMORY;
    } catch (const std::system_error &) {
        return TW_ERROR_OUT_OF_MEMORY;  // no more threads
    }
    return TW_OK;
}

void tw_pool_destroy(tw_pool *pool) { delete pool; }

int64_t tw_packed_size_bytes(int64_t n, int64_t k, int dtype) {
    if (n < 0 || k < 0 || !is_dtype(dtype)) return TW_ERROR_INVALID_ARGUMENT;
    const int64_t words = dtype == TW_FLOAT32 ? k : div_up(k, 2);
    return div_up(n, PANEL) * words * PANEL * 4;
}

int tw_pack(tw_pool *pool, const void *weight, int64_t ldw, int weight_dtype, int64_t n, int64_t k, void *packed,
            int dtype) {
    if (!pool || n < 0 || k < 0 || ldw < k || !is_dtype(weight_dtype) || !is_dtype(dtype))
        return TW_ERROR_INVALID_ARGUMENT;
    const PackArgs args{weight, ldw, n, k, weight_dtype, dtype, packed};
    const auto kernel = pool->pool.kernels().pack;
    run_range(pool->pool, div_up(n, PANEL), 1, [&](int64_t first, int64_t last, char *) { kernel(args, first, last); });
    return TW_OK;
}

int tw_linear(tw_pool *pool, const void *x, int64_t ldx, const void *packed, const float *bias, void *y, int64_t ldy,
              int64_t m, int64_t n, int64_t k, int dtype, int out_dtype) {
    if (!pool || m < 0 || n < 0 || k < 0 || ldx < k || ldy < n || !is_dtype(dtype) ||
        (out_dtype != dtype && out_dtype != TW_FLOAT32))
        return TW_ERROR_INVALID_ARGUMENT;
    const LinearArgs args{x, ldx, packed, bias, y, ldy, m, n, k, dtype, out_dtype};
    const auto kernel = pool->pool.kernels().linear;
    const int64_t row_bytes = k > 0 ? k * element_bytes(dtype) : 1;
    const int64_t block_rows = ROW_BLOCK_BYTES / row_bytes / 12 * 12 + 12;
    const int64_t num_panels = div_up(n, PANEL), min_panels = div_up(MIN_PART_BYTES, row_bytes * PANEL);
    for (int64_t first_row = 0; first_row < m; first_row += block_rows) {
        const int64_t last_row = first_row + block_rows < m ? first_row + block_rows : m;
        run_range(pool->pool, num_panels, min_panels, [&](int64_t first, int64_t last, char *) {
            kernel(args, first_row, last_row, first, last);
        });
    }
    return TW_OK;
}

int tw_gather_rows(tw_pool *pool, const void *packed, const int32_t *ids, int64_t m, int64_t first_row, int64_t n,
                   int64_t k, void *out, int dtype) {
    if (!pool || m < 0 || n < 0 || k < 0 || !is_dtype(dtype)) return TW_ERROR_INVALID_ARGUMENT;
    const GatherArgs args{packed, ids, first_row, n, k, out, dtype};
    const auto kernel = pool->pool.kernels().gather_rows;
    run_range(pool->pool, m, rows_of_grain(k * 8), [&](int64_t first, int64_t last, char *) {
        kernel(args, first, last);
    });
    return TW_OK;
}

int tw_rms_norm(tw_pool *pool, const void *x, int64_t ldx, void *residual, int64_t ldr, const void *weight, void *out,
                int64_t ldo, int64_t m, int64_t h, float eps, int dtype) {
    if (!pool || m < 0 || h < 0 || ldx < h || ldo < h || (residual && ldr < h) || !is_dtype(dtype))
        return TW_ERROR_INVALID_ARGUMENT;
    const NormArgs args{x, ldx, residual, ldr, weight, out, ldo, h, eps, dtype};
    const auto kernel = pool->pool.kernels().rms_norm;
    run_range(pool->pool, m, rows_of_grain(h), [&](int64_t first, int64_t last, char *) { kernel(args, first, last); });
    return TW_OK;
}

int tw_silu_and_mul(tw_pool *pool, const void *gate_up, int64_t ldg, void *out, int64_t m, int64_t i, int dtype) {
    if (!pool || m < 0 || i < 0 || ldg < 2 * i || !is_dtype(dtype)) return TW_ERROR_INVALID_ARGUMENT;
    const GateArgs args{gate_up, ldg, out, i, dtype};
    const auto kernel = pool->pool.kernels().silu_and_mul;
    run_range(pool->pool, m, rows_of_grain(2 * i), [&](int64_t first, int64_t last, char *) {
        kernel(args, first, last);
    });
    return TW_OK;
}
