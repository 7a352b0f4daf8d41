// The collectives, written as steps (group.h says what a step orders).
//
// No order of memory is written here: each step has the same three. begin_step acquires the others' last
// arrivals, so that this rank may write its slot; arrive releases the slot; await_rank and await_all acquire
// the others' slots, to be read until this rank's next arrive. A rank that awaits nobody (the root of a
// broadcast, the others of gather_columns) is held by begin_step, at most one step ahead of whoever reads its
// slot.
#include <algorithm>
#include <cstring>

#include "group.h"
#include "sum.h"

using namespace tokenweave::shm;

namespace {

// From this size on a sum goes in two steps (each rank sums its share of the elements, then gathers the
// others' shares) instead of one (each rank sums everything). Both give the same bits.
constexpr size_t kTwoStepBytes = 128 * 1024;
constexpr size_t kShareAlignment = 64;  // elements: shares start on cache lines

struct Range {
    size_t first, count;
};

Range share_of(int rank, int size, size_t count) {
    const size_t each = (count / size + kShareAlignment - 1) / kShareAlignment * kShareAlignment;
    const size_t first = std::min(count, each * rank);
    return {first, rank == size - 1 ? count - first : std::min(each, count - first)};
}

// memcpy, which may not be given null even for no bytes; an empty tensor has no address.
void copy(void* to, const void* from, size_t bytes) {
    if (bytes) memcpy(to, from, bytes);  // NOLINT(*NonNullParamChecker): callers check
}

bool is_valid(const tw_shm_group* group) { return group && group->rank >= 0; }

// parts[r] = rank r's elements from `first`; this rank's own are taken from `own`, where they still are.
void sum_ranks(const tw_shm_group* group, SumFunction sum, char* out, const char* own, size_t first_byte,
               size_t count) {
    const void* parts[kMaxRanks];
    for (int rank = 0; rank < group->size; ++rank) {
        parts[rank] = rank == group->rank ? own : group->slot(rank, group->step) + first_byte;
    }
    sum(out, parts, group->size, count);
}

tw_status reduce_in_one_step(tw_shm_group* group, const Tag& tag, SumFunction sum, char* data, size_t count) {
    const size_t bytes = count * element_bytes(tag.dtype);
    if (tw_status status = begin_step(group, tag.operation, false)) return status;
    copy(group->slot(group->rank, group->step), data, bytes);
    arrive(group, tag);
    if (tw_status status = await_all(group, tag)) return status;
    // The slots are read here, and the next step's arrive tells the others that they are free: no second
    // meeting.
    sum_ranks(group, sum, data, data, 0, count);
    return TW_OK;
}

tw_status reduce_in_two_steps(tw_shm_group* group, const Tag& tag, SumFunction sum, char* data,
                              size_t count) {
    const size_t element = element_bytes(tag.dtype), bytes = count * element;
    const Range own = share_of(group->rank, group->size, count);
    const size_t own_first = own.first * element, own_bytes = own.count * element,
                 own_end = own_first + own_bytes;

    if (tw_status status = begin_step(group, tag.operation, false)) return status;
    char* slot = group->slot(group->rank, group->step);
    copy(slot, data, own_first);  // the others' shares; nobody reads this rank's own share there
    copy(slot + own_end, data + own_end, bytes - own_end);
    arrive(group, tag);
    if (tw_status status = await_all(group, tag)) return status;
    sum_ranks(group, sum, data + own_first, data + own_first, own_first, own.count);

    // The slot of the other parity: the first step's may still be read by ranks that are summing.
    if (tw_status status = begin_step(group, tag.operation, false)) return status;
    copy(group->slot(group->rank, group->step) + own_first, data + own_first, own_bytes);
    arrive(group, tag);
    for (int offset = 1; offset < group->size;
         ++offset) {  // each rank starts with another, to spread the reads
        const int rank = (group->rank + offset) % group->size;
        if (tw_status status = await_rank(group, rank, tag, false)) return status;
        const Range share = share_of(rank, group->size, count);
        copy(data + share.first * element, group->slot(rank, group->step) + share.first * element,
             share.count * element);
    }
    return TW_OK;
}

}  // namespace

extern "C" int tw_shm_barrier(tw_shm_group* group) {
    if (!is_valid(group)) return TW_ERROR_INVALID_ARGUMENT;
    const Tag tag{Operation::kBarrier};
    if (tw_status status = begin_step(group, tag.operation, false)) return status;
    arrive(group, tag);
    return await_all(group, tag);
}

extern "C" int tw_shm_all_reduce(tw_shm_group* group, void* data, size_t count, int dtype) {
    const SumFunction sum = sum_function(dtype);
    if (!is_valid(group) || !sum || (!data && count)) return TW_ERROR_INVALID_ARGUMENT;
    const size_t element = element_bytes(dtype), chunk = group->slot_bytes / element;
    const Tag tag{Operation::kAllReduce, int16_t(dtype), -1, count * element};
    const bool two_steps = group->size > 2 && tag.bytes >= kTwoStepBytes;
    auto* bytes = static_cast<char*>(data);
    size_t done = 0;
    do {  // an empty tensor takes a step too: the ranks stay in step, and a mismatch shows
        const size_t now = std::min(chunk, count - done);
        const auto reduce = two_steps ? reduce_in_two_steps : reduce_in_one_step;
        if (tw_status status = reduce(group, tag, sum, bytes + done * element, now)) return status;
        done += now;
    } while (done < count);
    return TW_OK;
}

extern "C" int tw_shm_all_gather(tw_shm_group* group, const void* data, void* gathered, size_t bytes) {
    if (!is_valid(group) || ((!data || !gathered) && bytes)) return TW_ERROR_INVALID_ARGUMENT;
    const Tag tag{Operation::kAllGather, 0, -1, bytes};
    const auto* source = static_cast<const char*>(data);
    auto* target = static_cast<char*>(gathered);
    size_t done = 0;
    do {
        const size_t now = std::min(group->slot_bytes, bytes - done);
        if (tw_status status = begin_step(group, tag.operation, false)) return status;
        copy(group->slot(group->rank, group->step), source + done, now);
        arrive(group, tag);
        for (int offset = 0; offset < group->size; ++offset) {
            const int rank = (group->rank + offset) % group->size;
            if (tw_status status = await_rank(group, rank, tag, false)) return status;
            copy(target + rank * bytes + done, group->slot(rank, group->step), now);
        }
        done += now;
    } while (done < bytes);
    return TW_OK;
}

// Every rank but the root puts its columns of some rows (or, where a row outgrows a slot, some columns of one
// row) in its slot; the root lays them side by side. No rank but the root waits for another's data.
extern "C" int tw_shm_gather_columns(tw_shm_group* group, const void* data, void* gathered, size_t rows,
                                     const size_t* row_bytes, int root) {
    if (!is_valid(group) || root < 0 || root >= group->size || !row_bytes) return TW_ERROR_INVALID_ARGUMENT;
    size_t widest = 0, total = 0;
    for (int rank = 0; rank < group->size; ++rank) {
        widest = std::max(widest, row_bytes[rank]);
        total += row_bytes[rank];
    }
    const size_t own = row_bytes[group->rank];
    if ((!data && rows * own) || (group->rank == root && !gathered && rows * total))
        return TW_ERROR_INVALID_ARGUMENT;
    const Tag tag{Operation::kGatherColumns, 0, int16_t(root), rows * total};
    const size_t step_columns = std::min(widest, group->slot_bytes);
    const size_t step_rows = step_columns ? std::max<size_t>(1, group->slot_bytes / step_columns) : rows;
    const auto* source = static_cast<const char*>(data);
    auto* target = static_cast<char*>(gathered);
    const auto part = [&](size_t width, size_t column) {
        return std::min(step_columns, width - std::min(width, column));
    };

    size_t row = 0;
    do {  // an empty tensor takes a step too: the ranks stay in step, and a mismatch shows
        const size_t now = std::min(step_rows, rows - row);
        size_t column = 0;
        do {
            if (tw_status status = begin_step(group, tag.operation, false)) return status;
            if (group->rank != root) {
                const size_t bytes = part(own, column);
                char* slot = group->slot(group->rank, group->step);
                for (size_t r = 0; r < now; ++r)
                    // NOLINTNEXTLINE(*NullPointerArithm): null only where there are no bytes
                    copy(slot + r * bytes, source + (row + r) * own + column, bytes);
            }
            arrive(group, tag);
            size_t first = 0;
            for (int rank = 0; group->rank == root && rank < group->size; first += row_bytes[rank++]) {
                const bool is_own = rank == root;
                if (tw_status status = await_rank(group, rank, tag, false)) return status;
                const size_t bytes = part(row_bytes[rank], column);
                const char* from = is_own ? source + row * own + column : group->slot(rank, group->step);
                for (size_t r = 0; r < now; ++r) {
                    // NOLINTNEXTLINE(*NullPointerArithm): null only where there are no bytes
                    copy(target + (row + r) * total + first + column, from + r * (is_own ? own : bytes),
                         bytes);
                }
            }
            column += step_columns;
        } while (column < widest);
        row += now;
    } while (row < rows);
    return TW_OK;
}

extern "C" int tw_shm_broadcast(tw_shm_group* group, void* data, size_t bytes, int root) {
    if (!is_valid(group) || root < 0 || root >= group->size || (!data && bytes))
        return TW_ERROR_INVALID_ARGUMENT;
    const Tag tag{Operation::kBroadcast, 0, int16_t(root), bytes};
    auto* content = static_cast<char*>(data);
    size_t done = 0;
    do {
        const size_t now = std::min(group->slot_bytes, bytes - done);
        if (tw_status status = begin_step(group, tag.operation, false)) return status;
        if (group->rank == root && now) copy(group->slot(root, group->step), content + done, now);
        arrive(group, tag);
        if (group->rank != root) {
            if (tw_status status = await_rank(group, root, tag, false)) return status;
            copy(content + done, group->slot(root, group->step), now);
        }
        done += now;
    } while (done < bytes);
    return TW_OK;
}

// A message goes in chunks: its length and what fits beside it in the first slot, then full slots.

extern "C" int tw_shm_send_bytes(tw_shm_group* group, const void* data, size_t bytes, int idle) {
    if (!is_valid(group) || (!data && bytes)) return TW_ERROR_INVALID_ARGUMENT;
    const Tag tag{Operation::kBroadcastBytes, 0, int16_t(group->rank), 0};
    const auto* content = static_cast<const char*>(data);
    const uint64_t total = bytes;
    size_t done = 0, used = sizeof total;
    do {
        const size_t now = std::min(group->slot_bytes - used, bytes - done);
        if (tw_status status = begin_step(group, tag.operation, idle != 0)) return status;
        char* slot = group->slot(group->rank, group->step);
        if (used) memcpy(slot, &total, sizeof total);
        copy(slot + used, content + done, now);
        arrive(group, tag);
        done += now;
        used = 0;
    } while (done < bytes);
    return TW_OK;
}

extern "C" int tw_shm_receive_begin(tw_shm_group* group, int root, int idle, uint64_t* bytes) {
    if (!is_valid(group) || root < 0 || root >= group->size || root == group->rank || !bytes) {
        return TW_ERROR_INVALID_ARGUMENT;
    }
    const Tag tag{Operation::kBroadcastBytes, 0, int16_t(root), 0};
    if (tw_status status = begin_step(group, tag.operation, idle != 0)) return status;
    arrive(group, tag);
    if (tw_status status = await_rank(group, root, tag, idle != 0)) return status;
    memcpy(bytes, group->slot(root, group->step), sizeof *bytes);
    group->pending_bytes = *bytes;
    return TW_OK;
}

extern "C" int tw_shm_receive_rest(tw_shm_group* group, int root, void* data) {
    if (!is_valid(group) || root < 0 || root >= group->size || (!data && group->pending_bytes)) {
        return TW_ERROR_INVALID_ARGUMENT;
    }
    const Tag tag{Operation::kBroadcastBytes, 0, int16_t(root), 0};
    // Still readable without another wait: this rank has not arrived since receive_begin acquired it.
    const size_t bytes = group->pending_bytes;
    auto* target = static_cast<char*>(data);
    size_t done = std::min(group->slot_bytes - sizeof(uint64_t), bytes);
    copy(target, group->slot(root, group->step) + sizeof(uint64_t), done);
    while (done < bytes) {
        const size_t now = std::min(group->slot_bytes, bytes - done);
        if (tw_status status = begin_step(group, tag.operation, false)) return status;
        arrive(group, tag);
        if (tw_status status = await_rank(group, root, tag, false)) return status;
        copy(target + done, group->slot(root, group->step), now);
        done += now;
    }
    return TW_OK;
}
