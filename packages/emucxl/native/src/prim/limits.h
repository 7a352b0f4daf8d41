/* Limits of this process, asked before something is tried. */
#ifndef EMX_PRIM_LIMITS_H
#define EMX_PRIM_LIMITS_H

#include <stdint.h>

/* EFBIG where RLIMIT_FSIZE keeps files shorter than that, memfds too; else 0. To be asked before a file
 * grows: the kernel would answer the attempt with SIGXFSZ, which ends the process. */
int limit_file_size(uint64_t size_bytes);

#endif
