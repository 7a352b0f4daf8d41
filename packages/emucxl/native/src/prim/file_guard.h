/* Notices that another process has cut a mapped file short. Touching what is gone raises SIGBUS, which ends
 * the program, so calls ask first and are refused.
 *
 * Asking the kernel is a system call (60 to 600 ns), so it is done at most once in 2 us, which is less than a
 * file takes to be cut. A cut in these 2 us, or in the middle of an access, still ends the program, as does
 * one that a view or a pointer of the program's meets: only a handler of the whole process could help there,
 * and that is the program's.
 *
 * Thread safety: file_guard_holds may run in any number of threads.
 */
#ifndef EMX_FILE_GUARD_H
#define EMX_FILE_GUARD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct file_guard {
    bool is_needed; /* false: a device, or a memfd that is sealed; nobody can cut it */
    int fd;
    uint64_t size_bytes;
    uint64_t patience_ticks;
    _Atomic uint64_t asked_ticks;
} file_guard;

void file_guard_open(file_guard* guard, int fd, uint64_t size_bytes);
bool file_guard_ask(file_guard* guard);

/* Whether the file is still whole. */
static inline bool file_guard_holds(const file_guard* guard) {
    return !guard->is_needed || file_guard_ask((file_guard*)guard);
}

#endif
