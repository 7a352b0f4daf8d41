/* Files and devices that memory is mapped from. Every call that can fail returns 0 or an errno. */
#ifndef EMX_PRIM_FILE_H
#define EMX_PRIM_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct file_facts {
    uint64_t size_bytes; /* of a device too */
    bool is_device;      /* a character device; otherwise an ordinary file */
    bool is_mine;        /* this user owns it */
    bool is_private;     /* no mode bit for group or others */
} file_facts;

/* Opens what `path` names, never through a final symbolic link. EINVAL: neither a file nor a character
 * device. */
int file_open(const char* path, bool writable, int* fd, file_facts* facts);
/* A file (mode 0600) in `path`'s directory that has no name yet, or `temporary` where the filesystem has no
 * such files. `temporary` holds at least 4096 bytes, and stays empty when nothing has to be removed. */
int file_create_nameless(const char* path, int* fd, char* temporary);
/* Gives that file its name; EEXIST if it is taken. */
int file_publish(int fd, const char* temporary, const char* path);
void file_remove(const char* path); /* a path that is empty or names nothing is left alone */
void close_file(int fd);
/* Sets the size and reserves every page, so that touching one never fails. ENOMEM, ENOSPC or EFBIG
 * (RLIMIT_FSIZE) before anything is used up. */
int file_reserve(int fd, uint64_t size_bytes);

/* Locks on single bytes. One belongs to the open file behind `fd`, and goes with the last descriptor and
 * mapping of that, however their process ends. Any other open file of the same inode on this running kernel
 * can ask for it, whatever its namespaces; the one that holds it is told that it is free. 0, or an errno:
 * EAGAIN if another holds it. */
int file_lock_byte(int fd, uint64_t offset);
void file_unlock_byte(int fd, uint64_t offset);
/* 1: another open file holds it; 0: none does; -1: that cannot be told. */
int file_byte_is_locked(int fd, uint64_t offset);
/* Names the inode that such locks lie on: two nodes of one device have two. 0: that cannot be told. */
uint64_t file_inode(int fd);

/* Maps shared. `at` NULL: anywhere. Children of fork() do not inherit it. */
int map_file(int fd, uint64_t offset, size_t size_bytes, bool writable, void* at, void** mapped);
/* Addresses without memory, aligned; touching them faults. */
int address_reserve(size_t size_bytes, size_t alignment, void** reserved);
/* Replaces what is mapped, at once: by zeroes of this process's own, or by addresses that fault. */
int address_blank(void* at, size_t size_bytes);
int address_forbid(void* at, size_t size_bytes);
void address_release(void* at, size_t size_bytes);

#endif
