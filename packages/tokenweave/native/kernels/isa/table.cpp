// Compiled once for each instruction set, with TW_ISA naming it.
#include "../kernels.h"

namespace tokenweave::TW_ISA {

extern const DenseTable dense_table;
extern const RowTable row_table;
extern const AttentionTable attention_table;
extern const StoredTable stored_table;
extern const SamplingTable sampling_table;
extern const LimitsTable limits_table;

const KernelTable table = {dense_table,  row_table,      attention_table,
                           stored_table, sampling_table, limits_table};

}  // namespace tokenweave::TW_ISA
