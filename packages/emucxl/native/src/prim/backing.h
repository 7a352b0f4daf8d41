/* Files and devices that stand behind memory. Each answers 0, or the errno of the call that failed. */
#ifndef EMX_PRIM_BACKING_H
#define EMX_PRIM_BACKING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct backing_info {
    uint64_t size_bytes;      /* of a file; of a dax device, what sysfs says */
    uint64_t allocated_bytes; /* that the file system has set aside for it */
    uint64_t free_bytes;      /* that its file system has left; UINT64_MAX: no bound of its own */
    uint64_t alignment_bytes; /* that a mapping of it needs: a page, or what a dax device says */
    uint32_t owner;           /* user id */
    uint32_t mode;            /* permission bits */
    int numa_node;            /* of a dax device, or -1 */
    bool is_file, is_device, is_writable;
    bool may_shrink; /* others can cut it short: touching what is gone then ends in SIGBUS */
    bool has_name;   /* others can open it by a path */
    bool in_memory;  /* tmpfs or memfd: its pages are memory of the system */
} backing_info;

int backing_inspect(int fd, backing_info* info);
/* Opens for reading and writing; ELOOP for a symbolic link. `create`: makes it with mode 0600 if it is
 * missing (*made tells). */
int backing_open(const char* path, bool create, int* fd, bool* made);
/* The same through symbolic links, for a device, which administrators like to name with them; ELOOP for
 * anything else. */
int backing_open_device(const char* path, int* fd);
/* Another open file description of the same file, so that locks through the two exclude each other. */
int backing_reopen(int fd, int* own);
/* EAGAIN while another open file description holds it. Held until the description's last descriptor is
 * closed. */
int backing_lock(int fd);
int backing_resize(int fd, uint64_t size_bytes);
/* Whether the file still has so many bytes: one system call. */
bool backing_has(int fd, uint64_t size_bytes);
/* Sets the range's blocks aside, so that touching them cannot fail. EOPNOTSUPP where the file system can't.
 */
int backing_reserve(int fd, uint64_t offset, uint64_t size_bytes);
/* Gives the range's blocks back; it reads as zero. */
int backing_punch(int fd, uint64_t offset, uint64_t size_bytes);
/* No process may shrink or grow the memfd from now on. */
int backing_seal(int fd);
void backing_close(int fd);
void backing_remove(const char* path);
uint32_t backing_user(void);

#endif
