// Which partitions of the keys (KEY_PARTITION) an item of attention goes through.
//
// Always inlined: builds of several instruction sets include it.
#pragma once

#include "kernels.h"

namespace tokenweave {

#define TW_SHARED static inline __attribute__((always_inline))

static_assert(KEY_PARTITION % KEY_TILE == 0);

TW_SHARED int group_size_of(const AttentionArgs& args, const AttentionItem& item) {
    return args.group_start[item.kv_head + 1] - args.group_start[item.kv_head];
}
TW_SHARED int64_t num_rows_of(const AttentionArgs& args, const AttentionItem& item) {
    return static_cast<int64_t>(item.num_queries) * group_size_of(args, item);
}
TW_SHARED int32_t last_position_of(const AttentionItem& item) {
    return item.first_position + item.num_queries - 1;
}

TW_SHARED int32_t first_visible_key(const AttentionArgs& args, int32_t position) {
    return args.sliding_window && position >= args.sliding_window ? position + 1 - args.sliding_window : 0;
}

struct PartitionRange {
    int32_t first, last;
};
// The query at `position` sees keys of all of these.
TW_SHARED PartitionRange visible_partitions(const AttentionArgs& args, int32_t position) {
    return {first_visible_key(args, position) / KEY_PARTITION, position / KEY_PARTITION};
}
// Of each of these some query of the item sees keys.
TW_SHARED PartitionRange visible_partitions(const AttentionArgs& args, const AttentionItem& item) {
    return {first_visible_key(args, item.first_position) / KEY_PARTITION,
            last_position_of(item) / KEY_PARTITION};
}

struct KeyRange {
    int32_t first, end;
};
// The keys of a partition that queries of the item see, from the first of a tile on.
TW_SHARED KeyRange visible_keys(const AttentionArgs& args, const AttentionItem& item, int32_t partition) {
    const int32_t begin = partition * KEY_PARTITION, end = begin + KEY_PARTITION;
    const int32_t seen = first_visible_key(args, item.first_position) / KEY_TILE * KEY_TILE;
    const int32_t last = last_position_of(item);
    return {seen > begin ? seen : begin, last + 1 < end ? last + 1 : end};
}

#undef TW_SHARED

}  // namespace tokenweave
