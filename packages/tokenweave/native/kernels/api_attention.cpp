// The C ABI of the kernels that read or write a paged KV cache. Every index is checked here, before it is
// used.
#include <algorithm>
#include <vector>

#include "checks.h"
#include "partitions.h"

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

std::vector<AttentionItem> items_of(const AttentionArgs& args, const tw_attention_batch& batch) {
    std::vector<AttentionItem> items;
    for (int64_t s = 0; s < batch.num_seqs; ++s)
        add_items(items, args, static_cast<int32_t>(s), batch.query_start[s],
                  batch.query_start[s + 1] - batch.query_start[s], batch.seq_lens[s]);
    return items;
}

// Enough for one query of a sequence of a million keys, with 32 heads of 128. An item that finds no room stays
// whole.
constexpr size_t MAX_SHARED_BYTES = size_t{64} << 20;
constexpr int64_t TASKS_PER_WORKER = 4;

constexpr int32_t ALL_PARTITIONS = -1;

// What one worker does at a time: an item against all of its keys, or against those of one partition.
struct AttentionTask {
    const AttentionItem* item;
    int32_t partition;
    size_t offset_bytes;  // of the partition's softmax in the shared memory
    int64_t work;         // rows times keys
};

// An item of which each partition is a task. They lie one after the other in the shared memory.
struct SharedItem {
    const AttentionItem* item;
    size_t offset_bytes;
};

struct AttentionTasks {
    std::vector<AttentionTask> tasks;
    std::vector<SharedItem> shared;
    size_t shared_bytes = 0;
};

int64_t work_of(const AttentionArgs& args, const AttentionItem& item, int32_t partition) {
    const PartitionRange visible = visible_partitions(args, item);
    const bool all = partition == ALL_PARTITIONS;
    const int32_t first = visible_keys(args, item, all ? visible.first : partition).first;
    const int32_t end = visible_keys(args, item, all ? visible.last : partition).end;
    return (end - first) * num_rows_of(args, item);
}

void add_partitions(AttentionTasks& tasks, const AttentionArgs& args, const AttentionItem& item,
                    size_t partition_bytes) {
    const PartitionRange visible = visible_partitions(args, item);
    tasks.shared.push_back({&item, tasks.shared_bytes});
    for (int32_t p = visible.first; p <= visible.last; ++p) {
        tasks.tasks.push_back({&item, p, tasks.shared_bytes, work_of(args, item, p)});
        tasks.shared_bytes += partition_bytes;
    }
}

// Items that are more than a worker's fair share are cut at the partitions of their keys; no row's bits depend on
// which. The longest task comes first, so that no worker is left alone with it at the end.
AttentionTasks tasks_of(const AttentionArgs& args, const std::vector<AttentionItem>& items,
                        const AttentionTable& kernels, int num_threads) {
    int64_t work = 0;
    for (const AttentionItem& item : items) work += work_of(args, item, ALL_PARTITIONS);
    const int64_t fair_share = num_threads > 1 ? work / (num_threads * TASKS_PER_WORKER) : work;
    AttentionTasks tasks;
    for (const AttentionItem& item : items) {
        const PartitionRange visible = visible_partitions(args, item);
        const size_t partition_bytes = kernels.partition_bytes(args, num_rows_of(args, item));
        const size_t item_bytes = (visible.last - visible.first + 1) * partition_bytes;
        const int64_t item_work = work_of(args, item, ALL_PARTITIONS);
        if (item_work > fair_share && visible.last > visible.first &&
            tasks.shared_bytes + item_bytes <= MAX_SHARED_BYTES)
            add_partitions(tasks, args, item, partition_bytes);
        else tasks.tasks.push_back({&item, ALL_PARTITIONS, 0, item_work});
    }
    std::stable_sort(tasks.tasks.begin(), tasks.tasks.end(),
                     [](const AttentionTask& a, const AttentionTask& b) { return a.work > b.work; });
    return tasks;
}

void run_tasks(Pool& pool, const AttentionArgs& args, const AttentionTasks& tasks) {
    const AttentionTable& kernels = pool.kernels().attention;
    char* const shared = tasks.shared_bytes ? pool.reserve_shared(tasks.shared_bytes) : nullptr;
    const auto run_task = [&](const AttentionTask& task, char* scratch) {
        if (task.partition == ALL_PARTITIONS) return kernels.attend(args, *task.item, scratch);
        kernels.attend_partition(args, *task.item, task.partition, scratch, shared + task.offset_bytes);
    };
    run_range(
        pool, static_cast<int64_t>(tasks.tasks.size()), 1,
        [&](int64_t first, int64_t last, char* scratch) {
            for (int64_t i = first; i < last; ++i) run_task(tasks.tasks[i], scratch);
        },
        tasks.shared.empty() ? TASKS_PER_WORKER : 4 * TASKS_PER_WORKER);
    run_range(
        pool, static_cast<int64_t>(tasks.shared.size()), 1, [&](int64_t first, int64_t last, char* scratch) {
            for (int64_t i = first; i < last; ++i)
                kernels.merge(args, *tasks.shared[i].item, scratch, shared + tasks.shared[i].offset_bytes);
        });
}

AttentionArgs arguments_of(const tw_attention_batch& batch, const tw_attention_layer& layer, const void* q,
                           int64_t ldq, const void* cache, void* out, int dtype) {
    return {q,
            ldq,
            cache,
            batch.block_tables,
            batch.max_blocks,
            layer.group_start,
            layer.num_heads,
            layer.num_kv_heads,
            layer.head_dim,
            layer.scale,
            layer.sliding_window,
            layer.softcap,
            out,
            dtype};
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
    const AttentionArgs args = arguments_of(*batch, *layer, q, ldq, cache, out, dtype);
    try {
        const AttentionTable& kernels = pool->pool.kernels().attention;
        pool->pool.reserve(kernels.scratch_bytes(args, max_rows_of_item(*layer)));
        const std::vector<AttentionItem> items = items_of(args, *batch);
        run_tasks(pool->pool, args, tasks_of(args, items, kernels, pool->pool.num_threads()));
    } catch (const std::bad_alloc&) {
        return TW_ERROR_OUT_OF_MEMORY;
    }
    return TW_OK;
}

int64_t tw_attention_tasks(const tw_pool* pool, const tw_attention_batch* batch,
                           const tw_attention_layer* layer) {
    if (!pool || !batch || !layer || batch->num_seqs < 0 || !is_layer(*layer))
        return TW_ERROR_INVALID_ARGUMENT;
    try {
        const AttentionArgs args = arguments_of(*batch, *layer, nullptr, 0, nullptr, nullptr, TW_FLOAT32);
        const std::vector<AttentionItem> items = items_of(args, *batch);
        const AttentionTable& kernels = pool->pool.kernels().attention;
        return static_cast<int64_t>(tasks_of(args, items, kernels, pool->pool.num_threads()).tasks.size());
    } catch (const std::bad_alloc&) {
        return TW_ERROR_OUT_OF_MEMORY;
    }
}
