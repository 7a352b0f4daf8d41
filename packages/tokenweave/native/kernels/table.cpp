// Compiled once for each instruction set, with TW_ISA naming it.
#if defined(TW_TILES)
#include "amx/linear.h"
#endif
#include "../sampling/passes.h"
#include "attention.h"
#include "elementwise.h"
#include "limits.h"
#include "linear.h"
#include "quantized/multiply.h"
#include "rotary.h"

namespace tokenweave::TW_ISA {

const KernelTable table = {
    pack,
#if defined(TW_TILES)
    linear_through_tiles,
#else
    linear,
#endif
    gather_rows,
    rms_norm,
    reduce_norm,
    silu_and_mul,
    gelu_tanh_and_mul,
    rope_and_store,
    STORED,
    attention_scratch_bytes,
    attention,
    {largest, weigh, mass_above, keep_above, count_above, find_equal},
    spin_fma,
    spin_bf16,
    read_bytes,
    mix_bytes,
};

}  // namespace tokenweave::TW_ISA
