// Causal attention over a paged KV cache: online softmax over fixed tiles of keys (Milakov and Gimelshein,
// arXiv 1805.02867; Dao et al., arXiv 2205.14135).
//
// Invariants:
//  1. Every row takes its keys in the same tiles of KEY_TILE, counted from key 0. A key that the row does not
//     see has probability exactly 0, and a tile without visible keys leaves the row's state as it was: whether
//     it is visited is a matter of speed only. (An output of -0 becomes +0 there: take_outputs reads both as +0.)
//  2. Every row takes its tiles in the same partitions of KEY_PARTITION keys, counted from key 0. It begins
//     anew in each partition of which it sees a key, and merge_partition joins these in ascending order: who
//     has attended which of them is a matter of speed only.
//  3. Nothing is read from slots past the last position of a group of rows, save to be masked: stale slots
//     may hold anything.
#pragma once

#include "softmax.h"

namespace tokenweave::TW_ISA {

// Rows, and groups of sixteen columns, whose accumulators share the registers: 6 x 4 of the 32 of AVX-512, 3 x 2
// pairs of the 16 of AVX2, 1 x 2 fours of the baseline's.
constexpr int GROUP_ROWS = WIDTH == 16 ? 6 : WIDTH == 8 ? 3 : 1;
constexpr int COLUMN_GROUPS = WIDTH == 16 ? 4 : 2;
constexpr int KEY_GROUPS = KEY_TILE / LANES;
constexpr int TILE_BLOCKS = KEY_TILE / BLOCK_SIZE;
static_assert(BLOCK_SIZE == LANES && GROUP_ROWS <= LANES);

// An item's rows on their way through the keys. All in the worker's scratch, save the partition's softmax where
// another worker merges it.
template <typename T>
struct AttentionState {
    T* queries;             // (rows, head_dim)
    SoftmaxRows partition;  // over the partition at hand
    SoftmaxRows merged;     // over those before it
    T* probabilities;       // (GROUP_ROWS, KEY_TILE)
};

template <typename T>
TW_INLINE size_t divide_scratch(char* scratch, int64_t rows, int64_t head_dim, AttentionState<T>* state) {
    size_t used = 0;
    const auto take = [&](size_t size_bytes) { return take_scratch(scratch, used, size_bytes); };
    const size_t softmax_bytes = divide_softmax_rows(nullptr, rows, head_dim, &state->partition);
    state->queries = reinterpret_cast<T*>(take(rows * head_dim * sizeof(T)));
    divide_softmax_rows(take(softmax_bytes), rows, head_dim, &state->partition);
    divide_softmax_rows(take(softmax_bytes), rows, head_dim, &state->merged);
    state->probabilities = reinterpret_cast<T*>(take(GROUP_ROWS * KEY_TILE * sizeof(T)));
    return used;
}

static size_t attention_scratch_bytes(const AttentionArgs& args, int64_t num_rows) {
    AttentionState<float> state;  // the larger of the two types
    return divide_scratch(nullptr, num_rows, args.head_dim, &state);
}

// One tile of keys, for one KV head.
struct KeyTile {
    int32_t first_key;
    const char* keys[TILE_BLOCKS];
    const char* values[TILE_BLOCKS];
};

template <typename T>
TW_INLINE KeyTile locate_tile(const AttentionArgs& args, const AttentionItem& item, int32_t first_key,
                              int32_t last_position) {
    const int64_t head_bytes = BLOCK_SIZE * args.head_dim * sizeof(T);
    const int32_t* table = args.block_tables + item.sequence * args.max_blocks;
    KeyTile tile;
    tile.first_key = first_key;
    for (int b = 0; b < TILE_BLOCKS; ++b) {
        int32_t index = first_key / BLOCK_SIZE + b;
        if (index > last_position / BLOCK_SIZE) index = last_position / BLOCK_SIZE;  // masked, but readable
        tile.keys[b] =
            static_cast<const char*>(args.cache) +
            (static_cast<int64_t>(table[index]) * 2 * args.num_kv_heads + item.kv_head) * head_bytes;
        tile.values[b] = tile.keys[b] + args.num_kv_heads * head_bytes;
    }
    return tile;
}

// Softmax of one tile's scores: updates maxima and sums, leaves the probabilities as T, returns the factors
// by which older sums and outputs shrink.
template <typename T, int ROWS>
TW_INLINE void softmax_tile(Floats (&scores)[ROWS][KEY_GROUPS], float scale_log2,
                            const AttentionState<T>& state, int row, float (&shrink)[LANES]) {
    float old_maxima[LANES] = {}, new_maxima[LANES] = {};
    TW_UNROLL for (int r = 0; r < ROWS; ++r) {
        const Floats pair = max(max(scores[r][0], scores[r][1]), max(scores[r][2], scores[r][3]));
        const float highest = reduce_max(pair);
        old_maxima[r] = state.partition.maxima[row + r];
        new_maxima[r] = highest > old_maxima[r] ? highest : old_maxima[r];
        state.partition.maxima[row + r] = new_maxima[r];
    }
    store(shrink, exp2((load(old_maxima) - load(new_maxima)) * broadcast(scale_log2)));
    TW_UNROLL for (int r = 0; r < ROWS; ++r) {
        float* sums = state.partition.sums + (row + r) * LANES;
        const Floats offset = broadcast(-new_maxima[r] * scale_log2);
        Floats sum = load(sums) * broadcast(shrink[r]);
        TW_UNROLL for (int c = 0; c < KEY_GROUPS; ++c) {
            const Floats p = exp2(fma(scores[r][c], broadcast(scale_log2), offset));
            sum = sum + p;
            store(state.probabilities + r * KEY_TILE + c * LANES, p);
        }
        store(sums, sum);
    }
}

// outputs = outputs * shrink + probabilities * values, for GROUPS * 16 columns of head_dim from `column` on.
template <typename T, int ROWS, int GROUPS>
TW_INLINE void weigh_values(const AttentionState<T>& state, int row, const float (&shrink)[LANES],
                            const KeyTile& tile, int num_keys, int column, int head_dim) {
    float* out = state.partition.outputs + static_cast<int64_t>(row) * head_dim + column;
    Floats acc[ROWS][GROUPS];
    TW_UNROLL for (int r = 0; r < ROWS; ++r) TW_UNROLL for (int c = 0; c < GROUPS; ++c) acc[r][c] =
        load(out + r * head_dim + c * LANES) * broadcast(shrink[r]);
    const char* weights = reinterpret_cast<const char*>(state.probabilities);
    for (int b = 0; b * BLOCK_SIZE < num_keys; ++b) {
        const int keys = num_keys - b * BLOCK_SIZE < BLOCK_SIZE ? num_keys - b * BLOCK_SIZE : BLOCK_SIZE;
        const int steps = keys / WORD_ELEMENTS<T>;
        const char* block_weights = weights + b * BLOCK_SIZE * sizeof(T);
        const char* values[GROUPS];
        TW_UNROLL for (int c = 0; c < GROUPS; ++c) values[c] = tile.values[b] + (column + c * LANES) * 4;
        accumulate<T>(acc, block_weights, KEY_TILE * sizeof(T), values, head_dim * 4, steps);
        if (steps * WORD_ELEMENTS<T> <
            keys) {  // the other half of this word's keys is past the last position
            TW_UNROLL for (int c = 0; c < GROUPS; ++c) {
                Words last = load_words(values[c] + static_cast<int64_t>(steps) * head_dim * 4);
                TW_EACH_PART last.part[i] &= 0x0000ffffu;
                TW_UNROLL for (int r = 0; r < ROWS; ++r) acc[r][c] =
                    dot<T>(acc[r][c], load_word(block_weights + r * KEY_TILE * sizeof(T) + steps * 4), last);
            }
        }
    }
    TW_UNROLL for (int r = 0; r < ROWS; ++r) TW_UNROLL for (int c = 0; c < GROUPS; ++c)
        store(out + r * head_dim + c * LANES, acc[r][c]);
}

// tanh(x) to an absolute error of 1e-7. Beyond 10 it is 1 in float32, and exp2 takes the bounds. A NaN stays
// one: max gives its second operand where either is NaN.
TW_INLINE Floats tanh(Floats x) {
    const Floats bounded = zeros() - max(broadcast(-10.0f), zeros() - max(broadcast(-10.0f), x));
    const Floats e = exp2(bounded * broadcast(2.8853900817779268f));  // 2 log2(e): e is exp(2 x)
    return (e - broadcast(1.0f)) / (e + broadcast(1.0f));
}

// Scores as the key and the query gave them become softcap * tanh(scale * score / softcap).
template <int ROWS>
TW_INLINE void cap_scores(Floats (&scores)[ROWS][KEY_GROUPS], float scale, float softcap) {
    TW_UNROLL for (int r = 0; r < ROWS; ++r) TW_UNROLL for (int c = 0; c < KEY_GROUPS; ++c) scores[r][c] =
        tanh(scores[r][c] * broadcast(scale / softcap)) * broadcast(softcap);
}

template <int ROWS>
TW_INLINE void mask_scores(Floats (&scores)[ROWS][KEY_GROUPS], const AttentionArgs& args,
                           const AttentionItem& item, int row, int group_size, int32_t first_key) {
    TW_UNROLL for (int r = 0; r < ROWS; ++r) {
        const int32_t position = item.first_position + (row + r) / group_size;
        const int32_t last = position + 1 - first_key;
        const int32_t first = args.sliding_window ? last - args.sliding_window : 0;
        TW_UNROLL for (int c = 0; c < KEY_GROUPS; ++c) scores[r][c] =
            select_lanes(scores[r][c], first - c * LANES, last - c * LANES, -__builtin_inff());
    }
}

// Whether rows at these positions see any key of the tile at `first_key`.
TW_INLINE bool is_visible(const AttentionArgs& args, int32_t first_key, int32_t first_position,
                          int32_t last_position) {
    return first_key <= last_position &&
           !(args.sliding_window && first_key + KEY_TILE <= first_position + 1 - args.sliding_window);
}

// Whether one of these rows does not see all keys of the tile.
TW_INLINE bool is_cut(const AttentionArgs& args, int32_t first_key, int32_t first_position,
                      int32_t last_position) {
    return first_key + KEY_TILE > first_position + 1 ||
           (args.sliding_window && first_key < last_position + 1 - args.sliding_window);
}

// The scores of COLUMN_GROUPS groups of a tile's keys, from `group` on. A function of its own where the accumulators
// fill the registers: among the caller's values the compiler keeps half of them in memory.
template <typename T, int ROWS>
#if defined(__AVX512F__)
TW_INLINE
#else
__attribute__((noinline))
#endif
    void score_keys(Floats (&scores)[ROWS][KEY_GROUPS], const char* queries, const KeyTile& tile, int group,
                    int head_dim) {
    Floats acc[ROWS][COLUMN_GROUPS];
    const char* keys[COLUMN_GROUPS];
    TW_UNROLL for (int c = 0; c < COLUMN_GROUPS; ++c) keys[c] = tile.keys[group + c];
    TW_UNROLL for (int r = 0; r < ROWS; ++r) TW_UNROLL for (int c = 0; c < COLUMN_GROUPS; ++c) acc[r][c] =
        zeros();
    accumulate<T>(acc, queries, head_dim * sizeof(T), keys, BLOCK_SIZE * 4, head_dim / WORD_ELEMENTS<T>);
    TW_UNROLL for (int r = 0; r < ROWS; ++r) TW_UNROLL for (int c = 0; c < COLUMN_GROUPS; ++c)
        scores[r][group + c] = acc[r][c];
}

// Rows row .. row + ROWS of the item against one tile of keys.
template <typename T, int ROWS>
void attend_tile(const AttentionArgs& args, const AttentionItem& item, const AttentionState<T>& state,
                 int row, int group_size, const KeyTile& tile) {
    const int d = args.head_dim;
    const int32_t first_position = item.first_position + row / group_size;
    const int32_t last_position = item.first_position + (row + ROWS - 1) / group_size;
    const int32_t end = tile.first_key + KEY_TILE;
    if (!is_visible(args, tile.first_key, first_position, last_position)) return;

    Floats scores[ROWS][KEY_GROUPS];
    const char* queries = reinterpret_cast<const char*>(state.queries + static_cast<int64_t>(row) * d);
    TW_UNROLL for (int group = 0; group < KEY_GROUPS; group += COLUMN_GROUPS)
        score_keys<T>(scores, queries, tile, group, d);
    if (args.softcap > 0) cap_scores(scores, args.scale, args.softcap);
    if (is_cut(args, tile.first_key, first_position, last_position))
        mask_scores(scores, args, item, row, group_size, tile.first_key);

    float shrink[LANES];
    softmax_tile<T>(scores, exponent_scale(args), state, row, shrink);
    const int num_keys = last_position + 1 < end ? last_position + 1 - tile.first_key : KEY_TILE;
    int column = 0;
    for (; column + COLUMN_GROUPS * LANES <= d; column += COLUMN_GROUPS * LANES)
        weigh_values<T, ROWS, COLUMN_GROUPS>(state, row, shrink, tile, num_keys, column, d);
    for (; column < d; column += LANES)
        weigh_values<T, ROWS, 1>(state, row, shrink, tile, num_keys, column, d);
}

template <typename T, int ROWS>
TW_INLINE void attend_rows(const AttentionArgs& args, const AttentionItem& item,
                           const AttentionState<T>& state, int row, int rows, int group_size,
                           const KeyTile& tile) {
    if constexpr (ROWS > 1) {
        if (rows < ROWS) return attend_rows<T, ROWS - 1>(args, item, state, row, rows, group_size, tile);
    }
    attend_tile<T, ROWS>(args, item, state, row, group_size, tile);
}

template <typename T>
void copy_queries(const AttentionArgs& args, const AttentionItem& item, const AttentionState<T>& state) {
    const int d = args.head_dim, first_head = args.group_start[item.kv_head];
    const size_t query_size = static_cast<size_t>(group_size_of(args, item)) * d;
    for (int64_t i = 0; i < item.num_queries; ++i) {
        const T* q = static_cast<const T*>(args.q) + (item.first_row + i) * args.ldq + first_head * d;
        memcpy(state.queries + i * query_size, q, query_size * sizeof(T));
    }
}

// The item's rows against the keys of one partition.
template <typename T>
void attend_partition(const AttentionArgs& args, const AttentionItem& item, const AttentionState<T>& state,
                      int32_t partition) {
    const int group_size = group_size_of(args, item);
    const int rows = item.num_queries * group_size;
    begin_partition(state.partition, rows, args.head_dim);
    const KeyRange keys = visible_keys(args, item, partition);
    for (int32_t first_key = keys.first; first_key < keys.end; first_key += KEY_TILE) {
        const KeyTile tile = locate_tile<T>(args, item, first_key, last_position_of(item));
        for (int row = 0; row < rows; row += GROUP_ROWS) {
            const int left = rows - row < GROUP_ROWS ? rows - row : GROUP_ROWS;
            attend_rows<T, GROUP_ROWS>(args, item, state, row, left, group_size, tile);
        }
    }
}

// All keys of the item by one worker: attend(partition) leaves each partition in state.partition.
template <typename T, typename Attend>
TW_INLINE void attend_partitions(const AttentionArgs& args, const AttentionItem& item,
                                 const AttentionState<T>& state, const Attend& attend) {
    const PartitionRange visible = visible_partitions(args, item);
    for (int32_t p = visible.first; p <= visible.last; ++p) {
        attend(p);
        merge_partition(args, item, state.merged, state.partition, p);
    }
    finish_rows<T>(args, item, state.merged);
}

template <typename T>
void attend_item(const AttentionArgs& args, const AttentionItem& item, char* scratch) {
    AttentionState<T> state;
    divide_scratch(scratch, num_rows_of(args, item), args.head_dim, &state);
    copy_queries(args, item, state);
    attend_partitions(args, item, state,
                      [&](int32_t partition) { attend_partition(args, item, state, partition); });
}

static void attention(const AttentionArgs& args, const AttentionItem& item, char* scratch) {
    with_dtype(args.dtype, [&](auto type) { attend_item<decltype(type)>(args, item, scratch); });
}

// One partition of the item, left in `partition_rows` for merge_attention.
static void attention_of_partition(const AttentionArgs& args, const AttentionItem& item, int32_t partition,
                                   char* scratch, char* partition_rows) {
    with_dtype(args.dtype, [&](auto type) {
        AttentionState<decltype(type)> state;
        const int64_t rows = num_rows_of(args, item);
        divide_scratch(scratch, rows, args.head_dim, &state);
        divide_softmax_rows(partition_rows, rows, args.head_dim, &state.partition);
        copy_queries(args, item, state);
        attend_partition(args, item, state, partition);
    });
}

// The item's outputs from all of its partitions, which lie one after the other in `partitions`.
static void merge_attention(const AttentionArgs& args, const AttentionItem& item, char* scratch,
                            const char* partitions) {
    const int64_t rows = num_rows_of(args, item);
    SoftmaxRows merged, partition;
    divide_softmax_rows(scratch, rows, args.head_dim, &merged);
    const PartitionRange visible = visible_partitions(args, item);
    for (int32_t p = visible.first; p <= visible.last; ++p) {
        partitions += divide_softmax_rows(const_cast<char*>(partitions), rows, args.head_dim, &partition);
        merge_partition(args, item, merged, partition, p);
    }
    with_dtype(args.dtype, [&](auto type) { finish_rows<decltype(type)>(args, item, merged); });
}

}  // namespace tokenweave::TW_ISA
