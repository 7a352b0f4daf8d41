// Compiled once for each instruction set, with TW_ISA naming it.
#include "tiles_or.h"
#if defined(TW_TILES)
#include "../amx/attention.h"
#endif
#include "../attention.h"

namespace tokenweave::TW_ISA {

extern const AttentionTable attention_table;
const AttentionTable attention_table = {
    TW_TILES_OR(tile_attention_scratch_bytes, attention_scratch_bytes),
    TW_TILES_OR(attention_through_tiles, attention), attention_partition_bytes,
    TW_TILES_OR(attention_of_partition_through_tiles, attention_of_partition), merge_attention};

}  // namespace tokenweave::TW_ISA
