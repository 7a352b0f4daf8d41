// all_reduce_rms_norm over symmetric memory: nothing is copied but the answer.
#include "../kernels/checks.h"
#include "group.h"

using namespace tokenweave;
using namespace tokenweave::shm;

namespace {

constexpr int64_t kGrainElements = 16 * 1024;  // less is done before a second worker would have started on it

// An answer of so many bytes has left the caches before it is read again. Written past them, it is not read first.
constexpr size_t kPastCachesBytes = size_t{8} << 20;

int64_t first_row_of(int rank, int size, int64_t rows) { return rows * rank / size; }

void reduce_rows(Pool& pool, const ReduceNormArgs& args, int64_t first, int64_t last) {
    const auto kernel = pool.kernels().reduce_norm;
    const int64_t grain = args.h < kGrainElements ? kGrainElements / args.h : 1;
    run_range(pool, last - first, grain,
              [&](int64_t begin, int64_t end, char*) { kernel(args, first + begin, first + end); });
}

size_t bytes_of(int64_t rows, int64_t h, int dtype) {
    return size_t(rows) * size_t(h) * size_t(element_bytes(dtype));
}

bool can_reduce(const tw_shm_group* group, const tw_pool* pool, const void* symmetric, size_t region_bytes,
                size_t offset, const float* residual, const void* weight, const void* out, int64_t rows, int64_t h,
                int dtype) {
    if (!group || group->rank < 0 || !pool || !symmetric || !weight || rows < 0 || h < 1 || !is_dtype(dtype) ||
        ((!residual || !out) && rows)) {
        return false;
    }
    return offset <= region_bytes && bytes_of(rows, h, dtype) <= region_bytes - offset;
}

Tag tag_of(size_t bytes, size_t offset, int dtype) {
    return {Operation::kReduceNorm, int16_t(dtype == TW_FLOAT32 ? TW_SHM_FLOAT32 : TW_SHM_BFLOAT16), -1, bytes,
            offset};
}

tw_status meet(tw_shm_group* group, const Tag& tag) {
    if (tw_status status = begin_step(group, tag.operation, false)) return status;
    arrive(group, tag);
    return await_all(group, tag);
}

}  // namespace

extern "C" void tw_shm_owned_rows(int rank, int size, int64_t rows, int64_t* first, int64_t* last) {
    *first = first_row_of(rank, size, rows);
    *last = first_row_of(rank + 1, size, rows);
}

extern "C" int tw_shm_reduce_norm_begin(tw_shm_group* group, size_t bytes, size_t offset, int dtype) {
    if (!group || group->rank < 0 || !is_dtype(dtype)) return TW_ERROR_INVALID_ARGUMENT;
    return meet(group, tag_of(bytes, offset, dtype));  // releases this rank's partial sums
}

extern "C" int tw_shm_reduce_norm_rows(tw_shm_group* group, tw_pool* pool, const void* symmetric, size_t region_bytes,
                                       size_t offset, float* residual, const void* weight, void* out, int64_t rows,
                                       int64_t h, float eps, int dtype, int one_shot) {
    if (!can_reduce(group, pool, symmetric, region_bytes, offset, residual, weight, out, rows, h, dtype)) {
        return TW_ERROR_INVALID_ARGUMENT;
    }
    const void* parts[kMaxRanks];
    for (int rank = 0; rank < group->size; ++rank) {
        parts[rank] = static_cast<const char*>(symmetric) + rank * region_bytes + offset;
    }
    const ReduceNormArgs args{parts, group->size, h, residual, h, weight, out, h, h, eps, dtype, bytes_of(rows, h, dtype) >= kPastCachesBytes};
    if (one_shot) {
        reduce_rows(pool->pool, args, 0, rows);
    } else {
        reduce_rows(pool->pool, args, first_row_of(group->rank, group->size, rows),
                    first_row_of(group->rank + 1, group->size, rows));
    }
    return TW_OK;
}

extern "C" int tw_shm_reduce_norm_end(tw_shm_group* group, size_t bytes, size_t offset, int dtype) {
    return tw_shm_reduce_norm_begin(group, bytes, offset, dtype);  // the same meeting: releases this rank's rows of the answer
}

extern "C" int tw_shm_all_reduce_rms_norm(tw_shm_group* group, tw_pool* pool, const void* symmetric,
                                          size_t region_bytes, size_t offset, float* residual, const void* weight,
                                          void* out, int64_t rows, int64_t h, float eps, int dtype, int one_shot) {
    if (!can_reduce(group, pool, symmetric, region_bytes, offset, residual, weight, out, rows, h, dtype)) {
        return TW_ERROR_INVALID_ARGUMENT;
    }
    const size_t bytes = bytes_of(rows, h, dtype);
    if (int status = tw_shm_reduce_norm_begin(group, bytes, offset, dtype)) return status;
    if (int status = tw_shm_reduce_norm_rows(group, pool, symmetric, region_bytes, offset, residual, weight, out, rows,
                                             h, eps, dtype, one_shot)) {
        return status;
    }
    return one_shot ? TW_OK : tw_shm_reduce_norm_end(group, bytes, offset, dtype);
}
