// Compiled once for each instruction set, with TW_ISA naming it.
#include "../elementwise.h"
#include "../rotary.h"

namespace tokenweave::TW_ISA {

extern const RowTable row_table;
const RowTable row_table = {rms_norm, reduce_norm, gate_and_mul, rope_and_store};

}  // namespace tokenweave::TW_ISA
