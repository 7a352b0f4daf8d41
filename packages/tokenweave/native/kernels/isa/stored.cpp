// Compiled once for each instruction set, with TW_ISA naming it.
#include "tiles_or.h"
#if defined(TW_TILES)
#include "../amx/quantized.h"
#endif
#include "../quantized/multiply.h"

namespace tokenweave::TW_ISA {

extern const StoredTable stored_table;
const StoredTable stored_table = {
    pack_stored, quantise, TW_TILES_OR(stored_linear_through_tiles, stored_linear), gather_stored_rows};

}  // namespace tokenweave::TW_ISA
