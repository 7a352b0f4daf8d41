// all_reduce_rms_norm over symmetric memory: nothing is copied but the answer.
#include "../kernels/checks.h"
#include "group.h"

using namespace tokenweave;
using namespace tokenweave::shm;

namespace {

constexpr int64_t kGrainElements = 16 * 1024;  // less is done before a second worker would have started on it

// An answer of so many bytes has left the caches before it is read again. Written past them, it is not read
// first.
constexpr size_t kPastCachesBytes = size_t{8} << 20;

int64_t first_row_of(int rank, int size, int64_t rows) { return rows * rank / size; }

void reduce_rows(Pool& pool, const ReduceNormArgs& args, int64_t first, int64_t last) {
    const auto kernel = pool.kernels().rows.reduce_norm;
    const int64_t grain = args.h < kGrainElements ? kGrainElements / args.h : 1;
    run_range(pool, last - first, grain,
              [&](int64_t begin, int64_t end, char*) { kernel(args, first + begin, first + end); });
}

size_t bytes_of(int64_t rows, int64_t h, int dtype) {
    return size_t(rows) * size_t(h) * size_t(element_bytes(dtype));
}

bool can_reduce(const tw_shm_group* group, const tw_pool* pool, const void* symmetric, size_t region_bytes,
                size_t offset, const float* residual, const tw_residual_norms* norms, const void* out,
                int64_t rows, int64_t h, int dtype) {
    if (!group || group->rank < 0 || !pool || !symmetric || !norms || rows < 0 || h < 1 || !is_dtype(dtype) ||
        ((!residual || !out) && rows)) {
        return false;
    }
    return offset <= region_bytes && bytes_of(rows, h, dtype) <= region_bytes - offset;
}

Tag tag_of(size_t bytes, size_t offset, int dtype) {
    return {Operation::kReduceNorm, int16_t(dtype == TW_FLOAT32 ? TW_SHM_FLOAT32 : TW_SHM_BFLOAT16), -1,
            bytes, offset};
}

// The two synchronisations of the operation are alike: after either, what every rank wrote before it is
// visible, the partial sums after the first, rows of the answer after the second (group.cpp: arrive releases,
// await_all acquires).
int meet(tw_shm_group* group, size_t bytes, size_t offset, int dtype) {
    if (!group || group->rank < 0 || !is_dtype(dtype)) return TW_ERROR_INVALID_ARGUMENT;
    const Tag tag = tag_of(bytes, offset, dtype);
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
    return meet(group, bytes, offset, dtype);
}

extern "C" int tw_shm_reduce_norm_rows(tw_shm_group* group, tw_pool* pool, const void* symmetric,
                                       size_t region_bytes, size_t offset, float* residual,
                                       const tw_residual_norms* norms, void* out, int64_t rows, int64_t h,
                                       int dtype, int one_shot) {
    if (!can_reduce(group, pool, symmetric, region_bytes, offset, residual, norms, out, rows, h, dtype)) {
        return TW_ERROR_INVALID_ARGUMENT;
    }
    const void* parts[kMaxRanks];
    for (int rank = 0; rank < group->size; ++rank) {
        parts[rank] = static_cast<const char*>(symmetric) + rank * region_bytes + offset;
    }
    const bool past_caches = bytes_of(rows, h, dtype) >= kPastCachesBytes;
    const ReduceNormArgs args{parts, group->size, h, residual,   h,     norms->weight, norms->post_weight,
                              out,   h,           h, norms->eps, dtype, past_caches};
    const int64_t first = one_shot ? 0 : first_row_of(group->rank, group->size, rows);
    const int64_t last = one_shot ? rows : first_row_of(group->rank + 1, group->size, rows);
    reduce_rows(pool->pool, args, first, last);
    return TW_OK;
}

extern "C" int tw_shm_reduce_norm_end(tw_shm_group* group, size_t bytes, size_t offset, int dtype) {
    return meet(group, bytes, offset, dtype);
}

extern "C" int tw_shm_all_reduce_rms_norm(tw_shm_group* group, tw_pool* pool, const void* symmetric,
                                          size_t region_bytes, size_t offset, float* residual,
                                          const tw_residual_norms* norms, void* out, int64_t rows, int64_t h,
                                          int dtype, int one_shot) {
    if (!can_reduce(group, pool, symmetric, region_bytes, offset, residual, norms, out, rows, h, dtype)) {
        return TW_ERROR_INVALID_ARGUMENT;
    }
    const size_t bytes = bytes_of(rows, h, dtype);
    if (int status = meet(group, bytes, offset, dtype)) return status;
    if (int status = tw_shm_reduce_norm_rows(group, pool, symmetric, region_bytes, offset, residual, norms,
                                             out, rows, h, dtype, one_shot)) {
        return status;
    }
    return one_shot ? TW_OK : meet(group, bytes, offset, dtype);
}
