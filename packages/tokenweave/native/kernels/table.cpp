// Compiled once for each instruction set, with TW_ISA naming it.
#if defined(TW_TILES)
#include "amx/attention.h"
#include "amx/limits.h"
#include "amx/linear.h"
#define TW_TILES_OR(tiles, vectors) tiles
#else
#define TW_TILES_OR(tiles, vectors) vectors
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
    TW_TILES_OR(linear_through_tiles, linear),
    gather_rows,
    rms_norm,
    reduce_norm,
    silu_and_mul,
    gelu_tanh_and_mul,
    rope_and_store,
    STORED,
    TW_TILES_OR(tile_attention_scratch_bytes, attention_scratch_bytes),
    TW_TILES_OR(attention_through_tiles, attention),
    {largest, weigh, mass_above, keep_above, count_above, find_equal},
    spin_fma,
    TW_TILES_OR(spin_tiles, spin_bf16),
    read_bytes,
    mix_bytes,
};

}  // namespace tokenweave::TW_ISA
