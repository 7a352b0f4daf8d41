// The blocks of a file, repacked into panels, and rows read back out of them.
#pragma once

#include "codes.h"

namespace tokenweave::TW_ISA {

// ---- pack ----

// The codes of group `group` of a block.
template <int FORMAT>
TW_INLINE void read_codes(const uint8_t* block, int group, uint8_t (&codes)[GROUP_VALUES]) {
    constexpr int HALF = GROUP_VALUES / 2;
    for (int i = 0; i < GROUP_VALUES; ++i) {
        if constexpr (FORMAT == TW_Q4_0 || FORMAT == TW_Q4_1) {
            codes[i] = block[(FORMAT == TW_Q4_0 ? 2 : 4) + i % HALF] >> (i < HALF ? 0 : 4) & 15;
        } else if constexpr (FORMAT == TW_Q8_0) {
            codes[i] = block[2 + i];
        } else if constexpr (FORMAT == TW_Q6_K) {
            // Runs of 64 bytes: two groups in their low nibbles, two in the high ones.
            const int half = group / 4, quarter = group % 4;
            const int low = block[half * 64 + quarter % 2 * 32 + i] >> (quarter / 2 * 4) & 15;
            codes[i] = low | (block[128 + half * 32 + i] >> (2 * quarter) & 3) << 4;
        } else {
            constexpr int FIRST = FORMAT == TW_Q4_K ? 16 : 48;
            const int low = block[FIRST + group / 2 * 32 + i] >> (group % 2 * 4) & 15;
            codes[i] = FORMAT == TW_Q4_K ? low : low | (block[16 + i] >> group & 1) << 4;
        }
    }
}

// Its two numbers of 6 or 8 bits: scale and minimum, or the scales of its halves.
template <int FORMAT>
TW_INLINE void read_sub_scales(const uint8_t* block, int group, uint8_t (&pair)[2]) {
    if constexpr (FORMAT == TW_Q6_K) {
        memcpy(pair, block + 192 + 2 * group, 2);
    } else {
        const uint8_t* s = block + 4;
        if (group < 4) {
            pair[0] = s[group] & 63;
            pair[1] = s[group + 4] & 63;
        } else {
            pair[0] = (s[group + 4] & 15) | s[group - 4] >> 6 << 4;
            pair[1] = s[group + 4] >> 4 | s[group] >> 6 << 4;
        }
    }
}

template <int FORMAT>
TW_INLINE void write_codes(const uint8_t (&codes)[GROUP_VALUES], char* group, int column) {
    using Layout = PanelLayout<FORMAT>;
    constexpr int BITS = Layout::Format::CODE_BITS;
    char* const out = group + column * 4;
    if constexpr (BITS == 8) {
        for (int j = 0; j < GROUP_WORDS; ++j) memcpy(out + j * PANEL * 4, codes + 4 * j, 4);
        return;
    }
    for (int j = 0; j < GROUP_WORDS / 2; ++j)
        for (int i = 0; i < 4; ++i)
            out[j * PANEL * 4 + i] = (codes[4 * j + i] & 15) | (codes[16 + 4 * j + i] & 15) << 4;
    if constexpr (BITS > 4) {
        uint8_t high[8] = {};
        for (int j = 0; j < GROUP_WORDS; ++j)
            for (int i = 0; i < 4; ++i) {
                const int bits = codes[4 * j + i] >> 4;
                if (BITS == 5) high[i] |= bits << j;
                else high[j / 4 * 4 + i] |= bits << (2 * (j % 4));
            }
        memcpy(out + Layout::HIGH_BITS, high, 4);
        if (BITS == 6) memcpy(out + Layout::HIGH_BITS + PANEL * 4, high + 4, 4);
    }
}

template <int FORMAT>
void pack_stored_panel(const StoredPackArgs& args, int64_t panel) {
    using Layout = PanelLayout<FORMAT>;
    using Format = typename Layout::Format;
    const Layout layout(args.first_column, args.k);
    char* const out = static_cast<char*>(args.packed) + panel * layout.size_bytes();
    for (int64_t b = 0; b < layout.num_blocks(); ++b) {
        char* const header = out + layout.header_at(b);
        for (int column = 0; column < PANEL; ++column) {
            // Columns past the last are blocks of zeros, whose values are zero.
            static const uint8_t zeros[Format::BLOCK_BYTES] = {};
            const int64_t n = panel * PANEL + column;
            const uint8_t* const block =
                n < args.n ? args.blocks + n * args.row_bytes + b * Format::BLOCK_BYTES : zeros;
            memcpy(header + column * 2, block + (FORMAT == TW_Q6_K ? 208 : 0), 2);
            if (Format::HAS_MINIMUM) memcpy(header + PANEL * 2 + column * 2, block + 2, 2);
            for (int64_t g = layout.first_group_of(b); g < layout.last_group_of(b); ++g) {
                const int inside = static_cast<int>((layout.first_group + g) % Format::GROUPS);
                char* const group = out + layout.group_at(g);
                uint8_t codes[GROUP_VALUES];
                read_codes<FORMAT>(block, inside, codes);
                write_codes<FORMAT>(codes, group, column);
                if constexpr (Format::HAS_SUB_SCALES) {
                    uint8_t pair[2];
                    read_sub_scales<FORMAT>(block, inside, pair);
                    group[Layout::CODE_BYTES + column] = static_cast<char>(pair[0]);
                    group[Layout::CODE_BYTES + PANEL + column] = static_cast<char>(pair[1]);
                }
            }
        }
    }
}

static void pack_stored(const StoredPackArgs& args, int64_t first_panel, int64_t last_panel) {
    with_format(args.format, [&](auto format) {
        for (int64_t panel = first_panel; panel < last_panel; ++panel)
            pack_stored_panel<decltype(format)::value>(args, panel);
    });
}

// ---- gather_rows ----

// Values of one group of a column, rounded as the format's definition rounds them.
template <int FORMAT>
TW_INLINE void group_values(const char* header, const char* group, int column, float (&out)[GROUP_VALUES]) {
    using Layout = PanelLayout<FORMAT>;
    using Format = typename Layout::Format;
    WordPart words[GROUP_WORDS];
    unpack<FORMAT>(group, column / WIDTH, words);
    float scale[2] = {load_half(header + column * 2), 0};
    float minimum = Format::HAS_MINIMUM ? load_half(header + PANEL * 2 + column * 2) : 0;
    scale[1] = scale[0];
    if constexpr (Format::HAS_SUB_SCALES) {
        const uint8_t pair[2] = {static_cast<uint8_t>(group[Layout::CODE_BYTES + column]),
                                 static_cast<uint8_t>(group[Layout::CODE_BYTES + PANEL + column])};
        scale[0] *= FORMAT == TW_Q6_K ? static_cast<float>(static_cast<int8_t>(pair[0])) : pair[0];
        if (FORMAT == TW_Q6_K) scale[1] *= static_cast<float>(static_cast<int8_t>(pair[1]));
        else scale[1] = scale[0], minimum *= -static_cast<float>(pair[1]);
    }
    constexpr int OFFSET = Format::OFFSET + (FORMAT == TW_Q8_0 && SIGNED_AS_OFFSET ? 128 : 0);
    for (int i = 0; i < GROUP_VALUES; ++i) {
        const uint8_t byte = words[i / 4][column % WIDTH] >> (8 * (i % 4));
        const int code = FORMAT == TW_Q8_0 && !SIGNED_AS_OFFSET ? static_cast<int8_t>(byte) : byte - OFFSET;
        out[i] = scale[i / 16] * static_cast<float>(code);
        if (Format::HAS_MINIMUM) out[i] += minimum;
    }
}

template <int FORMAT, typename T>
void gather_stored_row(const StoredGatherArgs& args, const StoredPart& part, int64_t n, T* out) {
    const PanelLayout<FORMAT> layout(args.first_column, args.k);
    const char* const panel = static_cast<const char*>(part.packed) + n / PANEL * layout.size_bytes();
    const int64_t before =
        args.first_column % GROUP_VALUES;  // values of the first group that are not the part's
    for (int64_t g = 0; g < layout.num_groups; ++g) {
        float values[GROUP_VALUES];
        group_values<FORMAT>(panel + layout.header_at(layout.block_of(g)), panel + layout.group_at(g),
                             n % PANEL, values);
        const int64_t first = g == 0 ? before : 0, column = g * GROUP_VALUES + first - before;
        const int64_t left = args.k - column;
        const int64_t count = left < GROUP_VALUES - first ? left : GROUP_VALUES - first;
        for (int64_t i = 0; i < count; i += LANES)
            store_some(out + column + i, load_some(values + first + i, count - i), count - i);
    }
}

template <typename T>
void gather_stored(const StoredGatherArgs& args, int64_t row) {
    const int64_t n = args.ids[row] - args.first_row;
    T* const out = static_cast<T*>(args.out) + row * args.k;
    if (n < 0 || n >= args.n) {
        memset(out, 0, args.k * sizeof(T));
        return;
    }
    const StoredPart* part = args.parts;
    while (n >= part->first_row + part->n) ++part;
    with_format(part->format, [&](auto format) {
        gather_stored_row<decltype(format)::value>(args, *part, n - part->first_row, out);
    });
}

static void gather_stored_rows(const StoredGatherArgs& args, int64_t first_row, int64_t last_row) {
    with_dtype(args.dtype, [&](auto type) {
        for (int64_t row = first_row; row < last_row; ++row) gather_stored<decltype(type)>(args, row);
    });
}

}  // namespace tokenweave::TW_ISA
