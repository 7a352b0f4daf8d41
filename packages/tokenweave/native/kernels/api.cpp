// The C ABI of pools, weights and the kernels that work row by row.
#include <algorithm>
#include <cstring>
#include <system_error>

#include "checks.h"
#include "gated.h"

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
// one's. They lie behind the `used` bytes of the scratch.
void spread_rows(Pool& pool, LinearArgs& args, int64_t used) {
    const int64_t size = element_bytes(args.dtype);
    const int64_t stride = div_up(args.k * size, CACHE_LINE_BYTES) * CACHE_LINE_BYTES + CACHE_LINE_BYTES;
    pool.reserve(used + args.m * stride);
    char* const rows = pool.caller_scratch() + used;
    for (int64_t row = 0; row < args.m; ++row)
        std::memcpy(rows + row * stride, static_cast<const char*>(args.x) + row * args.ldx * size,
                    args.k * size);
    args.x = rows;
    args.ldx = stride / size;
}

// Calls multiply(args) for blocks of the rows of `whole`, `scratch_bytes` being free in every worker's scratch.
template <typename Multiply>
int for_row_blocks(Pool& pool, const LinearArgs& whole, int64_t scratch_bytes, const Multiply& multiply) {
    const int64_t size = element_bytes(whole.dtype), out_size = element_bytes(whole.out_dtype);
    const int64_t block_rows = rows_of_block(whole.k * size);
    try {
        for (int64_t row = 0; row < whole.m; row += block_rows) {
            LinearArgs args = whole;
            args.x = static_cast<const char*>(whole.x) + row * whole.ldx * size;
            args.y = static_cast<char*>(whole.y) + row * whole.ldy * out_size;
            args.m = std::min(block_rows, whole.m - row);
            if (args.m > MAX_ALIAS_ROWS && args.ldx * size % ALIAS_BYTES == 0)
                spread_rows(pool, args, scratch_bytes);
            pool.reserve(scratch_bytes);
            multiply(args);
        }
    } catch (const std::bad_alloc&) {
        return TW_ERROR_OUT_OF_MEMORY;
    }
    return TW_OK;
}

int64_t panel_bytes_of(const LinearArgs& args) { return args.k * element_bytes(args.dtype) * PANEL; }

struct Gated {
    const void *gate, *up;
    const float *gate_bias, *up_bias;
    int activation;
};

void multiply_gated(Pool& pool, const LinearArgs& args, const Gated& gated) {
    const KernelTable& kernels = pool.kernels();
    const int64_t size = element_bytes(args.dtype),
                  panel_bytes = tw_packed_size_bytes(PANEL, args.k, args.dtype);
    const auto multiply = [&](const GatedPart& part, bool is_up, float* sums, int64_t ld) {
        const float* const bias = is_up ? gated.up_bias : gated.gate_bias;
        LinearArgs product = args;
        product.x = static_cast<const char*>(args.x) + part.first_row * args.ldx * size;
        product.m = part.rows;
        product.packed =
            static_cast<const char*>(is_up ? gated.up : gated.gate) + part.first_panel * panel_bytes;
        product.bias = bias ? bias + part.first_panel * PANEL : nullptr;
        product.n = part.width;
        product.y = sums;
        product.ldy = ld;
        product.out_dtype = TW_FLOAT32;
        kernels.dense.linear(product, 0, part.panels);
    };
    run_range(pool, div_up(args.n, PANEL), panels_of_grain(2 * panel_bytes_of(args)),
              [&](int64_t first, int64_t last, char* scratch) {
                  gate_panels(kernels, args.y, args.ldy, args.m, args.n, gated.activation, args.dtype, first,
                              last, scratch, multiply);
              });
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
    const LinearArgs whole{x, ldx, packed, bias, y, ldy, m, n, k, dtype, out_dtype};
    const auto kernel = pool->pool.kernels().dense.linear;
    return for_row_blocks(pool->pool, whole, 0, [&](const LinearArgs& args) {
        run_range(pool->pool, div_up(n, PANEL), panels_of_grain(panel_bytes_of(args)),
                  [&](int64_t first, int64_t last, char*) { kernel(args, first, last); });
    });
}

int tw_gated_linear(tw_pool* pool, const void* x, int64_t ldx, const void* gate, const float* gate_bias,
                    const void* up, const float* up_bias, void* out, int64_t ldo, int64_t m, int64_t n,
                    int64_t k, int activation, int dtype) {
    if (!pool || m < 0 || n < 0 || k < 0 || ldx < k || ldo < n || !is_activation(activation) ||
        !is_dtype(dtype))
        return TW_ERROR_INVALID_ARGUMENT;
    const LinearArgs whole{x, ldx, nullptr, nullptr, out, ldo, m, n, k, dtype, dtype};
    const Gated gated{gate, up, gate_bias, up_bias, activation};
    return for_row_blocks(pool->pool, whole, GATED_SCRATCH_BYTES,
                          [&](const LinearArgs& args) { multiply_gated(pool->pool, args, gated); });
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

static int gate_and_mul(tw_pool* pool, const void* gate_up, int64_t ldg, void* out, int64_t m, int64_t i,
                        int activation, int dtype) {
    if (!pool || m < 0 || i < 0 || ldg < 2 * i || !is_dtype(dtype)) return TW_ERROR_INVALID_ARGUMENT;
    const void* const up = static_cast<const char*>(gate_up) + i * element_bytes(dtype);
    const GateArgs args{gate_up, up, ldg, out, i, i, activation, dtype, dtype};
    const auto kernel = pool->pool.kernels().rows.gate_and_mul;
    run_range(pool->pool, m, rows_of_grain(2 * i),
              [&](int64_t first, int64_t last, char*) { kernel(args, first, last); });
    return TW_OK;
}

int tw_silu_and_mul(tw_pool* pool, const void* gate_up, int64_t ldg, void* out, int64_t m, int64_t i,
                    int dtype) {
    return gate_and_mul(pool, gate_up, ldg, out, m, i, TW_SILU, dtype);
}

int tw_gelu_tanh_and_mul(tw_pool* pool, const void* gate_up, int64_t ldg, void* out, int64_t m, int64_t i,
                         int dtype) {
    return gate_and_mul(pool, gate_up, ldg, out, m, i, TW_GELU_TANH, dtype);
}
