// The running softmax of an item's rows, and how partitions of it are merged: by whatever products scores and outputs
// were made.
//
// Invariants: as in attention.h.
#pragma once

#include "partitions.h"
#include "scratch.h"
#include "simd.h"

namespace tokenweave::TW_ISA {

constexpr float LOWEST = -3.4028235e38f;  // finite, so that differences of maxima are never NaN

// What scores are multiplied by in exponents of 2: exp(x) is exp2(x log2(e)). Capped scores are scaled already;
// without a cap the scale is left to the exponent, where it costs nothing.
TW_INLINE float exponent_scale(const AttentionArgs& args) {
    return (args.softcap > 0 ? 1.0f : args.scale) * 1.4426950408889634f;
}

// The running softmax of an item's rows, over one partition or over several that were merged.
struct SoftmaxRows {
    float* sums;     // (rows, LANES): partial sums of probabilities
    float* maxima;   // (rows,), of scores before the scale: see attend_tile
    float* outputs;  // (rows, head_dim)
};

TW_INLINE size_t divide_softmax_rows(char* memory, int64_t rows, int64_t head_dim, SoftmaxRows* softmax) {
    size_t used = 0;
    const auto take = [&](size_t size_bytes) {
        return reinterpret_cast<float*>(take_scratch(memory, used, size_bytes));
    };
    softmax->sums = take(rows * LANES * sizeof(float));
    softmax->maxima = take(rows * sizeof(float));
    softmax->outputs = take(rows * head_dim * sizeof(float));
    return used;
}

// What a partition leaves of `num_rows` rows where it is merged later.
static size_t attention_partition_bytes(const AttentionArgs& args, int64_t num_rows) {
    SoftmaxRows softmax;
    return divide_softmax_rows(nullptr, num_rows, args.head_dim, &softmax);
}

static void begin_partition(const SoftmaxRows& partition, int64_t rows, int64_t head_dim) {
    memset(partition.outputs, 0, rows * head_dim * sizeof(float));
    memset(partition.sums, 0, rows * LANES * sizeof(float));
    for (int64_t row = 0; row < rows; ++row) partition.maxima[row] = LOWEST;
}

// Adding 0 makes +0 of -0, as a visit of tiles that the row does not see would: invariant 1.
TW_INLINE Floats take_outputs(const float* outputs) { return load(outputs) + zeros(); }

// Joins a partition of one row to what the row has of those before it.
TW_INLINE void merge_row(const SoftmaxRows& merged, const SoftmaxRows& partition, int64_t row, int head_dim,
                         float scale_log2) {
    const float before = merged.maxima[row], added = partition.maxima[row];
    const float highest = added > before ? added : before;
    const float below[LANES] = {before - highest, added - highest};
    float shrink[LANES];  // one of the two is exactly 1
    store(shrink, exp2(load(below) * broadcast(scale_log2)));
    const Floats keep = broadcast(shrink[0]), take = broadcast(shrink[1]);
    float* sums = merged.sums + row * LANES;
    store(sums, load(sums) * keep + load(partition.sums + row * LANES) * take);
    float* outputs = merged.outputs + row * head_dim;
    const float* more = partition.outputs + row * head_dim;
    for (int i = 0; i < head_dim; i += LANES)
        store(outputs + i, load(outputs + i) * keep + take_outputs(more + i) * take);
    merged.maxima[row] = highest;
}

// The first partition that a row sees is all that the row has so far, to the bit.
TW_INLINE void keep_row(const SoftmaxRows& merged, const SoftmaxRows& partition, int64_t row, int head_dim) {
    merged.maxima[row] = partition.maxima[row];
    store(merged.sums + row * LANES, load(partition.sums + row * LANES));
    for (int64_t i = row * head_dim; i < (row + 1) * head_dim; i += LANES)
        store(merged.outputs + i, take_outputs(partition.outputs + i));
}

// Joins a partition to what the item's rows have of those before it; rows that do not see it stay as they are.
static void merge_partition(const AttentionArgs& args, const AttentionItem& item, const SoftmaxRows& merged,
                            const SoftmaxRows& partition, int32_t index) {
    const int group_size = group_size_of(args, item);
    for (int64_t query = 0; query < item.num_queries; ++query) {
        const int32_t position = item.first_position + static_cast<int32_t>(query);
        const PartitionRange visible = visible_partitions(args, position);
        if (index < visible.first || index > visible.last) continue;
        for (int64_t row = query * group_size; row < (query + 1) * group_size; ++row) {
            if (index == visible.first) keep_row(merged, partition, row, args.head_dim);
            else merge_row(merged, partition, row, args.head_dim, exponent_scale(args));
        }
    }
}

template <typename T>
void finish_rows(const AttentionArgs& args, const AttentionItem& item, const SoftmaxRows& merged) {
    const int d = args.head_dim, first_head = args.group_start[item.kv_head];
    const int group_size = group_size_of(args, item);
    for (int64_t row = 0; row < static_cast<int64_t>(item.num_queries) * group_size; ++row) {
        const Floats inverse = broadcast(1.0f / reduce_add(load(merged.sums + row * LANES)));
        const int64_t head =
            (item.first_row + row / group_size) * args.num_heads + first_head + row % group_size;
        T* out = static_cast<T*>(args.out) + head * d;
        for (int i = 0; i < d; i += LANES) store(out + i, load(merged.outputs + row * d + i) * inverse);
    }
}

}  // namespace tokenweave::TW_ISA
