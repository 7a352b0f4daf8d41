#include "prim/file_guard.h"

#include "prim/backing.h"
#include "prim/clock.h"

static const double PATIENCE_NS = 2000;

void file_guard_open(file_guard* guard, int fd, uint64_t size_bytes) {
    backing_info info;
    guard->fd = fd;
    guard->size_bytes = size_bytes;
    guard->is_needed = backing_inspect(fd, &info) == 0 && info.may_shrink;
    if (guard->is_needed) guard->patience_ticks = (uint64_t)(PATIENCE_NS * clock_ticks_per_ns());
}

bool file_guard_ask(file_guard* guard) {
    const uint64_t now = clock_ticks();
    if (now - atomic_load_explicit(&guard->asked_ticks, memory_order_relaxed) < guard->patience_ticks)
        return true;
    if (!backing_has(guard->fd, guard->size_bytes)) return false;
    atomic_store_explicit(&guard->asked_ticks, now, memory_order_relaxed);
    return true;
}
