// What each instruction set's build offers for stored weights, and the arguments.
//
// Rows of x are quantised to int8 in blocks of 32 values along k, each with one scale. Products of codes are
// summed exactly, in integers; what is left are floats, one for each block, summed in one order. They are
// multiplied and added in two steps, so that the sums are the same to the bit on every instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tokenweave {

constexpr int64_t GROUP_VALUES = 32;  // values along k whose codes are multiplied in integers
constexpr int64_t STORED_ROWS = 16;   // rows that share a panel's unpacked codes

// One weight of a stack, packed. Its rows are rows first_row to first_row + n of the stack.
struct StoredPart {
    const void* packed;
    int64_t first_row, n;
    int format;
};

// 32 values of a row of x: codes[i] * scale. Four codes, a word, meet four codes of each of a panel's columns.
struct alignas(16) ActivationBlock {
    int8_t codes[GROUP_VALUES];
    float scale;
    float sum;            // of the 32 values
    int16_t half_sum[2];  // of the codes of each 16: at most 16 * 127
};

struct StoredPackArgs {
    const uint8_t* blocks;
    int64_t row_bytes;  // from one row to the next
    int64_t first_column, n, k;
    int format;
    void* packed;
};

struct QuantiseArgs {
    const void* x;
    int64_t ldx, first_column, m, k;
    int dtype;
    ActivationBlock* out;  // [groups of k][m]
};

struct StoredLinearArgs {
    const StoredPart* parts;
    int num_parts;
    const ActivationBlock* x;  // [groups of k][m]
    const float* bias;
    void* y;
    int64_t ldy, m, first_column, k;
    int out_dtype;
};

struct StoredGatherArgs {
    const StoredPart* parts;
    int num_parts;
    const int32_t* ids;
    int64_t first_row, first_column, n, k;
    void* out;
    int dtype;
};

struct StoredTable {
    void (*pack)(const StoredPackArgs&, int64_t first_panel, int64_t last_panel);
    void (*quantise)(const QuantiseArgs&, int64_t first_row, int64_t last_row);
    // Panels are counted through all parts; each part begins with a new one.
    void (*linear)(const StoredLinearArgs&, int64_t first_panel, int64_t last_panel);
    void (*gather_rows)(const StoredGatherArgs&, int64_t first_row, int64_t last_row);
};

}  // namespace tokenweave
