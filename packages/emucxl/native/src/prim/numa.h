/* The kernel's NUMA calls, which the C library does not wrap. Each answers 0, or the errno of the call that
 * failed. */
#ifndef EMX_PRIM_NUMA_H
#define EMX_PRIM_NUMA_H

#include <stddef.h>

enum { NUMA_MAX_NODES = 1024 };

/* Pages of the range come from `node` while it has any. */
int numa_prefer(void* base, size_t size_bytes, int node);
/* Moves the pages of the range that lie elsewhere to `node`, as far as that goes. */
int numa_move(void* base, size_t size_bytes, int node);
/* Asks where each page is. *elsewhere: how many are not on `node` (or have no memory at all); *example: where
 * the first of these is, or -1. */
int numa_verify(void* base, size_t size_bytes, int node, size_t* elsewhere, int* example);

#endif
