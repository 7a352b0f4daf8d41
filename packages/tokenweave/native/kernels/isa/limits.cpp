// Compiled once for each instruction set, with TW_ISA naming it.
#include "tiles_or.h"
#if defined(TW_TILES)
#include "../amx/limits.h"
#endif
#include "../limits.h"

namespace tokenweave::TW_ISA {

extern const LimitsTable limits_table;
const LimitsTable limits_table = {spin_fma, TW_TILES_OR(spin_tiles, spin_bf16), read_bytes, mix_bytes};

}  // namespace tokenweave::TW_ISA
