// Panels of packed weights, dense or in blocks: PANEL outputs side by side.
#pragma once

#include "simd.h"

namespace tokenweave::TW_ISA {

// How far ahead of its use a panel is asked for: a page, since the processor's own prefetching ends with the
// page. That is 32 steps of PANEL words. It runs on into the next panel, which is next in memory; past the
// last one it does no harm, as a prefetch never faults.
constexpr int PREFETCH_BYTES = 4096;

// Writes a panel's sums, (rows, PANEL) side by side, with the bias added: to `count` columns of y, at most PANEL, from
// column `first` on, whose row 0 is at `y`.
template <typename Out>
void store_panel(const float* sums, const float* bias, Out* y, int64_t ldy, int64_t rows, int64_t first,
                 int64_t count) {
    for (int64_t c = 0; c < count; c += LANES) {
        const Floats own_bias = bias ? load_some(bias + first + c, count - c) : zeros();
        for (int64_t r = 0; r < rows; ++r)
            store_some(y + r * ldy + first + c, load(sums + r * PANEL + c) + own_bias, count - c);
    }
}

}  // namespace tokenweave::TW_ISA
