#include "prim/file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <limits.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "prim/limits.h"
#include "prim/system_memory.h"

static uint64_t device_size(const struct stat* status) {
    char path[96];
    uint64_t size_bytes = 0;
    snprintf(path, sizeof path, "/sys/dev/char/%u:%u/size", major(status->st_rdev), minor(status->st_rdev));
    FILE* file = fopen(path, "re");
    if (!file) return 0;
    if (fscanf(file, "%" SCNu64, &size_bytes) != 1) size_bytes = 0;
    fclose(file);
    return size_bytes;
}

int file_open(const char* path, bool writable, int* fd, file_facts* facts) {
    struct stat status;
    *fd = open(path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (*fd < 0) return errno;
    if (fstat(*fd, &status) != 0 || !(S_ISREG(status.st_mode) || S_ISCHR(status.st_mode))) {
        close_file(*fd);
        return EINVAL;
    }
    facts->is_device = S_ISCHR(status.st_mode);
    facts->size_bytes = facts->is_device ? device_size(&status) : (uint64_t)status.st_size;
    facts->is_mine = status.st_uid == geteuid();
    facts->is_private = (status.st_mode & 077) == 0;
    return 0;
}

int file_create_nameless(const char* path, int* fd, char* temporary) {
    char copy[PATH_MAX];
    temporary[0] = 0;
    if (strlen(path) + 32 > sizeof copy) return ENAMETOOLONG;
    memcpy(copy, path, strlen(path) + 1);
    *fd = open(dirname(copy), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (*fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR)) {
        snprintf(temporary, PATH_MAX, "%s.%d.new", path, (int)getpid());
        *fd = open(temporary, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (*fd < 0) temporary[0] = 0;
    }
    if (*fd < 0) return errno;
    if (fchmod(*fd, 0600) == 0) return 0; /* whatever the umask says */
    const int error = errno;
    close_file(*fd);
    file_remove(temporary);
    return error;
}

int file_publish(int fd, const char* temporary, const char* path) {
    char by_descriptor[64];
    snprintf(by_descriptor, sizeof by_descriptor, "/proc/self/fd/%d", fd);
    const char* from = temporary[0] ? temporary : by_descriptor;
    if (linkat(AT_FDCWD, from, AT_FDCWD, path, AT_SYMLINK_FOLLOW) != 0) return errno;
    file_remove(temporary);
    return 0;
}

void file_remove(const char* path) {
    if (path[0]) unlink(path);
}

void close_file(int fd) {
    if (fd >= 0) close(fd);
}

/* A filesystem in memory reserves page by page, and out of memory the kernel would kill instead of refusing.
 */
static bool exceeds_memory(int fd, uint64_t size_bytes) {
    struct statfs filesystem;
    struct stat status;
    if (fstatfs(fd, &filesystem) != 0 || filesystem.f_type != TMPFS_MAGIC || fstat(fd, &status) != 0)
        return false;
    const uint64_t has_bytes = (uint64_t)status.st_blocks * 512, available_bytes = system_memory_available();
    if (size_bytes <= has_bytes || available_bytes == UINT64_MAX) return false;
    return size_bytes - has_bytes + SYSTEM_KEPT_BYTES > available_bytes;
}

int file_reserve(int fd, uint64_t size_bytes) {
    if (size_bytes > INT64_MAX) return ENOMEM;
    if (exceeds_memory(fd, size_bytes)) return ENOMEM;
    const int limit = limit_file_size(size_bytes);
    if (limit != 0) return limit;
    if (ftruncate(fd, (off_t)size_bytes) != 0) return errno == EFBIG || errno == EINVAL ? ENOSPC : errno;
    return posix_fallocate(fd, 0, (off_t)size_bytes);
}

static struct flock byte_at(uint64_t offset, short type) {
    return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = (off_t)offset, .l_len = 1};
}

int file_lock_byte(int fd, uint64_t offset) {
    struct flock lock = byte_at(offset, F_WRLCK);
    if (fcntl(fd, F_OFD_SETLK, &lock) == 0) return 0;
    return errno == EACCES ? EAGAIN : errno;
}

void file_unlock_byte(int fd, uint64_t offset) {
    struct flock lock = byte_at(offset, F_UNLCK);
    (void)fcntl(fd, F_OFD_SETLK, &lock);
}

int file_byte_is_locked(int fd, uint64_t offset) {
    struct flock lock = byte_at(offset, F_WRLCK);
    if (fcntl(fd, F_OFD_GETLK, &lock) != 0) return -1;
    return lock.l_type != F_UNLCK;
}

uint64_t file_inode(int fd) {
    struct stat status;
    if (fstat(fd, &status) != 0) return 0;
    return ((uint64_t)status.st_dev * 0x9e3779b97f4a7c15u ^ (uint64_t)status.st_ino) | 1;
}

static int finish_mapping(void* mapped, size_t size_bytes, void** out) {
    if (mapped == MAP_FAILED) return errno;
    (void)madvise(mapped, size_bytes, MADV_DONTFORK);
    *out = mapped;
    return 0;
}

int map_file(int fd, uint64_t offset, size_t size_bytes, bool writable, void* at, void** mapped) {
    const int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
    const int flags = MAP_SHARED | (at ? MAP_FIXED : 0);
    return finish_mapping(mmap(at, size_bytes, protection, flags, fd, (off_t)offset), size_bytes, mapped);
}

static int map_private(void* at, size_t size_bytes, int protection, void** mapped) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (at ? MAP_FIXED : 0);
    return finish_mapping(mmap(at, size_bytes, protection, flags, -1, 0), size_bytes, mapped);
}

int address_reserve(size_t size_bytes, size_t alignment, void** reserved) {
    void* wide = NULL;
    if (size_bytes > SIZE_MAX - alignment) return ENOMEM;
    const int error = map_private(NULL, size_bytes + alignment, PROT_NONE, &wide);
    if (error) return error;
    const uintptr_t start = (uintptr_t)wide, aligned = (start + alignment - 1) / alignment * alignment;
    if (aligned > start) munmap(wide, aligned - start);
    munmap((void*)(aligned + size_bytes), start + alignment - aligned);
    *reserved = (void*)aligned;
    return 0;
}

int address_blank(void* at, size_t size_bytes) {
    return size_bytes ? map_private(at, size_bytes, PROT_READ | PROT_WRITE, &at) : 0;
}

int address_forbid(void* at, size_t size_bytes) {
    return size_bytes ? map_private(at, size_bytes, PROT_NONE, &at) : 0;
}

void address_release(void* at, size_t size_bytes) {
    if (at) munmap(at, size_bytes);
}
