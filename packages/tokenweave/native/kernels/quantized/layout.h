// Where a packed weight has its codes and scales.
//
// A panel of 32 columns follows the file's order along k: for each block of the file a header, then its groups
// of 32 values. All in it are the file's own numbers, only their places differ.
//   header: 32 float16 scales, and 32 float16 minima where the format has them.
//   group:  codes: word j of a column has its values 4j to 4j + 3; words of 32 columns lie side by side.
//             Nibbles: byte i of word p < 4 has value 4p + i below and 16 + 4p + i above.
//             Then the bits above the nibble: of q5_k one word, bit j of byte i being that of value 4j + i;
//             of q6_k two, word j / 4 having two such bits at 2 (j % 4) for each.
//           scales inside a block: q4_k and q5_k 32 bytes of scales and 32 of minima, q6_k 32 bytes for its
//           first 16 values and 32 for the others.
// A part may begin and end inside a block: groups that it does not touch are left out. Of the values in its
// first and last group that are not its own, the codes stay, and x is 0 there.
#pragma once

#include "../kernels.h"
#include "tokenweave.h"

namespace tokenweave {

template <int FORMAT>
struct FormatOf;
template <>
struct FormatOf<TW_Q4_0> {
    static constexpr int BLOCK_BYTES = 18, GROUPS = 1, CODE_BITS = 4, OFFSET = 8;
    static constexpr bool HAS_MINIMUM = false, HAS_SUB_SCALES = false;
};
template <>
struct FormatOf<TW_Q4_1> {
    static constexpr int BLOCK_BYTES = 20, GROUPS = 1, CODE_BITS = 4, OFFSET = 0;
    static constexpr bool HAS_MINIMUM = true, HAS_SUB_SCALES = false;
};
template <>
struct FormatOf<TW_Q8_0> {
    static constexpr int BLOCK_BYTES = 34, GROUPS = 1, CODE_BITS = 8, OFFSET = 0;
    static constexpr bool HAS_MINIMUM = false, HAS_SUB_SCALES = false;
};
template <>
struct FormatOf<TW_Q4_K> {
    static constexpr int BLOCK_BYTES = 144, GROUPS = 8, CODE_BITS = 4, OFFSET = 0;
    static constexpr bool HAS_MINIMUM = true, HAS_SUB_SCALES = true;
};
template <>
struct FormatOf<TW_Q5_K> {
    static constexpr int BLOCK_BYTES = 176, GROUPS = 8, CODE_BITS = 5, OFFSET = 0;
    static constexpr bool HAS_MINIMUM = true, HAS_SUB_SCALES = true;
};
template <>
struct FormatOf<TW_Q6_K> {
    static constexpr int BLOCK_BYTES = 210, GROUPS = 8, CODE_BITS = 6, OFFSET = 32;
    static constexpr bool HAS_MINIMUM = false, HAS_SUB_SCALES = true;
};

// Of one panel. Every size is a multiple of a cache line.
template <int FORMAT>
struct PanelLayout {
    using Format = FormatOf<FORMAT>;
    static constexpr int64_t HEADER_BYTES = PANEL * (Format::HAS_MINIMUM ? 4 : 2);
    static constexpr int64_t CODE_BYTES = PANEL * GROUP_VALUES * Format::CODE_BITS / 8;
    static constexpr int64_t GROUP_BYTES = CODE_BYTES + (Format::HAS_SUB_SCALES ? PANEL * 2 : 0);
    static constexpr int64_t HIGH_BITS =
        PANEL * GROUP_VALUES / 2;  // where a group has its bits above nibbles

    int64_t first_group, num_groups;  // of the first block; of the part

    constexpr PanelLayout(int64_t first_column, int64_t k)
        : first_group(first_column / GROUP_VALUES),
          num_groups((first_column + k + GROUP_VALUES - 1) / GROUP_VALUES - first_column / GROUP_VALUES) {}

    constexpr int64_t num_blocks() const {
        return (first_group + num_groups + Format::GROUPS - 1) / Format::GROUPS;
    }
    constexpr int64_t size_bytes() const { return num_blocks() * HEADER_BYTES + num_groups * GROUP_BYTES; }
    // The first of the part's groups that a block has.
    constexpr int64_t first_group_of(int64_t block) const {
        return block == 0 ? 0 : block * Format::GROUPS - first_group;
    }
    constexpr int64_t last_group_of(int64_t block) const {
        const int64_t last = (block + 1) * Format::GROUPS - first_group;
        return last < num_groups ? last : num_groups;
    }
    constexpr int64_t header_at(int64_t block) const {
        return block * HEADER_BYTES + first_group_of(block) * GROUP_BYTES;
    }
    constexpr int64_t block_of(int64_t group) const { return (first_group + group) / Format::GROUPS; }
    constexpr int64_t group_at(int64_t group) const {
        return (block_of(group) + 1) * HEADER_BYTES + group * GROUP_BYTES;
    }
};

template <int FORMAT>
struct FormatConstant {
    static constexpr int value = FORMAT;
};

// Calls f with a FormatConstant of the format.
template <typename F>
static inline __attribute__((always_inline)) void with_format(int format, F f) {
    switch (format) {
        case TW_Q4_0:
            return f(FormatConstant<TW_Q4_0>{});
        case TW_Q4_1:
            return f(FormatConstant<TW_Q4_1>{});
        case TW_Q8_0:
            return f(FormatConstant<TW_Q8_0>{});
        case TW_Q4_K:
            return f(FormatConstant<TW_Q4_K>{});
        case TW_Q5_K:
            return f(FormatConstant<TW_Q5_K>{});
        default:
            return f(FormatConstant<TW_Q6_K>{});
    }
}

static inline __attribute__((always_inline)) int64_t panel_bytes_of(int format, int64_t first_column,
                                                                    int64_t k) {
    int64_t size = 0;
    with_format(format, [&](auto constant) {
        size = PanelLayout<decltype(constant)::value>(first_column, k).size_bytes();
    });
    return size;
}

}  // namespace tokenweave
