// Attention of bfloat16 through tiles: scores and weighted values are products of tiles, the softmax between them is
// that of attention.h, whose invariants hold here too.
//
// Every row goes this way, a single one that is decoded as well as a prompt's: a sum over tiles has other bits than
// one over vectors, and a row's bits must not depend on how many rows lie beside it.
#pragma once

#include "../attention.h"
#include "tiles.h"

namespace tokenweave::TW_ISA {

// The scores' tiles, one for each block of keys, are later those of four column groups of the outputs.
constexpr int ATTENTION_SUMS = 0, QUERIES = 4, KEYS = 5, PROBABILITIES = 6, VALUES = 7;
static_assert(KEY_GROUPS == 4 && TILE_BLOCKS == 4);
constexpr int BLOCK_WORDS = BLOCK_SIZE / 2;  // along the tokens of a block of values
constexpr int SOFTMAX_ROWS = 4;              // whose scores share the registers

struct TileAttentionState {
    AttentionState<BFloat16> rows;  // its probabilities: (TILE_ROWS_MAX, KEY_TILE)
    float* scores;                  // (TILE_ROWS_MAX, KEY_TILE)
    char* values;                   // a block of values of which the sequence fills a part
};

static size_t divide_tile_scratch(char* scratch, int64_t rows, int64_t head_dim, TileAttentionState* state) {
    size_t used = divide_scratch(scratch, rows, head_dim, &state->rows);
    const auto take = [&](size_t size_bytes) { return take_scratch(scratch, used, size_bytes); };
    state->rows.probabilities =
        reinterpret_cast<BFloat16*>(take(TILE_ROWS_MAX * KEY_TILE * sizeof(BFloat16)));
    state->scores = reinterpret_cast<float*>(take(TILE_ROWS_MAX * KEY_TILE * sizeof(float)));
    state->values = take(BLOCK_SIZE * head_dim * sizeof(BFloat16));
    return used;
}

static size_t tile_attention_scratch_bytes(const AttentionArgs& args, int64_t num_rows) {
    if (args.dtype == TW_FLOAT32) return attention_scratch_bytes(args, num_rows);
    TileAttentionState state;
    return divide_tile_scratch(nullptr, num_rows, args.head_dim, &state);
}

// Words of head_dim in a tile: half a tile's where head_dim is an odd multiple of 16, since what follows its last
// words is another head's.
TW_INLINE int words_of_head_tile(int head_dim) {
    return head_dim % (2 * TILE_ROWS_MAX) == 0 ? TILE_ROWS_MAX : TILE_ROWS_MAX / 2;
}

static void configure_attention(Tiles& tiles, int rows, int head_dim) {
    const int words = words_of_head_tile(head_dim);
    TileConfiguration configuration;
    for (int c = 0; c < KEY_GROUPS; ++c) configuration.shape(ATTENTION_SUMS + c, rows, TILE_ROW_BYTES);
    configuration.shape(QUERIES, rows, words * 4);
    configuration.shape(KEYS, words, TILE_ROW_BYTES);
    configuration.shape(PROBABILITIES, rows, BLOCK_WORDS * 4);
    configuration.shape(VALUES, BLOCK_WORDS, TILE_ROW_BYTES);
    tiles.configure(configuration);
}

template <int BLOCK>
TW_INLINE void score_block(Tiles& tiles, const char* keys) {
    tiles.load<KEYS>(keys, BLOCK_SIZE * 4);
    tiles.multiply_bf16<ATTENTION_SUMS + BLOCK, QUERIES, KEYS>();
}

static void score_tile(Tiles& tiles, const TileAttentionState& state, int row, int head_dim,
                       const KeyTile& tile) {
    const char* queries =
        reinterpret_cast<const char*>(state.rows.queries + static_cast<int64_t>(row) * head_dim);
    const int words = words_of_head_tile(head_dim);
    tiles.zero<0>(), tiles.zero<1>(), tiles.zero<2>(), tiles.zero<3>();
    for (int word = 0; word < head_dim / 2; word += words) {
        const int64_t offset = int64_t{word} * BLOCK_SIZE * 4;
        tiles.load<QUERIES>(queries + word * 4, int64_t{head_dim} * 2);
        score_block<0>(tiles, tile.keys[0] + offset);
        score_block<1>(tiles, tile.keys[1] + offset);
        score_block<2>(tiles, tile.keys[2] + offset);
        score_block<3>(tiles, tile.keys[3] + offset);
    }
    tiles.store<0>(state.scores, KEY_TILE * 4);
    tiles.store<1>(state.scores + LANES, KEY_TILE * 4);
    tiles.store<2>(state.scores + 2 * LANES, KEY_TILE * 4);
    tiles.store<3>(state.scores + 3 * LANES, KEY_TILE * 4);
}

// The probabilities of ROWS of the tile's rows, `first` on, and their outputs shrunk.
template <int ROWS>
void weigh_scores(const AttentionArgs& args, const AttentionItem& item, const TileAttentionState& state,
                  int row, int first, int group_size, int32_t first_key) {
    Floats scores[ROWS][KEY_GROUPS];
    TW_UNROLL for (int r = 0; r < ROWS; ++r) TW_UNROLL for (int c = 0; c < KEY_GROUPS; ++c) scores[r][c] =
        load(state.scores + (first + r) * KEY_TILE + c * LANES);
    if (args.softcap > 0) cap_scores(scores, args.scale, args.softcap);
    const int32_t first_position = item.first_position + (row + first) / group_size;
    const int32_t last_position = item.first_position + (row + first + ROWS - 1) / group_size;
    if (is_cut(args, first_key, first_position, last_position))
        mask_scores(scores, args, item, row + first, group_size, first_key);
    float shrink[LANES];
    AttentionState<BFloat16> rows = state.rows;
    rows.probabilities += first * KEY_TILE;
    softmax_tile<BFloat16>(scores, exponent_scale(args), rows, row + first, shrink);
    for (int r = 0; r < ROWS; ++r) {
        float* out = rows.partition.outputs + static_cast<int64_t>(row + first + r) * args.head_dim;
        for (int i = 0; i < args.head_dim; i += LANES) store(out + i, load(out + i) * broadcast(shrink[r]));
    }
}

template <int SUM>
TW_INLINE void weigh_column(Tiles& tiles, const char* values, int64_t stride_bytes) {
    tiles.load<VALUES>(values, stride_bytes);
    tiles.multiply_bf16<ATTENTION_SUMS + SUM, PROBABILITIES, VALUES>();
}

// outputs += probabilities * values, for COLUMNS (1 or 4) groups of 16 columns of head_dim, `column` on.
template <int COLUMNS>
void add_values(Tiles& tiles, const TileAttentionState& state, int row, const KeyTile& tile, int num_blocks,
                int column, int head_dim) {
    float* out = state.rows.partition.outputs + static_cast<int64_t>(row) * head_dim + column;
    const int64_t stride_bytes = int64_t{head_dim} * 4;
    tiles.load<0>(out, stride_bytes);
    if constexpr (COLUMNS == 4) {
        tiles.load<1>(out + LANES, stride_bytes);
        tiles.load<2>(out + 2 * LANES, stride_bytes);
        tiles.load<3>(out + 3 * LANES, stride_bytes);
    }
    for (int b = 0; b < num_blocks; ++b) {
        const char* values = tile.values[b] + int64_t{column} * 4;
        tiles.load<PROBABILITIES>(state.rows.probabilities + b * BLOCK_SIZE, KEY_TILE * sizeof(BFloat16));
        weigh_column<0>(tiles, values, stride_bytes);
        if constexpr (COLUMNS == 4) {
            weigh_column<1>(tiles, values + LANES * 4, stride_bytes);
            weigh_column<2>(tiles, values + 2 * LANES * 4, stride_bytes);
            weigh_column<3>(tiles, values + 3 * LANES * 4, stride_bytes);
        }
    }
    tiles.store<0>(out, stride_bytes);
    if constexpr (COLUMNS == 4) {
        tiles.store<1>(out + LANES, stride_bytes);
        tiles.store<2>(out + 2 * LANES, stride_bytes);
        tiles.store<3>(out + 3 * LANES, stride_bytes);
    }
}

// Rows row .. row + rows of the item against one tile of keys, of which num_blocks hold any.
static void attend_tile_through_tiles(const AttentionArgs& args, const AttentionItem& item, Tiles& tiles,
                                      const TileAttentionState& state, int row, int rows, int group_size,
                                      const KeyTile& tile, int num_blocks) {
    const int d = args.head_dim;
    const int32_t first_position = item.first_position + row / group_size;
    const int32_t last_position = item.first_position + (row + rows - 1) / group_size;
    if (!is_visible(args, tile.first_key, first_position, last_position)) return;
    score_tile(tiles, state, row, d, tile);
    int first = 0;
    for (; first + SOFTMAX_ROWS <= rows; first += SOFTMAX_ROWS)
        weigh_scores<SOFTMAX_ROWS>(args, item, state, row, first, group_size, tile.first_key);
    for (; first < rows; ++first) weigh_scores<1>(args, item, state, row, first, group_size, tile.first_key);
    int column = 0;
    for (; column + 4 * LANES <= d; column += 4 * LANES)
        add_values<4>(tiles, state, row, tile, num_blocks, column, d);
    for (; column < d; column += LANES) add_values<1>(tiles, state, row, tile, num_blocks, column, d);
}

// Replaces the block that the sequence fills in part by a copy with zeros after its last position: a probability of
// 0 there would still make NaN of a stale one. Returns the number of blocks that hold keys.
static int end_values(KeyTile& tile, const TileAttentionState& state, int32_t last_position, int head_dim) {
    const int32_t num_keys = last_position + 1 - tile.first_key;
    if (num_keys >= KEY_TILE) return TILE_BLOCKS;
    const int full = num_keys / BLOCK_SIZE, left = num_keys % BLOCK_SIZE;
    if (left == 0) return full;
    const int64_t word_bytes = int64_t{head_dim} * 4;  // of two tokens
    memset(state.values, 0, BLOCK_WORDS * word_bytes);
    memcpy(state.values, tile.values[full], left / 2 * word_bytes);
    if (left % 2) {
        const char* from = tile.values[full] + left / 2 * word_bytes;
        for (int64_t i = 0; i < word_bytes; i += 4)
            memcpy(state.values + left / 2 * word_bytes + i, from + i, 2);
    }
    tile.values[full] = state.values;
    return full + 1;
}

// As attend_partition, through tiles.
static void attend_partition_through_tiles(const AttentionArgs& args, const AttentionItem& item, Tiles& tiles,
                                           const TileAttentionState& state, int32_t partition) {
    const int group_size = group_size_of(args, item);
    const int rows = item.num_queries * group_size;
    begin_partition(state.rows.partition, rows, args.head_dim);
    int configured_rows = 0;
    const KeyRange keys = visible_keys(args, item, partition);
    for (int32_t first_key = keys.first; first_key < keys.end; first_key += KEY_TILE) {
        KeyTile tile = locate_tile<BFloat16>(args, item, first_key, last_position_of(item));
        const int num_blocks = end_values(tile, state, last_position_of(item), args.head_dim);
        for (int row = 0; row < rows; row += TILE_ROWS_MAX) {
            const int left = rows - row < TILE_ROWS_MAX ? rows - row : TILE_ROWS_MAX;
            if (left != configured_rows) configure_attention(tiles, left, args.head_dim);
            configured_rows = left;
            attend_tile_through_tiles(args, item, tiles, state, row, left, group_size, tile, num_blocks);
        }
    }
}

// bfloat16 through tiles, float32 as the other builds do it.
static void attention_through_tiles(const AttentionArgs& args, const AttentionItem& item, char* scratch) {
    if (args.dtype == TW_FLOAT32) return attention(args, item, scratch);
    TileAttentionState state;
    divide_tile_scratch(scratch, num_rows_of(args, item), args.head_dim, &state);
    copy_queries(args, item, state.rows);
    Tiles tiles;
    attend_partitions(args, item, state.rows, [&](int32_t partition) {
        attend_partition_through_tiles(args, item, tiles, state, partition);
    });
}

static void attention_of_partition_through_tiles(const AttentionArgs& args, const AttentionItem& item,
                                                 int32_t partition, char* scratch, char* partition_rows) {
    if (args.dtype == TW_FLOAT32)
        return attention_of_partition(args, item, partition, scratch, partition_rows);
    TileAttentionState state;
    const int64_t rows = num_rows_of(args, item);
    divide_tile_scratch(scratch, rows, args.head_dim, &state);
    divide_softmax_rows(partition_rows, rows, args.head_dim, &state.rows.partition);
    copy_queries(args, item, state.rows);
    Tiles tiles;
    attend_partition_through_tiles(args, item, tiles, state, partition);
}

}  // namespace tokenweave::TW_ISA
