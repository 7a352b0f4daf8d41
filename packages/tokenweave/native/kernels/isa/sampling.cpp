// Compiled once for each instruction set, with TW_ISA naming it.
#include "../../sampling/passes.h"

namespace tokenweave::TW_ISA {

extern const SamplingTable sampling_table;
const SamplingTable sampling_table = {largest, weigh, split, mass_above, keep_above, count_above, find_equal};

}  // namespace tokenweave::TW_ISA
