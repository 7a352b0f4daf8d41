// Packing of weights, matrix products over packed weights, and rows read back out of them.
#pragma once

#include "panel.h"
#include "simd.h"

namespace tokenweave::TW_ISA {

constexpr int PANEL_GROUPS = PANEL / LANES;
// Rows of a tile: as many as keep its accumulators in registers. AVX-512 takes 12 rows x 2 of its 32 registers,
// which leaves room for two columns and the word of x, the baseline 1 x 8 of 16. No full tile has fewer than 8,
// what two ports need to hide the 4 cycles of a fused multiply-add.
//
// AVX2 takes few rows over a whole panel, 3 x 4 of its 16, and many over TILE_GROUPS of its groups, 6 x 2: these
// read half as much of the panel, whose way from the second cache bounds the other.
constexpr int TILE_ROWS = WIDTH == 16 ? 12 : WIDTH == 8 ? 6 : 1;
constexpr int PANEL_ROWS = WIDTH == 8 ? 3 : TILE_ROWS;  // the most rows of a tile that takes a whole panel
constexpr int TILE_GROUPS = WIDTH == 8 ? 1 : PANEL_GROUPS;
static_assert(ROW_TILE % TILE_ROWS == 0);

template <typename T>
TW_INLINE int64_t words_of(int64_t k) {
    return (k + WORD_ELEMENTS<T> - 1) / WORD_ELEMENTS<T>;
}
// Bytes of one packed panel.
template <typename T>
TW_INLINE int64_t panel_bytes(int64_t k) {
    return words_of<T>(k) * PANEL * 4;
}

// ---- pack ----

// Source rows are converted sixteen elements at a time, then scattered word by word into the panel.
template <typename Source, typename T>
void pack_panel(const PackArgs& args, int64_t panel) {
    const int64_t num_words = words_of<T>(args.k);
    uint32_t* out = static_cast<uint32_t*>(args.packed) + panel * num_words * PANEL;
    constexpr int CHUNK_WORDS = LANES / WORD_ELEMENTS<T>;
    for (int64_t word = 0; word < num_words; word += CHUNK_WORDS) {
        const int64_t chunk = num_words - word < CHUNK_WORDS ? num_words - word : CHUNK_WORDS;
        const int64_t first = word * WORD_ELEMENTS<T>;
        for (int64_t column = 0; column < PANEL; ++column) {
            const int64_t n = panel * PANEL + column;
            alignas(64) uint32_t words[LANES] = {};
            if (n < args.n) {
                const Source* row = static_cast<const Source*>(args.weight) + n * args.ldw + first;
                store(reinterpret_cast<T*>(words), load_some(row, args.k - first));
            }
            for (int64_t i = 0; i < chunk; ++i) out[(word + i) * PANEL + column] = words[i];
        }
    }
}

static void pack(const PackArgs& args, int64_t first_panel, int64_t last_panel) {
    with_dtype(args.weight_dtype, [&](auto source) {
        with_dtype(args.dtype, [&](auto target) {
            for (int64_t panel = first_panel; panel < last_panel; ++panel)
                pack_panel<decltype(source), decltype(target)>(args, panel);
        });
    });
}

// ---- linear ----

// Rows row .. row + ROWS times GROUPS groups of the panel, from `group` on.
template <typename T, typename Out, int ROWS, int GROUPS>
void linear_tile(const LinearArgs& args, int64_t row, int64_t panel, int group) {
    const int64_t lda = args.ldx * sizeof(T);
    const char* a = static_cast<const char*>(args.x) + row * lda;
    const char* b = static_cast<const char*>(args.packed) + panel * panel_bytes<T>(args.k);
    const char* groups[GROUPS];
    TW_UNROLL for (int c = 0; c < GROUPS; ++c) groups[c] = b + (group + c) * LANES * 4;
    const int64_t steps = args.k / WORD_ELEMENTS<T>;
    Floats acc[ROWS][GROUPS];
    TW_UNROLL for (int r = 0; r < ROWS; ++r) TW_UNROLL for (int c = 0; c < GROUPS; ++c) acc[r][c] = zeros();
    accumulate<T, PREFETCH_BYTES>(acc, a, lda, groups, PANEL * 4, steps);
    if (steps * WORD_ELEMENTS<T> < args.k) {  // an odd k: half a word
        TW_UNROLL for (int c = 0; c < GROUPS; ++c) {
            const Words column = load_words(groups[c] + steps * PANEL * 4);
            TW_UNROLL for (int r = 0; r < ROWS; ++r) {
                uint16_t last;
                memcpy(&last, a + r * lda + steps * 4, sizeof(last));
                acc[r][c] = dot<T>(acc[r][c], last, column);
            }
        }
    }
    TW_UNROLL for (int c = 0; c < GROUPS; ++c) {
        const int64_t n = panel * PANEL + (group + c) * LANES;
        const int64_t count = args.n - n;
        if (count <= 0) break;
        const Floats bias = args.bias ? load_some(args.bias + n, count) : zeros();
        TW_UNROLL for (int r = 0; r < ROWS; ++r)
            store_some(static_cast<Out*>(args.y) + (row + r) * args.ldy + n, acc[r][c] + bias, count);
    }
}

// The tile for 1 <= rows <= ROWS.
template <typename T, typename Out, int ROWS>
TW_INLINE void linear_rows(const LinearArgs& args, int64_t row, int rows, int64_t panel) {
    if constexpr (ROWS > 1) {
        if (rows < ROWS) return linear_rows<T, Out, ROWS - 1>(args, row, rows, panel);
    }
    if constexpr (ROWS <= PANEL_ROWS) {
        linear_tile<T, Out, ROWS, PANEL_GROUPS>(args, row, panel, 0);
    } else {
        for (int group = 0; group < PANEL_GROUPS; group += TILE_GROUPS)
            linear_tile<T, Out, ROWS, TILE_GROUPS>(args, row, panel, group);
    }
}

// A panel stays in the nearest cache while the rows pass over it.
static void linear(const LinearArgs& args, int64_t first_panel, int64_t last_panel) {
    with_dtype(args.dtype, [&](auto type) {
        with_dtype(args.out_dtype, [&](auto out_type) {
            for (int64_t panel = first_panel; panel < last_panel; ++panel)
                for (int64_t row = 0; row < args.m; row += TILE_ROWS) {
                    const int64_t rows = args.m - row < TILE_ROWS ? args.m - row : TILE_ROWS;
                    linear_rows<decltype(type), decltype(out_type), TILE_ROWS>(args, row, rows, panel);
                }
        });
    });
}

// ---- gather_rows ----

template <typename T>
void gather_row(const GatherArgs& args, int64_t row) {
    const int64_t n = args.ids[row] - args.first_row;
    T* out = static_cast<T*>(args.out) + row * args.k;
    if (n < 0 || n >= args.n) {
        memset(out, 0, args.k * sizeof(T));
        return;
    }
    const char* in =
        static_cast<const char*>(args.packed) + n / PANEL * panel_bytes<T>(args.k) + n % PANEL * 4;
    const int64_t steps = args.k / WORD_ELEMENTS<T>;
    for (int64_t step = 0; step < steps; ++step)
        memcpy(reinterpret_cast<char*>(out) + step * 4, in + step * PANEL * 4, 4);
    if (steps * WORD_ELEMENTS<T> < args.k) memcpy(out + args.k - 1, in + steps * PANEL * 4, sizeof(T));
}

static void gather_rows(const GatherArgs& args, int64_t first_row, int64_t last_row) {
    with_dtype(args.dtype, [&](auto type) {
        for (int64_t row = first_row; row < last_row; ++row) gather_row<decltype(type)>(args, row);
    });
}

}  // namespace tokenweave::TW_ISA
