// Products of quantised rows with stored weights.
#pragma once

#include "../panel.h"
#include "activations.h"
#include "pack.h"

namespace tokenweave::TW_ISA {

// The scale and minimum of WIDTH columns in one group.
struct ColumnScales {
    FloatPart scale, minimum;
    IntPart half[2];  // q6_k: of the first and the other 16 values
};

template <int FORMAT>
TW_INLINE ColumnScales column_scales(const char* header, const char* group, int vector) {
    using Layout = PanelLayout<FORMAT>;
    ColumnScales out{};
    const char* const sub = group + Layout::CODE_BYTES + vector * WIDTH;
    out.scale = load_halves(header + vector * WIDTH * 2);
    if constexpr (Layout::Format::HAS_MINIMUM)
        out.minimum = load_halves(header + PANEL * 2 + vector * WIDTH * 2);
    if constexpr (FORMAT == TW_Q6_K) {
        out.half[0] = load_signed(sub);
        out.half[1] = load_signed(sub + PANEL);
    } else if constexpr (Layout::Format::HAS_SUB_SCALES) {
        out.scale *= load_small(sub);
        out.minimum *= -load_small(sub + PANEL);
    }
    return out;
}

// The exact sums of codes times x's codes, for q6_k times the scales of the halves too: below 2^24, so that a
// float holds them.
template <int FORMAT>
TW_INLINE IntPart dot_group(const WordPart (&codes)[GROUP_WORDS], const ColumnScales& columns,
                            const ActivationBlock& x) {
    constexpr int BITS = FormatOf<FORMAT>::CODE_BITS;
    constexpr int OFFSET = FORMAT == TW_Q8_0 && SIGNED_AS_OFFSET ? 128 : FormatOf<FORMAT>::OFFSET;
    if constexpr (FORMAT == TW_Q6_K) {
        uint32_t half_sums;
        memcpy(&half_sums, x.half_sum, sizeof(half_sums));
        const IntPart first = dot_unsigned<BITS, 0, GROUP_WORDS / 2>(codes, x, columns.half[0]);
        const IntPart other = dot_unsigned<BITS, GROUP_WORDS / 2, GROUP_WORDS>(codes, x, columns.half[1]);
        const IntPart offsets = pair_of(OFFSET * columns.half[0], OFFSET * columns.half[1]);
        return first + other - dot_pair(reinterpret_cast<IntPart>(WordPart{} + half_sums), offsets);
    } else {
        const IntPart sum = [&] {
            if constexpr (BITS == 8) return dot_signed(codes, x);
            else return dot_unsigned<BITS, 0, GROUP_WORDS>(codes, x);
        }();
        return OFFSET ? sum - OFFSET * (x.half_sum[0] + x.half_sum[1]) : sum;
    }
}

// Adds the product of one group to the sums of one row in WIDTH columns. Every way to multiply ends here: where the
// exact sums come from changes no bit.
template <int FORMAT>
TW_INLINE void add_product(IntPart exact, const ColumnScales& columns, const ActivationBlock& x,
                           float* sums) {
    FloatPart* const sum = reinterpret_cast<FloatPart*>(sums);
    FloatPart value = *sum + to_floats(exact) * (columns.scale * x.scale);
    if constexpr (FormatOf<FORMAT>::HAS_MINIMUM) value += columns.minimum * x.sum;
    *sum = value;
}

// Adds one group of the panel to the sums of the rows. The codes of a vector of columns are unpacked once, into
// 8 registers, and all rows pass over them.
template <int FORMAT>
TW_INLINE void add_group(const char* header, const char* group, const ActivationBlock* x, int64_t rows,
                         float* sums) {
    TW_UNROLL for (int vector = 0; vector < PANEL_VECTORS; ++vector) {
        const ColumnScales columns = column_scales<FORMAT>(header, group, vector);
        WordPart codes[GROUP_WORDS];
        unpack<FORMAT>(group, vector, codes);
        for (int64_t r = 0; r < rows; ++r)
            add_product<FORMAT>(dot_group<FORMAT>(codes, columns, x[r]), columns, x[r],
                                sums + r * PANEL + vector * WIDTH);
    }
}

// Calls f(header, group, x) for each group of a panel in order, `x` being the blocks of rows `row` on.
template <int FORMAT, typename F>
TW_INLINE void each_group(const StoredLinearArgs& args, const char* panel, int64_t row, F f) {
    using Layout = PanelLayout<FORMAT>;
    const Layout layout(args.first_column, args.k);
    for (int64_t block = 0; block < layout.num_blocks(); ++block) {
        const char* const header = panel + layout.header_at(block);
        for (int64_t g = layout.first_group_of(block); g < layout.last_group_of(block); ++g) {
            const char* const group = panel + layout.group_at(g);
            for (int64_t ahead = 0; ahead < Layout::GROUP_BYTES; ahead += 64)
                _mm_prefetch(group + PREFETCH_BYTES + ahead, _MM_HINT_T0);
            f(header, group, args.x + g * args.m + row);
        }
    }
}

// The sums, (rows, PANEL), stay in the nearest cache; a group at a time passes over them.
template <int FORMAT>
void stored_tile(const StoredLinearArgs& args, const char* panel, int64_t row, int64_t rows, float* sums) {
    memset(sums, 0, sizeof(float) * PANEL * rows);
    each_group<FORMAT>(args, panel, row,
                       [&](const char* header, const char* group, const ActivationBlock* x) {
                           add_group<FORMAT>(header, group, x, rows, sums);
                       });
}

// Writes the sums, (rows, PANEL), of a part's panel to rows `row` on of y.
static void store_stored(const StoredLinearArgs& args, const StoredPart& part, int64_t panel, int64_t row,
                         int64_t rows, const float* sums) {
    const int64_t left = part.n - panel * PANEL, count = left < PANEL ? left : PANEL;
    with_dtype(args.out_dtype, [&](auto type) {
        store_panel(sums, args.bias, static_cast<decltype(type)*>(args.y) + row * args.ldy, args.ldy, rows,
                    part.first_row + panel * PANEL, count);
    });
}

static void stored_rows(const StoredLinearArgs& args, const StoredPart& part, int64_t panel,
                        const char* packed, int64_t row, int64_t rows) {
    alignas(64) float sums[STORED_ROWS * PANEL];
    with_format(part.format,
                [&](auto format) { stored_tile<decltype(format)::value>(args, packed, row, rows, sums); });
    store_stored(args, part, panel, row, rows, sums);
}

// Calls f(part, panel, packed) for each panel from first_panel on, counted through all parts; `panel` counts its
// part's own.
template <typename F>
TW_INLINE void each_panel(const StoredLinearArgs& args, int64_t first_panel, int64_t last_panel, F f) {
    int64_t before = 0;
    for (int i = 0; i < args.num_parts; ++i) {
        const StoredPart& part = args.parts[i];
        const int64_t panels = (part.n + PANEL - 1) / PANEL;
        const int64_t first = first_panel - before > 0 ? first_panel - before : 0;
        const int64_t last = last_panel - before < panels ? last_panel - before : panels;
        const int64_t size_bytes = panel_bytes_of(part.format, args.first_column, args.k);
        for (int64_t panel = first; panel < last; ++panel)
            f(part, panel, static_cast<const char*>(part.packed) + panel * size_bytes);
        before += panels;
    }
}

static void stored_linear(const StoredLinearArgs& args, int64_t first_panel, int64_t last_panel) {
    each_panel(args, first_panel, last_panel, [&](const StoredPart& part, int64_t panel, const char* packed) {
        for (int64_t row = 0; row < args.m; row += STORED_ROWS) {
            const int64_t rows = args.m - row < STORED_ROWS ? args.m - row : STORED_ROWS;
            stored_rows(args, part, panel, packed, row, rows);
        }
    });
}

}  // namespace tokenweave::TW_ISA
