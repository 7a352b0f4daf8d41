// The C ABI of pools, weights and the kernels that work row by row.
#include <algorithm>
#include <cstring>
#include <system_error>

#include "checks.h"

using namespace tokenweave;

namespace {

constexpr int MAX_THREADS = 1024;
// Rows of x that pass over the panels together: they stay in the last cache, a panel stays in the second.
// Each block reads all weights once. A smaller one reads them more often; a larger one loses its rows before
// the next panel.
constexpr int64_t ROW_BLOCK_BYTES = 1536 * 1024;
constexpr int64_t CACHE_LINE_BYTES = 64;
// Rows this far apart fall into one or two sets of a first-level cache, and a tile of them evicts itself: 64
// sets of 64 bytes repeat every 4096, and a set has 8 or 12 ways, which a tile's 12 rows share with the
// panel. Up to MAX_ALIAS_ROWS fit beside it, without a copy of x.
constexpr int64_t ALIAS_BYTES = 2048;
constexpr int64_t MAX_ALIAS_ROWS = 4;

const KernelTable* table_of(int isa) {
    static const KernelTable* const tables[] = {&baseline::table,   &avx2::table, &avx512::table,
                                                &avx512bf16::table, &amx::table,  &amx_emulated::table};
    if (isa < 0 || (isa > tw_best_isa() && isa != TW_AMX_EMULATED)) return nullptr;
    return tables[isa];
}

int64_t rows_of_block(int64_t row_bytes) {
    const int64_t rows = ROW_BLOCK_BYTES / std::max<int64_t>(1, row_bytes);
    const int64_t tile = rows < LARGE_ROW_TILE ? ROW_TILE : LARGE_ROW_TILE;
    return std::max<int64_t>(ROW_TILE, rows / tile * tile);
}

// Copies x to rows that do not alias: with a cache line between them, each begins in the set after the last
// one's.
void spread_rows(Pool& pool, LinearArgs& args) {
    const int64_t size = element_bytes(args.dtype);
    const int64_t stride = div_up(args.k * size, CACHE_LINE_BYTES) * CACHE_LINE_BYTES + CACHE_LINE_BYTES;
    pool.reserve(args.m * stride);
    char* const rows = pool.caller_scratch();
    for (int64_t row = 0; row < args.m; ++row)
        std::memcpy(rows + row * stride, static_cast<const char*>(args.x) + row * args.ldx * size,
                    args.k * size);
    args.x = rows;
    args.ldx = stride / size;
}

int multiply_block(Pool& pool, LinearArgs& args) {
    const int64_t size = element_bytes(args.dtype);
    if (args.m > MAX_ALIAS_ROWS && args.ldx * size % ALIAS_BYTES == 0) {
        try {
            spread_rows(pool, args);
        } catch (const std::bad_alloc&) {
            return TW_ERROR_OUT_OF_MEMORY;
        }
    }
    const int64_t min_panels = div_up(MIN_PART_BYTES, std::max<int64_t>(1, args.k * size * PANEL));
    const auto kernel = pool.kernels().dense.linear;
    run_range(pool, div_up(args.n, PANEL), min_panels,
              [&](int64_t first, int64_t last, char*) { kernel(args, first, last); });
    return TW_OK;
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
    if (!__builtin_cpu_supports("avx512bf16")) return TW_AVX512;
    return tw_amx_state() == TW_AMX_READY ? TW_AMX : TW_AVX512_BF16;
}

int tw_pool_create(int num_threads, int isa, tw_pool** pool) {
    const KernelTable* table = table_of(isa);
    if (!pool || num_threads < 1 || num_threads > MAX_THREADS) return TW_ERROR_INVALID_ARGUMENT;
    if (!table) return TW_ERROR_UNSUPPORTED;
    try {
        *pool = new tw_pool(num_threads, *table);
    } catch (const std::bad_alloc&) {
        return TW_ERROR_OUT_OF_MEMORY;
    } catch (const std::system_error&) {
        return TW_ERROR_OUT_OF_MEMORY;  // no more threads
    }
    return TW_OK;
}

void tw_pool_destroy(tw_pool* pool) { delete pool; }

int64_t tw_packed_size_bytes(int64_t n, int64_t k, int dtype) {
    if (n < 0 || k < 0 || !is_dtype(dtype)) return TW_ERROR_INVALID_ARGUMENT;
    const int64_t words = dtype == TW_FLOAT32 ? k : div_up(k, 2);
    return div_up(n, PANEL) * words * PANEL * 4;
}

int tw_pack(tw_pool* pool, const void* weight, int64_t ldw, int weight_dtype, int64_t n, int64_t k,
            void* packed, int dtype) {
    if (!pool || n < 0 || k < 0 || ldw < k || !is_dtype(weight_dtype) || !is_dtype(dtype))
        return TW_ERROR_INVALID_ARGUMENT;
    const PackArgs args{weight, ldw, n, k, weight_dtype, dtype, packed};
    const auto kernel = pool->pool.kernels().dense.pack;
    run_range(pool->pool, div_up(n, PANEL), 1,
              [&](int64_t first, int64_t last, char*) { kernel(args, first, last); });
    return TW_OK;
}

int tw_linear(tw_pool* pool, const void* x, int64_t ldx, const void* packed, const float* bias, void* y,
              int64_t ldy, int64_t m, int64_t n, int64_t k, int dtype, int out_dtype) {
    if (!pool || m < 0 || n < 0 || k < 0 || ldx < k || ldy < n || !is_dtype(dtype) ||
        (out_dtype != dtype && out_dtype != TW_FLOAT32))
        return TW_ERROR_INVALID_ARGUMENT;
    LinearArgs args{x, ldx, packed, bias, y, ldy, m, n, k, dtype, out_dtype};
    const int64_t block_rows = rows_of_block(k * element_bytes(dtype));
    for (int64_t row = 0; row < m; row += block_rows) {
        args.x = static_cast<const char*>(x) + row * ldx * element_bytes(dtype);
        args.ldx = ldx;
        args.y = static_cast<char*>(y) + row * ldy * element_bytes(out_dtype);
        args.m = std::min(block_rows, m - row);
        const int status = multiply_block(pool->pool, args);
        if (status != TW_OK) return status;
    }
    return TW_OK;
}

int tw_gather_rows(tw_pool* pool, const void* packed, const int32_t* ids, int64_t m, int64_t first_row,
                   int64_t n, int64_t k, void* out, int dtype) {
    if (!pool || m < 0 || n < 0 || k < 0 || !is_dtype(dtype)) return TW_ERROR_INVALID_ARGUMENT;
    const GatherArgs args{packed, ids, first_row, n, k, out, dtype};
    const auto kernel = pool->pool.kernels().dense.gather_rows;
    run_range(pool->pool, m, rows_of_grain(k * 8),
              [&](int64_t first, int64_t last, char*) { kernel(args, first, last); });
    return TW_OK;
}

int tw_rms_norm(tw_pool* pool, const void* x, int64_t ldx, float* residual, int64_t ldr,
                const tw_residual_norms* norms, void* out, int64_t ldo, int64_t m, int64_t h, int dtype) {
    if (!pool || !norms || m < 0 || h < 0 || ldx < h || ldo < h || !is_dtype(dtype) ||
        (residual ? ldr < h : !norms->weight || norms->post_weight))
        return TW_ERROR_INVALID_ARGUMENT;
    const NormArgs args{x,   ldx, residual, ldr,        norms->weight, norms->post_weight,
                        out, ldo, h,        norms->eps, dtype};
    const auto kernel = pool->pool.kernels().rows.rms_norm;
    run_range(pool->pool, m, rows_of_grain(h),
              [&](int64_t first, int64_t last, char*) { kernel(args, first, last); });
    return TW_OK;
}

static int gate_and_mul(tw_pool* pool, void (*RowTable::*kernel_of)(const GateArgs&, int64_t, int64_t),
                        const void* gate_up, int64_t ldg, void* out, int64_t m, int64_t i, int dtype) {
    if (!pool || m < 0 || i < 0 || ldg < 2 * i || !is_dtype(dtype)) return TW_ERROR_INVALID_ARGUMENT;
    const GateArgs args{gate_up, ldg, out, i, dtype};
    const auto kernel = pool->pool.kernels().rows.*kernel_of;
    run_range(pool->pool, m, rows_of_grain(2 * i),
              [&](int64_t first, int64_t last, char*) { kernel(args, first, last); });
    return TW_OK;
}

int tw_silu_and_mul(tw_pool* pool, const void* gate_up, int64_t ldg, void* out, int64_t m, int64_t i,
                    int dtype) {
    return gate_and_mul(pool, &RowTable::silu_and_mul, gate_up, ldg, out, m, i, dtype);
}

int tw_gelu_tanh_and_mul(tw_pool* pool, const void* gate_up, int64_t ldg, void* out, int64_t m, int64_t i,
                         int dtype) {
    return gate_and_mul(pool, &RowTable::gelu_tanh_and_mul, gate_up, ldg, out, m, i, dtype);
}
