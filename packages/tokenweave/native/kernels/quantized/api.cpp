// The C ABI of stored weights.
#include <algorithm>
#include <new>

#include "../checks.h"
#include "../gated.h"
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

// At most `most` rows together.
Quantised sizes_of(const Stack& stack, int64_t m, int64_t most) {
    const int64_t num_groups = div_up(stack.first_column % GROUP_VALUES + stack.k, GROUP_VALUES);
    const int64_t row_bytes = num_groups * static_cast<int64_t>(sizeof(ActivationBlock));
    const int64_t rows = std::max(STORED_ROWS, ROW_BLOCK_BYTES / row_bytes / STORED_ROWS * STORED_ROWS);
    return {num_groups, std::min({m, rows, most})};
}

// A stack of several formats has panels of several sizes.
int64_t mean_panel_bytes(const Stack& stack) { return stack.bytes / std::max<int64_t>(1, stack.num_panels); }

// Calls multiply(args) for blocks of the rows of x, once they are quantised. `most` rows of them together, and
// `scratch_bytes` are free in every worker's scratch.
template <typename Multiply>
int for_row_blocks(Pool& pool, const Stack& stack, const QuantiseArgs& whole, const StoredLinearArgs& linear,
                   int64_t most, int64_t scratch_bytes, const Multiply& multiply) try {
    const Quantised sizes = sizes_of(stack, whole.m, most);
    pool.reserve(scratch_bytes + sizes.num_groups * sizes.rows_together * sizeof(ActivationBlock));
    auto* const blocks = reinterpret_cast<ActivationBlock*>(pool.caller_scratch() + scratch_bytes);
    for (int64_t row = 0; row < whole.m; row += sizes.rows_together) {
        QuantiseArgs quantise = whole;
        quantise.x = static_cast<const char*>(whole.x) + row * whole.ldx * element_bytes(whole.dtype);
        quantise.m = std::min(sizes.rows_together, whole.m - row);
        quantise.out = blocks;
        run_range(pool, quantise.m, rows_of_grain(stack.k), [&](int64_t first, int64_t last, char*) {
            pool.kernels().stored.quantise(quantise, first, last);
        });
        StoredLinearArgs args = linear;
        args.x = blocks;
        args.m = quantise.m;
        args.y = static_cast<char*>(linear.y) + row * linear.ldy * element_bytes(linear.out_dtype);
        multiply(args);
    }
    return TW_OK;
} catch (const std::bad_alloc&) {
    return TW_ERROR_OUT_OF_MEMORY;
}

struct Gated {
    StoredPart gate, up;
    const float *gate_bias, *up_bias;
    int activation;
};

void multiply_gated(const KernelTable& kernels, const StoredLinearArgs& args, const Gated& gated,
                    int64_t first, int64_t last, char* scratch) {
    // All rows of x are multiplied together: no more are quantised at once.
    const auto multiply = [&](const GatedPart& part, bool is_up, float* sums, int64_t ld) {
        const float* const bias = is_up ? gated.up_bias : gated.gate_bias;
        StoredPart weight = is_up ? gated.up : gated.gate;
        weight.packed = static_cast<const char*>(weight.packed) +
                        part.first_panel * panel_bytes_of(weight.format, args.first_column, args.k);
        weight.n = part.width;
        StoredLinearArgs product = args;
        product.parts = &weight;
        product.num_parts = 1;
        product.bias = bias ? bias + part.first_panel * PANEL : nullptr;
        product.y = sums;
        product.ldy = ld;
        product.out_dtype = TW_FLOAT32;
        kernels.stored.linear(product, 0, part.panels);
    };
    gate_panels(kernels, args.y, args.ldy, args.m, gated.gate.n, gated.activation, args.out_dtype, first,
                last, scratch, multiply);
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
    if (m == 0) return TW_OK;
    const QuantiseArgs rows{x, ldx, stack.first_column, m, stack.k, dtype, nullptr};
    const StoredLinearArgs linear{stack.parts, stack.num_parts,    nullptr, bias,     y, ldy,
                                  m,           stack.first_column, stack.k, out_dtype};
    const auto kernel = pool->pool.kernels().stored.linear;
    return for_row_blocks(pool->pool, stack, rows, linear, m, 0, [&](const StoredLinearArgs& args) {
        run_range(pool->pool, stack.num_panels, panels_of_grain(mean_panel_bytes(stack)),
                  [&](int64_t first, int64_t last, char*) { kernel(args, first, last); });
    });
}

int tw_stored_gated_linear(tw_pool* pool, const void* x, int64_t ldx, const tw_stored_stack* gate,
                           const float* gate_bias, const tw_stored_stack* up, const float* up_bias, void* out,
                           int64_t ldo, int64_t m, int activation, int dtype) {
    Stack stack, other;
    if (!pool || m < 0 || !is_activation(activation) || !is_dtype(dtype) || !stack.take(gate) ||
        !other.take(up) || stack.num_parts != 1 || other.num_parts != 1 || stack.n != other.n ||
        stack.k != other.k || stack.first_column != other.first_column || ldx < stack.k || ldo < stack.n)
        return TW_ERROR_INVALID_ARGUMENT;
    if (m == 0) return TW_OK;
    const QuantiseArgs rows{x, ldx, stack.first_column, m, stack.k, dtype, nullptr};
    const StoredLinearArgs linear{nullptr, 0,    nullptr, nullptr, out, ldo, m, stack.first_column,
                                  stack.k, dtype};
    const Gated gated{stack.parts[0], other.parts[0], gate_bias, up_bias, activation};
    return for_row_blocks(
        pool->pool, stack, rows, linear, GATED_ROWS, GATED_SCRATCH_BYTES, [&](const StoredLinearArgs& args) {
            run_range(pool->pool, stack.num_panels, panels_of_grain(2 * mean_panel_bytes(stack)),
                      [&](int64_t first, int64_t last, char* scratch) {
                          multiply_gated(pool->pool.kernels(), args, gated, first, last, scratch);
                      });
        });
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
