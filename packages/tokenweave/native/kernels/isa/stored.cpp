// Compiled once for each instruction set, with TW_ISA naming it.
#include "../quantized/multiply.h"

namespace tokenweave::TW_ISA {

extern const StoredTable stored_table;
const StoredTable stored_table = {pack_stored, quantise, stored_linear, gather_stored_rows};

}  // namespace tokenweave::TW_ISA
