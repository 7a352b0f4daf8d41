// How a rank knows that another has died, without a supervisor: open-file-description locks on the segment's
// file. Unlike process-wide fcntl locks they also tell the ranks of one process apart, and unlike process ids
// they are never reused and mean the same in every pid namespace.
//
// A child that a rank forks inherits the open file, and with it the lock. So every lock is closed in the
// child, which leaves the parent's alone: the lock goes when the last descriptor of that open file does.
#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <new>

#include "group.h"

namespace tokenweave::shm {
namespace {

struct flock byte_of(int rank, short type) {
    struct flock lock = {};
    lock.l_type = type;
    lock.l_whence = SEEK_SET;
    lock.l_start = rank;
    lock.l_len = 1;
    return lock;
}

// The locks that this process holds. Slots are reused and never freed, so that the child of a fork, where a
// mutex may be held for ever, can walk the list.
struct Held {
    std::atomic<int> fd{-1};
    Held* next = nullptr;
};
std::atomic<Held*> all_held{nullptr};
// Relaxed wherever it is used: only a child's first thread writes it, before any other of that process is
// there.
std::atomic<uint32_t> generation{0};

void let_go_in_child() {
    generation.fetch_add(1, std::memory_order_relaxed);
    // The parent's other threads are gone, in the middle of whatever they did; each change below is one
    // atomic write, so that the list is whole. A lock that such a thread had taken and not yet remembered is
    // not in it: the child keeps that one until it ends or runs another program.
    for (Held* held = all_held.load(); held; held = held->next) {
        const int fd = held->fd.exchange(-1);
        if (fd >= 0) close(fd);
    }
}

bool remember(int fd) {
    static const int registered = pthread_atfork(nullptr, nullptr, let_go_in_child);
    if (registered != 0) return false;
    for (Held* held = all_held.load(); held; held = held->next) {
        int none = -1;
        // Takes a free slot; partner: the exchange to -1 in unlock_presence of whoever had it before.
        if (held->fd.compare_exchange_strong(none, fd)) return true;
    }
    auto* held = new (std::nothrow) Held;
    if (!held) return false;
    held->fd.store(fd);
    // The slot is filled first and linked last: the exchange releases it to the loads that begin each walk.
    held->next = all_held.load();
    while (!all_held.compare_exchange_weak(held->next, held)) {}
    return true;
}

}  // namespace

uint32_t fork_generation() { return generation.load(std::memory_order_relaxed); }

void unlock_presence(int lock_fd) {
    if (lock_fd < 0) return;
    for (Held* held = all_held.load(); held; held = held->next) {
        int expected = lock_fd;
        // Whoever makes it -1 closes it, so that it is closed once; the slot is then free for `remember`.
        if (held->fd.compare_exchange_strong(expected, -1)) {
            close(lock_fd);
            return;
        }
    }
}

int lock_presence(int segment_fd, int rank) {
#ifdef F_OFD_SETLK
    if (segment_fd < 0) return -1;
    // Opened anew: the descriptor that the ranks inherited is one open file description, shared by all of
    // them.
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", segment_fd);
    const int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return -1;
    struct flock lock = byte_of(rank, F_WRLCK);
    if (fcntl(fd, F_OFD_SETLK, &lock) == 0 && remember(fd)) return fd;
    close(fd);
#endif
    return -1;
}

bool presence_lock_is_held(int lock_fd, int rank) {
#ifdef F_OFD_SETLK
    struct flock lock = byte_of(rank, F_WRLCK);
    if (fcntl(lock_fd, F_OFD_GETLK, &lock) == 0) return lock.l_type != F_UNLCK;
#endif
    return true;
}

}  // namespace tokenweave::shm
