// Compiled once for each instruction set, with TW_ISA naming it.
#include "tiles_or.h"
#if defined(TW_TILES)
#include "../amx/linear.h"
#endif
#include "../linear.h"

namespace tokenweave::TW_ISA {

extern const DenseTable dense_table;
const DenseTable dense_table = {pack, TW_TILES_OR(linear_through_tiles, linear), gather_rows};

}  // namespace tokenweave::TW_ISA
