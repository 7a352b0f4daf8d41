#include "prim/backing.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "prim/limits.h"
#include "prim/memory.h"
#include "prim/text_file.h"

static uint64_t device_figure(const struct stat* stat, const char* name, uint64_t missing) {
    char path[128], text[64];
    snprintf(path, sizeof path, "/sys/dev/char/%u:%u/%s", major(stat->st_rdev), minor(stat->st_rdev), name);
    if (text_file_read(path, text, sizeof text) <= 0 || text[0] < '0' || text[0] > '9') return missing;
    return strtoull(text, NULL, 0);
}

static void inspect_device(const struct stat* stat, backing_info* info) {
    info->size_bytes = device_figure(stat, "size", 0);
    info->alignment_bytes = device_figure(stat, "align", (uint64_t)2 << 20);
    info->numa_node = (int)device_figure(stat, "target_node", (uint64_t)-1);
}

static bool is_sealed(int fd) {
    const int seals = fcntl(fd, F_GET_SEALS);
    return seals >= 0 && (seals & F_SEAL_SHRINK) != 0;
}

int backing_inspect(int fd, backing_info* info) {
    struct stat stat;
    if (fstat(fd, &stat) != 0) return errno;
    *info = (backing_info){
        .size_bytes = (uint64_t)stat.st_size,
        .allocated_bytes = (uint64_t)stat.st_blocks * 512,
        .free_bytes = UINT64_MAX,
        .alignment_bytes = memory_page_bytes(),
        .owner = stat.st_uid,
        .mode = stat.st_mode & 07777,
        .has_name = stat.st_nlink > 0,
        .numa_node = -1,
        .is_file = S_ISREG(stat.st_mode),
        .is_device = S_ISCHR(stat.st_mode),
        .may_shrink = S_ISREG(stat.st_mode) && !is_sealed(fd),
        .is_writable = (fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDWR,
    };
    if (info->is_device) inspect_device(&stat, info);
    struct statfs system;
    if (!info->is_file || fstatfs(fd, &system) != 0) return 0;
    info->in_memory = system.f_type == TMPFS_MAGIC;
    if (system.f_blocks > 0) info->free_bytes = (uint64_t)system.f_bavail * (uint64_t)system.f_bsize;
    return 0;
}

int backing_open(const char* path, bool create, int* fd, bool* made) {
    *made = false;
    *fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (*fd >= 0) return 0;
    if (!create || errno != ENOENT) return errno;
    *fd = open(path, O_RDWR | O_CLOEXEC | O_CREAT | O_EXCL, 0600);
    if (*fd < 0) return errno == EEXIST ? EAGAIN : errno; /* somebody made it in between: in use */
    *made = true;
    return 0;
}

int backing_open_device(const char* path, int* fd) {
    struct stat stat;
    *fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (*fd < 0) return errno;
    if (fstat(*fd, &stat) == 0 && S_ISCHR(stat.st_mode)) return 0;
    close(*fd);
    return ELOOP;
}

int backing_reopen(int fd, int* own) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    *own = open(path, O_RDWR | O_CLOEXEC);
    return *own >= 0 ? 0 : errno;
}

int backing_lock(int fd) { return flock(fd, LOCK_EX | LOCK_NB) == 0 ? 0 : errno; }

int backing_resize(int fd, uint64_t size_bytes) {
    const int error_number = limit_file_size(size_bytes);
    return error_number != 0 || ftruncate(fd, (off_t)size_bytes) == 0 ? error_number : errno;
}

bool backing_has(int fd, uint64_t size_bytes) {
    const off_t end = lseek(fd, 0, SEEK_END); /* the cheapest call that tells */
    return end >= 0 && (uint64_t)end >= size_bytes;
}

int backing_reserve(int fd, uint64_t offset, uint64_t size_bytes) {
    /* Piece by piece: a signal undoes no more than the piece it interrupts. */
    const uint64_t piece_bytes = (uint64_t)32 << 20;
    while (size_bytes > 0) {
        const uint64_t now = size_bytes < piece_bytes ? size_bytes : piece_bytes;
        if (fallocate(fd, 0, (off_t)offset, (off_t)now) != 0) {
            if (errno == EINTR) continue;
            return errno;
        }
        offset += now;
        size_bytes -= now;
    }
    return 0;
}

int backing_punch(int fd, uint64_t offset, uint64_t size_bytes) {
    while (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)size_bytes) != 0)
        if (errno != EINTR) return errno;
    return 0;
}

int backing_seal(int fd) {
    return fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0 ? 0 : errno;
}

void backing_close(int fd) { close(fd); }

void backing_remove(const char* path) { (void)unlink(path); }

uint32_t backing_user(void) { return (uint32_t)geteuid(); }
