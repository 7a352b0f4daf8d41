// Gated linear units (Shazeer, arXiv 2002.05202): activation(gate) * up of two products, out of whatever kernel has them.
//
// A worker takes the same panels of both products into its scratch, in float32, and stores what they make once: what
// they are never leaves its caches. Each product is the kernel's own, so a row's bits are those of the products alone.
#pragma once

#include <algorithm>

#include "checks.h"

namespace tokenweave {

// Rows of one panel that are kept before they are combined, or as many in another shape: 96 KiB of both products,
// which the second-level cache holds beside a panel. Few enough rows would do for the first level too, but a panel
// would be fetched from the second for each such part, and tiles configured.
constexpr int64_t GATED_ROWS = 384;
constexpr int64_t GATED_SUMS = GATED_ROWS * PANEL;
constexpr int64_t GATED_SCRATCH_BYTES = 2 * GATED_SUMS * static_cast<int64_t>(sizeof(float));

inline bool is_activation(int activation) { return activation == TW_SILU || activation == TW_GELU_TANH; }

// Some rows of x and panels of the weights.
struct GatedPart {
    int64_t first_row, rows, first_panel, panels;
    int64_t width;  // columns, at most panels * PANEL
};

// Fills panels [first_panel, last_panel) of out (m, n) of `dtype`. multiply(part, is_up, sums, ld) writes a part of
// one of the products, float32 rows `ld` apart.
template <typename Multiply>
void gate_panels(const KernelTable& kernels, void* out, int64_t ldo, int64_t m, int64_t n, int activation,
                 int dtype, int64_t first_panel, int64_t last_panel, char* scratch,
                 const Multiply& multiply) {
    float* const gate = reinterpret_cast<float*>(scratch);
    float* const up = gate + GATED_SUMS;
    const int64_t rows_together = std::min(m, GATED_ROWS), panels_together = GATED_ROWS / rows_together;
    for (int64_t panel = first_panel; panel < last_panel; panel += panels_together)
        for (int64_t row = 0; row < m; row += rows_together) {
            const int64_t panels = std::min(panels_together, last_panel - panel), ld = panels * PANEL;
            const GatedPart part{row, std::min(rows_together, m - row), panel, panels,
                                 std::min(ld, n - panel * PANEL)};
            multiply(part, false, gate, ld);
            multiply(part, true, up, ld);
            char* const to = static_cast<char*>(out) + (row * ldo + panel * PANEL) * element_bytes(dtype);
            kernels.rows.gate_and_mul({gate, up, ld, to, ldo, part.width, activation, TW_FLOAT32, dtype}, 0,
                                      part.rows);
        }
}

}  // namespace tokenweave
