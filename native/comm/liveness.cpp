// How a rank knows that another has died, without a supervisor: open-file-description locks on the segment's file.
// Unlike process-wide fcntl locks they also tell the ranks of one process apart, and unlike process ids they are
// never reused and mean the same in every pid namespace.
#include <fcntl.h>
#include <unistd.h>

#include <cstdio>

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

}  // namespace

int lock_presence(int segment_fd, int rank) {
#ifdef F_OFD_SETLK
    if (segment_fd < 0) return -1;
    // Opened anew: the descriptor that the ranks inherited is one open file description, shared by all of them.
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", segment_fd);
    const int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return -1;
    struct flock lock = byte_of(rank, F_WRLCK);
    if (fcntl(fd, F_OFD_SETLK, &lock) == 0) return fd;
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
