// Products of stored weights through tiles of int8, for many rows.
//
// Sums of codes are exact, and so the same as those of vectors; quantized/multiply.h then scales and adds them, in one
// order. A row's bits therefore do not depend on which way it goes, nor on the instruction set.
#pragma once

#include "../quantized/multiply.h"
#include "products.h"

namespace tokenweave::TW_ISA {

// Fewer rows go through vectors: unpacked codes and sums pass through memory on their way to tiles and back, which
// must be shared by some rows. No machine with AMX has said how many; it changes no bit.
constexpr int64_t INT8_TILE_ROWS_MIN = 8;

// q6_k has a scale for each 16 values, so its halves of a group are summed apart.
template <int FORMAT>
constexpr int SUMS_OF_GROUP = FORMAT == TW_Q6_K ? 2 : 1;
template <int FORMAT>
constexpr int TILE_WORDS = GROUP_WORDS / SUMS_OF_GROUP<FORMAT>;

// The sums of one group, of each of its halves where they are apart.
template <int FORMAT>
struct GroupSums {
    alignas(64) int32_t sums[SUMS_OF_GROUP<FORMAT>][BLOCK_ROWS][PANEL];
};

// A group whose sums are taken, then added.
struct TileGroup {
    const char *header, *group;
    const ActivationBlock* x;
};

// The codes of a group as signed bytes: eight words, each of a panel's columns. Those of q8_0 lie so as they are.
template <int FORMAT>
TW_INLINE const char* signed_codes(const char* group, char* codes) {
    if constexpr (FORMAT == TW_Q8_0) return group;
    typedef int8_t Bytes __attribute__((vector_size(4 * WIDTH)));
    constexpr int8_t OFFSET = FormatOf<FORMAT>::OFFSET;
    TW_UNROLL for (int vector = 0; vector < PANEL_VECTORS; ++vector) {
        WordPart words[GROUP_WORDS];
        unpack<FORMAT>(group, vector, words);
        TW_UNROLL for (int j = 0; j < GROUP_WORDS; ++j) {
            const Bytes bytes = reinterpret_cast<Bytes>(words[j]) - OFFSET;
            memcpy(codes + (j * PANEL + vector * WIDTH) * 4, &bytes, sizeof(bytes));
        }
    }
    return codes;
}

// The exact sums of WORDS words of codes and of rows of x, whose codes are at `x`.
template <int WORDS>
TW_INLINE void multiply_codes(Tiles& tiles, const int8_t* x, int64_t rows, const char* codes,
                              int32_t (&sums)[BLOCK_ROWS][PANEL]) {
    constexpr int64_t STRIDE = sizeof(ActivationBlock);
    tiles.zero<SUMS>(), tiles.zero<SUMS + 1>();
    tiles.load<ROWS_OF_X>(x, STRIDE);
    tiles.load<COLUMNS_OF_PANEL>(codes, PANEL * 4);
    tiles.load<COLUMNS_OF_PANEL + 1>(codes + LANES * 4, PANEL * 4);
    tiles.multiply_i8<SUMS, ROWS_OF_X, COLUMNS_OF_PANEL>();
    tiles.multiply_i8<SUMS + 1, ROWS_OF_X, COLUMNS_OF_PANEL + 1>();
    if (rows > TILE_ROWS_MAX) {
        tiles.zero<SUMS + 2>(), tiles.zero<SUMS + 3>();
        tiles.load<ROWS_OF_X + 1>(x + TILE_ROWS_MAX * STRIDE, STRIDE);
        tiles.multiply_i8<SUMS + 2, ROWS_OF_X + 1, COLUMNS_OF_PANEL>();
        tiles.multiply_i8<SUMS + 3, ROWS_OF_X + 1, COLUMNS_OF_PANEL + 1>();
        tiles.store<SUMS + 2>(sums[TILE_ROWS_MAX], PANEL * 4);
        tiles.store<SUMS + 3>(sums[TILE_ROWS_MAX] + LANES, PANEL * 4);
    }
    tiles.store<SUMS>(sums[0], PANEL * 4);
    tiles.store<SUMS + 1>(sums[0] + LANES, PANEL * 4);
}

template <int FORMAT>
TW_INLINE void multiply_group(Tiles& tiles, const TileGroup& group, int64_t rows, GroupSums<FORMAT>& exact) {
    constexpr int WORDS = TILE_WORDS<FORMAT>;
    alignas(64) char scratch[GROUP_WORDS * PANEL * 4];
    const char* const codes = signed_codes<FORMAT>(group.group, scratch);
    TW_UNROLL for (int i = 0; i < SUMS_OF_GROUP<FORMAT>; ++i) multiply_codes<WORDS>(
        tiles, group.x->codes + i * WORDS * 4, rows, codes + i * WORDS * PANEL * 4, exact.sums[i]);
}

// Adds a group's exact sums to those of the rows.
template <int FORMAT>
TW_INLINE void add_exact(const TileGroup& group, int64_t rows, const GroupSums<FORMAT>& exact, float* sums) {
    TW_UNROLL for (int vector = 0; vector < PANEL_VECTORS; ++vector) {
        const ColumnScales columns = column_scales<FORMAT>(group.header, group.group, vector);
        for (int64_t r = 0; r < rows; ++r) {
            const auto sum = [&](int half) { return load_ints(exact.sums[half][r] + vector * WIDTH); };
            const IntPart product = [&] {
                if constexpr (FORMAT == TW_Q6_K) return sum(0) * columns.half[0] + sum(1) * columns.half[1];
                else return sum(0);
            }();
            add_product<FORMAT>(product, columns, group.x[r], sums + r * PANEL + vector * WIDTH);
        }
    }
}

// A group's products begin before the last one's sums are added, so that vectors work while tiles do.
template <int FORMAT>
void stored_tile_through_tiles(const StoredLinearArgs& args, Tiles& tiles, const char* panel, int64_t row,
                               int64_t rows, float* sums) {
    memset(sums, 0, sizeof(float) * PANEL * rows);
    GroupSums<FORMAT> exact[2];
    TileGroup last{};
    int turn = 0;
    each_group<FORMAT>(args, panel, row,
                       [&](const char* header, const char* group, const ActivationBlock* x) {
                           const TileGroup next{header, group, x};
                           multiply_group<FORMAT>(tiles, next, rows, exact[turn]);
                           turn ^= 1;
                           if (last.x) add_exact<FORMAT>(last, rows, exact[turn], sums);
                           last = next;
                       });
    add_exact<FORMAT>(last, rows, exact[turn ^ 1], sums);
}

// Tiles, with the shapes that they are configured for: those of neighbouring panels mostly agree.
class StoredTiles {
  public:
    void multiply(const StoredLinearArgs& args, const StoredPart& part, int64_t panel, const char* packed,
                  int64_t row, int64_t rows) {
        alignas(64) float sums[BLOCK_ROWS * PANEL];
        with_format(part.format, [&](auto format) {
            constexpr int FORMAT = decltype(format)::value;
            configure(rows, TILE_WORDS<FORMAT>);
            stored_tile_through_tiles<FORMAT>(args, tiles_, packed, row, rows, sums);
        });
        store_stored(args, part, panel, row, rows, sums);
    }

  private:
    void configure(int64_t rows, int words) {
        if (rows != rows_ || words != words_) configure_products(tiles_, rows, words);
        rows_ = rows, words_ = words;
    }

    Tiles tiles_;
    int64_t rows_ = 0;
    int words_ = 0;
};

static void stored_linear_through_tiles(const StoredLinearArgs& args, int64_t first_panel,
                                        int64_t last_panel) {
    if (args.m < INT8_TILE_ROWS_MIN) return stored_linear(args, first_panel, last_panel);
    StoredTiles tiles;
    each_panel(args, first_panel, last_panel, [&](const StoredPart& part, int64_t panel, const char* packed) {
        for (int64_t row = 0; row < args.m; row += BLOCK_ROWS) {
            const int64_t rows = args.m - row < BLOCK_ROWS ? args.m - row : BLOCK_ROWS;
            if (rows < INT8_TILE_ROWS_MIN) stored_rows(args, part, panel, packed, row, rows);
            else tiles.multiply(args, part, panel, packed, row, rows);
        }
    });
}

}  // namespace tokenweave::TW_ISA
