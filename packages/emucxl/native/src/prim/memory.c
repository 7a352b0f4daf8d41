#include "prim/memory.h"

#include <errno.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include "prim/limits.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MAP_SYNC
#define MAP_SYNC 0x80000
#endif

size_t memory_page_bytes(void) { return (size_t)sysconf(_SC_PAGESIZE); }

int memory_reserve(size_t size_bytes, size_t alignment, void** base) {
    const size_t with_slack = size_bytes + alignment;
    if (with_slack < size_bytes) return ENOMEM;
    char* found = mmap(NULL, with_slack, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (found == MAP_FAILED) return errno;
    char* aligned = found + (-(uintptr_t)found & (alignment - 1));
    if (aligned > found) munmap(found, (size_t)(aligned - found));
    const size_t behind = (size_t)(found + with_slack - (aligned + size_bytes));
    if (behind > 0) munmap(aligned + size_bytes, behind);
    *base = aligned;
    return 0;
}

int memory_release(void* base, size_t size_bytes) { return munmap(base, size_bytes) == 0 ? 0 : errno; }

int memory_enable(void* base, size_t size_bytes) {
    return mprotect(base, size_bytes, PROT_READ | PROT_WRITE) == 0 ? 0 : errno;
}

int memory_discard(void* base, size_t size_bytes) {
    return madvise(base, size_bytes, MADV_DONTNEED) == 0 ? 0 : errno;
}

int memory_populate(void* base, size_t size_bytes) {
    return madvise(base, size_bytes, MADV_POPULATE_WRITE) == 0 ? 0 : errno;
}

void memory_advise_huge(void* base, size_t size_bytes) { (void)madvise(base, size_bytes, MADV_HUGEPAGE); }

int memory_resident(void* base, size_t size_bytes, size_t* resident_bytes) {
    enum { PAGES_AT_ONCE = 16384 }; /* a byte each, on the stack: 64 MiB at a time */
    unsigned char present[PAGES_AT_ONCE];
    const size_t page = memory_page_bytes();
    size_t pages = 0;
    for (size_t done = 0; done < size_bytes;) {
        const size_t left = size_bytes - done, most = PAGES_AT_ONCE * page;
        const size_t now = left < most ? left : most;
        if (mincore((char*)base + done, now, present) != 0) return errno;
        for (size_t i = 0; i < (now + page - 1) / page; i++) pages += present[i] & 1;
        done += now;
    }
    *resident_bytes = pages * page;
    return 0;
}

int memory_map_file(void* base, size_t size_bytes, int fd, bool synchronous) {
    const int flags = synchronous ? MAP_SHARED_VALIDATE | MAP_SYNC : MAP_SHARED;
    return mmap(base, size_bytes, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, 0) == MAP_FAILED ? errno : 0;
}

int memory_map_anywhere(size_t size_bytes, int fd, void** base) {
    void* found = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (found == MAP_FAILED) return errno;
    *base = found;
    return 0;
}

int memory_create_file(const char* name, size_t size_bytes, int* fd) {
    const int limit = limit_file_size(size_bytes);
    if (limit != 0) return limit;
    const int made = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (made < 0) return errno;
    if (ftruncate(made, (off_t)size_bytes) != 0) {
        const int error_number = errno;
        close(made);
        return error_number;
    }
    *fd = made;
    return 0;
}
