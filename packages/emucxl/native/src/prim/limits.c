#include "prim/limits.h"

#include <errno.h>
#include <sys/resource.h>

int limit_file_size(uint64_t size_bytes) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return 0;
    return size_bytes > limit.rlim_cur ? EFBIG : 0;
}
