// What each instruction set's build of the kernels offers to the C ABI, and the arguments they share.
//
// The functions do a range of rows, panels or one item, on one thread, with arguments already checked.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../sampling/table.h"
#include "quantized/stored.h"

namespace tokenweave {

constexpr int PANEL = 32;     // outputs of one packed panel
constexpr int ROW_TILE = 12;  // a multiple of every build's rows of a tile of registers
// A multiple of ROW_TILE and of the rows that AMX multiplies together: what large blocks of rows are cut into.
constexpr int LARGE_ROW_TILE = 96;
constexpr int BLOCK_SIZE = 16;  // tokens of one KV block
// Keys visited together, counted from key 0: part of what makes results reproducible.
constexpr int KEY_TILE = 64;
// Keys whose softmax is taken by itself before it is merged with that of the keys before them, counted from key 0:
// no less a part of that. Smaller ones share a long sequence out better; each costs a pass over the outputs.
constexpr int KEY_PARTITION = 512;

struct PackArgs {
    const void* weight;
    int64_t ldw, n, k;
    int weight_dtype, dtype;
    void* packed;
};

struct LinearArgs {
    const void* x;
    int64_t ldx;
    const void* packed;
    const float* bias;
    void* y;
    int64_t ldy, m, n, k;
    int dtype, out_dtype;
};

struct GatherArgs {
    const void* packed;
    const int32_t* ids;
    int64_t first_row, n, k;
    void* out;
    int dtype;
};

struct NormArgs {
    const void* x;
    int64_t ldx;
    float* residual;  // float32 whatever the dtype
    int64_t ldr;
    const void *weight, *post_weight;  // see tw_residual_norms
    void* out;
    int64_t ldo, h;
    float eps;
    int dtype;
};

// NormArgs of several parts: their sum, in float32 and in order, is what the residual gets. `past_caches`:
// how to write `out`, where it can be done.
struct ReduceNormArgs {
    const void* const* parts;
    int num_parts;
    int64_t ldx;
    float* residual;
    int64_t ldr;
    const void *weight, *post_weight;  // see tw_residual_norms
    void* out;
    int64_t ldo, h;
    float eps;
    int dtype;
    bool past_caches;
};

struct GateArgs {
    const void *gate, *up;
    int64_t ldg;  // of both
    void* out;
    int64_t ldo, width;
    int activation, dtype, out_dtype;
};

struct RopeArgs {
    const void* qkv;
    int64_t ldqkv;
    const int32_t *positions, *slots;
    const float* cos_sin;
    const void *q_norm, *k_norm;
    float eps;
    void *q, *cache;
    int num_heads, num_kv_heads, head_dim, dtype;
};

struct AttentionArgs {
    const void* q;
    int64_t ldq;
    const void* cache;
    const int32_t* block_tables;
    int64_t max_blocks;
    const int32_t* group_start;
    int num_heads, num_kv_heads, head_dim;
    float scale;
    int32_t sliding_window;
    float softcap;  // 0: none
    void* out;
    int dtype;
};

// Consecutive queries of one sequence, with the query heads of one KV head.
struct AttentionItem {
    int32_t sequence, kv_head;
    int32_t first_row, num_queries;  // rows of q
    int32_t first_position;          // of the first query
};

// Streams that lie one after the other: read, read, updated, written.
struct MixArgs {
    char* memory;
    size_t size_bytes;  // of a stream that is read, or written
    int update_ratio;   // the updated stream is so many times as long: 1 or 2
    bool past_caches;   // how the written stream is written
};

// What a build offers: one table for each of its sources in isa/.

struct DenseTable {
    void (*pack)(const PackArgs&, int64_t first_panel, int64_t last_panel);
    void (*linear)(const LinearArgs&, int64_t first_panel, int64_t last_panel);
    void (*gather_rows)(const GatherArgs&, int64_t first_row, int64_t last_row);
};

struct RowTable {
    void (*rms_norm)(const NormArgs&, int64_t first_row, int64_t last_row);
    void (*reduce_norm)(const ReduceNormArgs&, int64_t first_row, int64_t last_row);
    void (*gate_and_mul)(const GateArgs&, int64_t first_row, int64_t last_row);
    void (*rope_and_store)(const RopeArgs&, int64_t first_row, int64_t last_row, char* scratch);
};

struct AttentionTable {
    size_t (*scratch_bytes)(const AttentionArgs&, int64_t num_rows);
    void (*attend)(const AttentionArgs&, const AttentionItem&, char* scratch);
    // The same by several workers: each partition's softmax into memory of this size, then all of them merged.
    size_t (*partition_bytes)(const AttentionArgs&, int64_t num_rows);
    void (*attend_partition)(const AttentionArgs&, const AttentionItem&, int32_t partition, char* scratch,
                             char* partition_rows);
    void (*merge)(const AttentionArgs&, const AttentionItem&, char* scratch, const char* partitions);
};

// Each runs for tens of microseconds and returns what it did: flops, or bytes read.
struct LimitsTable {
    double (*spin_fma)();
    double (*spin_bf16)();
    double (*read_bytes)(const char* memory, size_t size_bytes);
    // Reads two streams of `size_bytes`, updates one of size_bytes * update_ratio, and writes one, past the
    // caches or not.
    double (*mix_bytes)(const MixArgs&);
};

struct KernelTable {
    const DenseTable& dense;
    const RowTable& rows;
    const AttentionTable& attention;
    const StoredTable& stored;
    const SamplingTable& sampling;
    const LimitsTable& limits;
};

namespace baseline {
extern const KernelTable table;
}
namespace avx2 {
extern const KernelTable table;
}
namespace avx512 {
extern const KernelTable table;
}
namespace avx512bf16 {
extern const KernelTable table;
}
namespace amx {
extern const KernelTable table;
}
namespace amx_emulated {
extern const KernelTable table;
}

}  // namespace tokenweave
