// Products of single tiles for test_kernels_tiles.py: by the instructions where compiled for them, else emulated.
#define TW_ISA tile_products
#include "kernels/amx/tiles.h"

using namespace tokenweave::tile_products;

// c (rows, columns) += a (rows, words) b (words, columns); a word of a and of b is four signed bytes.
extern "C" __attribute__((visibility("default"))) void tile_product_i8(int rows, int words, int columns,
                                                                       const void* a, const void* b,
                                                                       void* c) {
    TileConfiguration configuration;
    configuration.shape(0, rows, columns * 4);
    configuration.shape(1, rows, words * 4);
    configuration.shape(2, words, columns * 4);
    Tiles tiles;
    tiles.configure(configuration);
    tiles.load<0>(c, columns * 4);
    tiles.load<1>(a, words * 4);
    tiles.load<2>(b, columns * 4);
    tiles.multiply_i8<0, 1, 2>();
    tiles.store<0>(c, columns * 4);
}
