// Which tiles the products of rows with a panel take.
#pragma once

#include "tiles.h"

namespace tokenweave::TW_ISA {

// Sums of two tiles of rows and one panel, or of one tile of rows and two panels: four that do not wait for each
// other, which hides most of a product's latency (52 cycles, one of which may begin every 16).
constexpr int SUMS = 0, ROWS_OF_X = 4, COLUMNS_OF_PANEL = 6;
constexpr int64_t BLOCK_ROWS = 2 * TILE_ROWS_MAX;

// For at most BLOCK_ROWS rows, and for products over `words` words along k.
static void configure_products(Tiles& tiles, int64_t rows, int words) {
    const int first = static_cast<int>(rows < TILE_ROWS_MAX ? rows : TILE_ROWS_MAX);
    const int second = static_cast<int>(rows > TILE_ROWS_MAX ? rows - TILE_ROWS_MAX : rows);
    TileConfiguration configuration;
    for (int i = 0; i < 2; ++i) {
        configuration.shape(SUMS + i, first, TILE_ROW_BYTES);
        configuration.shape(SUMS + 2 + i, second, TILE_ROW_BYTES);
        configuration.shape(COLUMNS_OF_PANEL + i, words, TILE_ROW_BYTES);
    }
    configuration.shape(ROWS_OF_X, first, words * 4);
    configuration.shape(ROWS_OF_X + 1, second, words * 4);
    tiles.configure(configuration);
}

}  // namespace tokenweave::TW_ISA
