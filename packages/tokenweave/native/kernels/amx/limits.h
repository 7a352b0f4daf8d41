// The ceiling of bfloat16 products through tiles: a loop of nothing but them.
#pragma once

#include "tiles.h"

namespace tokenweave::TW_ISA {

// Four sums of two tiles of rows and two of columns, as products of many rows are computed.
static double spin_tiles() {
#if defined(__AMX_BF16__)
    constexpr int STEPS = 2000;
#else
    constexpr int STEPS = 1;  // emulated: a part of a measurement must end soon
#endif
    TileConfiguration configuration;
    for (int tile = 0; tile < NUM_TILES; ++tile) configuration.shape(tile, TILE_ROWS_MAX, TILE_ROW_BYTES);
    Tiles tiles;
    tiles.configure(configuration);  // to zeros, which take as long as any values
    for (int step = 0; step < STEPS; ++step) {
        tiles.multiply_bf16<0, 4, 6>();
        tiles.multiply_bf16<1, 4, 7>();
        tiles.multiply_bf16<2, 5, 6>();
        tiles.multiply_bf16<3, 5, 7>();
    }
    constexpr int COLUMNS = TILE_ROW_BYTES / 4, K = TILE_ROW_BYTES / 2;  // of a product
    return 2.0 * TILE_ROWS_MAX * COLUMNS * K * 4 * STEPS;
}

}  // namespace tokenweave::TW_ISA
