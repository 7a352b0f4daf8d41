// Products of bfloat16 over packed weights, through tiles.
//
// A packed panel is what a tile of B wants as it stands: sixteen words along k, each of sixteen columns, a word being
// two bfloat16. A row's bits depend on nothing but the row: it takes k in the same tiles of 32 whatever rows lie
// beside it, and its sums stay in one float32 tile until k ends.
#pragma once

#include "../linear.h"
#include "products.h"

namespace tokenweave::TW_ISA {

constexpr int K_TILE_WORDS = TILE_ROWS_MAX;
constexpr int64_t K_TILE_BYTES = int64_t{K_TILE_WORDS} * 4;                // of a row of x
constexpr int64_t K_TILE_PANEL_BYTES = int64_t{K_TILE_WORDS} * PANEL * 4;  // of a panel

// What is left of k after the last whole tile, with zeros up to a tile: a row of x may end there, and what follows
// the words of a panel may be anything.
struct LinearTail {
    alignas(64) char rows[BLOCK_ROWS * K_TILE_BYTES];
    alignas(64) char panels[2][K_TILE_PANEL_BYTES];
};

// Some rows of x, at most BLOCK_ROWS, and what their products need.
struct LinearBlock {
    const char* x;
    int64_t ldx_bytes;
    int64_t rows;
    int64_t row;  // the first one's number
};

// One tile of k. `b` is each panel's part of it.
template <int ROW_TILES, int PANELS>
TW_INLINE void multiply_k_tile(Tiles& tiles, const char* a, int64_t lda, const char* const (&b)[2]) {
    tiles.load<ROWS_OF_X>(a, lda);
    tiles.load<COLUMNS_OF_PANEL>(b[0], PANEL * 4);
    tiles.load<COLUMNS_OF_PANEL + 1>(b[0] + LANES * 4, PANEL * 4);
    tiles.multiply_bf16<SUMS, ROWS_OF_X, COLUMNS_OF_PANEL>();
    tiles.multiply_bf16<SUMS + 1, ROWS_OF_X, COLUMNS_OF_PANEL + 1>();
    if constexpr (ROW_TILES == 2) {
        tiles.load<ROWS_OF_X + 1>(a + TILE_ROWS_MAX * lda, lda);
        tiles.multiply_bf16<SUMS + 2, ROWS_OF_X + 1, COLUMNS_OF_PANEL>();
        tiles.multiply_bf16<SUMS + 3, ROWS_OF_X + 1, COLUMNS_OF_PANEL + 1>();
    }
    if constexpr (PANELS == 2) {
        tiles.load<COLUMNS_OF_PANEL>(b[1], PANEL * 4);
        tiles.load<COLUMNS_OF_PANEL + 1>(b[1] + LANES * 4, PANEL * 4);
        tiles.multiply_bf16<SUMS + 2, ROWS_OF_X, COLUMNS_OF_PANEL>();
        tiles.multiply_bf16<SUMS + 3, ROWS_OF_X, COLUMNS_OF_PANEL + 1>();
    }
}

template <typename Out>
void store_sums(const LinearArgs& args, const float* sums, int64_t row, int64_t rows, int64_t panel) {
    const int64_t first = panel * PANEL, left = args.n - first;
    store_panel(sums, args.bias, static_cast<Out*>(args.y) + row * args.ldy, args.ldy, rows, first,
                left < PANEL ? left : PANEL);
}

TW_INLINE void copy_tail(const LinearArgs& args, const LinearBlock& block, const char* const (&panels)[2],
                         int num_panels, int64_t done_words, LinearTail& tail) {
    const int64_t row_bytes = (args.k - done_words * 2) * 2;
    memset(tail.rows, 0, block.rows * K_TILE_BYTES);
    for (int64_t r = 0; r < block.rows; ++r)
        memcpy(tail.rows + r * K_TILE_BYTES, block.x + r * block.ldx_bytes + done_words * 4, row_bytes);
    memset(tail.panels, 0, sizeof(tail.panels));
    for (int p = 0; p < num_panels; ++p)
        memcpy(tail.panels[p], panels[p] + done_words * PANEL * 4,
               (words_of<BFloat16>(args.k) - done_words) * PANEL * 4);
}

template <typename Out, int ROW_TILES, int PANELS>
void multiply_tiles(const LinearArgs& args, Tiles& tiles, const LinearBlock& block, int64_t panel) {
    const int64_t bytes = panel_bytes<BFloat16>(args.k);
    const char* const packed = static_cast<const char*>(args.packed) + panel * bytes;
    const char* const panels[2] = {packed, packed + bytes};
    const int64_t k_tiles = args.k / (2 * K_TILE_WORDS);
    tiles.zero<SUMS>(), tiles.zero<SUMS + 1>(), tiles.zero<SUMS + 2>(), tiles.zero<SUMS + 3>();
    for (int64_t step = 0; step < k_tiles; ++step) {
        const char* const b[2] = {panels[0] + step * K_TILE_PANEL_BYTES,
                                  panels[1] + step * K_TILE_PANEL_BYTES};
        if (block.row == 0)  // later rows find the panel in a cache
            for (int p = 0; p < PANELS; ++p)
                for (int64_t line = 0; line < K_TILE_PANEL_BYTES; line += 64)
                    _mm_prefetch(b[p] + PREFETCH_BYTES + line, _MM_HINT_T0);
        multiply_k_tile<ROW_TILES, PANELS>(tiles, block.x + step * K_TILE_BYTES, block.ldx_bytes, b);
    }
    if (k_tiles * 2 * K_TILE_WORDS < args.k) {
        LinearTail tail;
        copy_tail(args, block, panels, PANELS, k_tiles * K_TILE_WORDS, tail);
        multiply_k_tile<ROW_TILES, PANELS>(tiles, tail.rows, K_TILE_BYTES, {tail.panels[0], tail.panels[1]});
    }
    alignas(64) float sums[BLOCK_ROWS * PANEL];
    tiles.store<SUMS>(sums, PANEL * 4);
    tiles.store<SUMS + 1>(sums + LANES, PANEL * 4);
    float* const second = sums + TILE_ROWS_MAX * PANEL;
    if constexpr (ROW_TILES == 2 || PANELS == 2) {
        tiles.store<SUMS + 2>(second, PANEL * 4);
        tiles.store<SUMS + 3>(second + LANES, PANEL * 4);
    }
    store_sums<Out>(args, sums, block.row, block.rows, panel);
    if constexpr (PANELS == 2) store_sums<Out>(args, second, block.row, block.rows, panel + 1);
}

template <typename Out>
void multiply_panels(const LinearArgs& args, int64_t first_panel, int64_t last_panel) {
    const int64_t ldx_bytes = args.ldx * 2;
    Tiles tiles;
    int64_t configured_rows = 0;
    // Few rows share one tile; then two panels share it.
    const int64_t step = args.m <= TILE_ROWS_MAX ? 2 : 1;
    for (int64_t panel = first_panel; panel < last_panel; panel += step)
        for (int64_t row = 0; row < args.m; row += BLOCK_ROWS) {
            const int64_t rows = args.m - row < BLOCK_ROWS ? args.m - row : BLOCK_ROWS;
            const LinearBlock block{static_cast<const char*>(args.x) + row * ldx_bytes, ldx_bytes, rows, row};
            // Once where all blocks have as many rows, at most twice for a panel.
            if (rows != configured_rows) configure_products(tiles, rows, K_TILE_WORDS);
            configured_rows = rows;
            if (rows > TILE_ROWS_MAX) multiply_tiles<Out, 2, 1>(args, tiles, block, panel);
            else if (step == 2 && panel + 1 < last_panel)
                multiply_tiles<Out, 1, 2>(args, tiles, block, panel);
            else multiply_tiles<Out, 1, 1>(args, tiles, block, panel);
        }
}

// bfloat16 through tiles, float32 as the other builds do it. The tiles are configured and released for each item of
// a job: some hundred cycles of at least a thousand, and no thread goes to sleep with tiles that must be saved.
static void linear_through_tiles(const LinearArgs& args, int64_t first_panel, int64_t last_panel) {
    if (args.dtype == TW_FLOAT32) return linear(args, first_panel, last_panel);
    if (args.m == 0) return;
    with_dtype(args.out_dtype,
               [&](auto out_type) { multiply_panels<decltype(out_type)>(args, first_panel, last_panel); });
}

}  // namespace tokenweave::TW_ISA
