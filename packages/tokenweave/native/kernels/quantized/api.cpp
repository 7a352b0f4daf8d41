// The C ABI of stored weights.
#include <algorithm>
#include <new>

#include "../checks.h"
#include "layout.h"

using namespace tokenweave;

namespace {

// Rows of x, quantised, that pass over the panels together.
constexpr int64_t ROW_BLOCK_BYTES = 1024 * 1024;

bool is_format(int format) { return format >= TW_Q4_0 && format <= TW_Q6_K; }
int64_t block_values(int format) { return format <= TW_Q8_0 ? GROUP_VALUES : 8 * GROUP_VALUES; }
int64_t block_bytes(int format) {
    int64_t size = 0;
    with_format(format, [&](auto constant) { size = FormatOf<decltype(constant)::value>::BLOCK_BYTES; });
    return size;
}

bool is_part(int format, int64_t first_column, int64_t n, int64_t k) {
    return is_format(format) && n >= 0 && k >= 1 && first_column >= 0 && first_column < block_values(format);
}

// A stack of weights, with the place of each.
struct Stack {
    StoredPart parts[TW_MAX_STORED_PARTS];
    int num_parts = 0;
    int64_t n = 0, num_panels = 0, first_column = 0, k = 0, bytes = 0;

    bool take(const tw_stored_stack* stack) {
        if (!stack || stack->num_parts < 1 || stack->num_parts > TW_MAX_STORED_PARTS) return false;
        first_column = stack->first_column;
        k = stack->k;
        for (int i = 0; i < stack->num_parts; ++i) {
            const tw_stored_part& part = stack->parts[i];
            if (!is_part(part.format, first_column, part.n, k)) return false;
            parts[num_parts++] = {part.packed, n, part.n, part.format};
            n += part.n;
            num_panels += div_up(part.n, PANEL);
            bytes += div_up(part.n, PANEL) * panel_bytes_of(part.format, first_column, k);
        }
        return true;
    }
};

struct Quantised {
    int64_t num_groups, rows_together;
};

Quantised sizes_of(const Stack& stack, int64_t m) {
    const int64_t num_groups = div_up(stack.first_column % GROUP_VALUES + stack.k, GROUP_VALUES);
    const int64_t row_bytes = num_groups * static_cast<int64_t>(sizeof(ActivationBlock));
    const int64_t rows = std::max(STORED_ROWS, ROW_BLOCK_BYTES / row_bytes / STORED_ROWS * STORED_ROWS);
    return {num_groups, std::min(m, rows)};
}

void multiply_rows(Pool& pool, const Stack& stack, const QuantiseArgs& quantise,
                   const StoredLinearArgs& args) {
    const StoredTable& kernels = pool.kernels().stored;
    run_range(pool, quantise.m, rows_of_grain(stack.k),
              [&](int64_t first, int64_t last, char*) { kernels.quantise(quantise, first, last); });
    const int64_t panel_bytes = std::max<int64_t>(1, stack.bytes / std::max<int64_t>(1, stack.num_panels));
    run_range(pool, stack.num_panels, div_up(MIN_PART_BYTES, panel_bytes),
              [&](int64_t first, int64_t last, char*) { kernels.linear(args, first, last); });
}

int multiply(Pool& pool, const Stack& stack, const void* x, int64_t ldx, const float* bias, void* y,
             int64_t ldy, int64_t m, int dtype, int out_dtype) {
    const Quantised sizes = sizes_of(stack, m);
    pool.reserve(sizes.num_groups * sizes.rows_together * sizeof(ActivationBlock));
    auto* const blocks = reinterpret_cast<ActivationBlock*>(pool.caller_scratch());
    for (int64_t row = 0; row < m; row += sizes.rows_together) {
        const int64_t rows = std::min(sizes.rows_together, m - row);
        const char* const from = static_cast<const char*>(x) + row * ldx * element_bytes(dtype);
        char* const to = static_cast<char*>(y) + row * ldy * element_bytes(out_dtype);
        const QuantiseArgs quantise{from, ldx, stack.first_column, rows, stack.k, dtype, blocks};
        const StoredLinearArgs args{stack.parts, stack.num_parts,    blocks,  bias,     to, ldy,
                                    rows,        stack.first_column, stack.k, out_dtype};
        multiply_rows(pool, stack, quantise, args);
    }
    return TW_OK;
}

}  // namespace

int64_t tw_stored_size_bytes(int format, int64_t first_column, int64_t n, int64_t k) {
    if (!is_part(format, first_column, n, k)) return TW_ERROR_INVALID_ARGUMENT;
    return div_up(n, PANEL) * panel_bytes_of(format, first_column, k);
}

int tw_pack_stored(tw_pool* pool, const void* blocks, int64_t row_bytes, int format, int64_t first_column,
                   int64_t n, int64_t k, void* packed) {
    if (!pool || !is_part(format, first_column, n, k) ||
        row_bytes < div_up(first_column + k, block_values(format)) * block_bytes(format))
        return TW_ERROR_INVALID_ARGUMENT;
    const StoredPackArgs args{
        static_cast<const uint8_t*>(blocks), row_bytes, first_column, n, k, format, packed};
    const auto kernel = pool->pool.kernels().stored.pack;
    run_range(pool->pool, div_up(n, PANEL), 1,
              [&](int64_t first, int64_t last, char*) { kernel(args, first, last); });
    return TW_OK;
}

int tw_stored_linear(tw_pool* pool, const void* x, int64_t ldx, const tw_stored_stack* weights,
                     const float* bias, void* y, int64_t ldy, int64_t m, int dtype, int out_dtype) {
    Stack stack;
    if (!pool || m < 0 || !is_dtype(dtype) || (out_dtype != dtype && out_dtype != TW_FLOAT32) ||
        !stack.take(weights) || ldx < stack.k || ldy < stack.n)
        return TW_ERROR_INVALID_ARGUMENT;
    try {
        return m == 0 ? TW_OK : multiply(pool->pool, stack, x, ldx, bias, y, ldy, m, dtype, out_dtype);
    } catch (const std::bad_alloc&) {
        return TW_ERROR_OUT_OF_MEMORY;
    }
}

int tw_stored_gather_rows(tw_pool* pool, const tw_stored_stack* weights, const int32_t* ids, int64_t m,
                          int64_t first_row, void* out, int dtype) {
    Stack stack;
    if (!pool || m < 0 || !is_dtype(dtype) || !stack.take(weights)) return TW_ERROR_INVALID_ARGUMENT;
    const StoredGatherArgs args{stack.parts, stack.num_parts, ids, first_row, stack.first_column,
                                stack.n,     stack.k,         out, dtype};
    const auto kernel = pool->pool.kernels().stored.gather_rows;
    run_range(pool->pool, m, rows_of_grain(8 * stack.k),
              [&](int64_t first, int64_t last, char*) { kernel(args, first, last); });
    return TW_OK;
}
