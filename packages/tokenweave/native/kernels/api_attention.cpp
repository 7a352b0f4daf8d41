// The C ABI of the kernels that read or write a paged KV cache. Every index is checked here, before it is
// used.
#include <algorithm>
#include <vector>

#include "checks.h"

using namespace tokenweave;

namespace {

// Rows (query, head) of one work item: enough to reuse a tile of keys while it is near, few enough to share
// well.
constexpr int ITEM_ROWS = 48;
constexpr int64_t MIN_PART_HEAD_ELEMENTS = 16 * 1024;

bool all_below(const int32_t* index, int64_t count, int64_t bound) {
    return std::all_of(index, index + count, [bound](int32_t i) { return i >= 0 && i < bound; });
}

bool is_sequence(const int32_t* blocks, int64_t max_blocks, int64_t num_blocks, int64_t num_queries,
                 int64_t seq_len) {
    const int64_t used = div_up(seq_len, BLOCK_SIZE);
    return num_queries >= 0 && seq_len >= num_queries && used <= max_blocks &&
           all_below(blocks, used, num_blocks);
}

int num_queries_of_item(int group_size) { return std::max(1, ITEM_ROWS / group_size); }

// Longest first, so that no worker is left alone with a long one at the end.
void sort_by_work(std::vector<AttentionItem>& items) {
    std::stable_sort(items.begin(), items.end(), [](const AttentionItem& a, const AttentionItem& b) {
        return int64_t{a.first_position + a.num_queries} * a.num_queries >
               int64_t{b.first_position + b.num_queries} * b.num_queries;
    });
}

void add_items(std::vector<AttentionItem>& items, const AttentionArgs& args, int32_t sequence,
               int32_t first_row, int32_t num_queries, int32_t seq_len) {
    for (int32_t kv_head = 0; kv_head < args.num_kv_heads; ++kv_head) {
        const int group_size = args.group_start[kv_head + 1] - args.group_start[kv_head];
        if (group_size == 0) continue;
        const int step = num_queries_of_item(group_size);
        for (int32_t query = 0; query < num_queries; query += step)
            items.push_back({sequence, kv_head, first_row + query, std::min(step, num_queries - query),
                             seq_len - num_queries + query});
    }
}

bool is_group_start(const int32_t* group_start, int num_kv_heads) {
    return group_start[0] == 0 && std::is_sorted(group_start, group_start + num_kv_heads + 1);
}

bool is_layer(const tw_attention_layer& layer) {
    return layer.num_heads >= 0 && layer.num_kv_heads >= 0 && layer.head_dim >= 16 &&
           layer.head_dim % 16 == 0 && layer.scale > 0 && layer.sliding_window >= 0 && layer.softcap >= 0 &&
           is_group_start(layer.group_start, layer.num_kv_heads) &&
           layer.group_start[layer.num_kv_heads] == layer.num_heads && !layer.q_norm == !layer.k_norm;
}

bool are_sequences(const tw_attention_batch& batch, int64_t num_blocks) {
    if (batch.query_start[0] != 0 || batch.query_start[batch.num_seqs] != batch.m) return false;
    for (int64_t s = 0; s < batch.num_seqs; ++s)
        if (!is_sequence(batch.block_tables + s * batch.max_blocks, batch.max_blocks, num_blocks,
                         int64_t{batch.query_start[s + 1]} - batch.query_start[s], batch.seq_lens[s]))
            return false;
    return true;
}

// As many as the caller's scratch is made for: an item holds all query heads of a KV head for at least one
// query.
int64_t max_rows_of_item(const tw_attention_layer& layer) {
    int64_t max_rows = ITEM_ROWS;
    for (int j = 0; j < layer.num_kv_heads; ++j)
        max_rows = std::max<int64_t>(max_rows, layer.group_start[j + 1] - layer.group_start[j]);
    return max_rows;
}

}  // namespace

int tw_rope_and_store(tw_pool* pool, const void* qkv, int64_t ldqkv, void* cache, int64_t num_blocks,
                      const tw_attention_batch* batch, const tw_attention_layer* layer, void* q, int dtype) {
    if (!pool || !batch || !layer || batch->m < 0 || !is_dtype(dtype) || !is_layer(*layer) ||
        ldqkv < int64_t{layer->num_heads + 2 * layer->num_kv_heads} * layer->head_dim ||
        !all_below(batch->positions, batch->m, batch->max_position) ||
        !all_below(batch->slots, batch->m, num_blocks * BLOCK_SIZE))
        return TW_ERROR_INVALID_ARGUMENT;
    const RopeArgs args{qkv,
                        ldqkv,
                        batch->positions,
                        batch->slots,
                        batch->cos_sin,
                        layer->q_norm,
                        layer->k_norm,
                        layer->norm_eps,
                        q,
                        cache,
                        layer->num_heads,
                        layer->num_kv_heads,
                        layer->head_dim,
                        dtype};
    const int64_t row_elements = std::max(1, (layer->num_heads + 2 * layer->num_kv_heads) * layer->head_dim);
    const auto kernel = pool->pool.kernels().rows.rope_and_store;
    try {
        pool->pool.reserve(2 * layer->head_dim * sizeof(float));
    } catch (const std::bad_alloc&) {
        return TW_ERROR_OUT_OF_MEMORY;
    }
    run_range(pool->pool, batch->m, std::max<int64_t>(1, MIN_PART_HEAD_ELEMENTS / row_elements),
              [&](int64_t first, int64_t last, char* scratch) { kernel(args, first, last, scratch); });
    return TW_OK;
}

int tw_paged_attention(tw_pool* pool, const void* q, int64_t ldq, const void* cache, int64_t num_blocks,
                       const tw_attention_batch* batch, const tw_attention_layer* layer, void* out,
                       int dtype) {
    if (!pool || !batch || !layer || batch->m < 0 || batch->num_seqs < 0 || !is_dtype(dtype) ||
        !is_layer(*layer) || ldq < int64_t{layer->num_heads} * layer->head_dim ||
        !are_sequences(*batch, num_blocks))
        return TW_ERROR_INVALID_ARGUMENT;
    const AttentionArgs args{q,
                             ldq,
                             cache,
                             batch->block_tables,
                             batch->max_blocks,
                             layer->group_start,
                             layer->num_heads,
                             layer->num_kv_heads,
                             layer->head_dim,
                             layer->scale,
                             layer->sliding_window,
                             layer->softcap,
                             out,
                             dtype};
    try {
        std::vector<AttentionItem> items;
        for (int64_t s = 0; s < batch->num_seqs; ++s)
            add_items(items, args, static_cast<int32_t>(s), batch->query_start[s],
                      batch->query_start[s + 1] - batch->query_start[s], batch->seq_lens[s]);
        sort_by_work(items);
        const AttentionTable& kernels = pool->pool.kernels().attention;
        pool->pool.reserve(kernels.scratch_bytes(args, max_rows_of_item(*layer)));
        run_range(pool->pool, static_cast<int64_t>(items.size()), 1,
                  [&](int64_t first, int64_t last, char* scratch) {
                      for (int64_t i = first; i < last; ++i) kernels.attend(args, items[i], scratch);
                  });
    } catch (const std::bad_alloc&) {
        return TW_ERROR_OUT_OF_MEMORY;
    }
    return TW_OK;
}
