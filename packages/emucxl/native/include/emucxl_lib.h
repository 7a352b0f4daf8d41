/* The interface that was published with arXiv 2404.08311: fifteen calls over two nodes, local and remote memory.
 *
 * Programs written for it compile and run unmodified: `gcc program.c -lemucxl`. There is no device, no kernel module,
 * no root; new programs may want emucxl.h, on which this one is built. Where it departs from the published library,
 * that one crashed, leaked, overran or went by chance; docs/memory/c.md lists each difference.
 *
 * Failure: calls that return a pointer return NULL, calls that return a bool false, get_numa_node -1, get_size and
 * stats 0; calls without a result change nothing. emx_error_detail() says why. Nothing exits. One call prints: an
 * emucxl_init that fails says why on standard error, as programs written for this interface cannot ask. EMUCXL_QUIET=1
 * keeps it silent.
 *
 * The nodes' sizes and timing come from the environment, so that no program needs to change. emucxl_init reads it, and
 * is the one call of the library that does. N is LOCAL or REMOTE:
 *     EMUCXL_N_BYTES           capacity, with an optional K, M, G or T. Default: 16G, or less on a smaller machine
 *     EMUCXL_N_LATENCY_NS      modelled latency of an access through these calls. Default: the machine's own
 *     EMUCXL_N_BANDWIDTH_GBPS  modelled bandwidth, in 1e9 bytes per second. Default: the machine's own
 *     EMUCXL_N_NUMA_NODE       take the memory from this NUMA node
 *     EMUCXL_N_DAX             take the memory from this device (/dev/daxX.Y), or the file that stands in for it
 * A value that makes no sense, or a name of this form that is not listed, makes emucxl_init fail.
 *
 * Thread safety: every call may run in any number of threads, but for the emucxl_exit that balances the first
 * emucxl_init: it frees everything, and nothing may run beside it.
 */
#ifndef EMUCXL_LIB_H
#define EMUCXL_LIB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/types.h>
#include <unistd.h>

#include "emucxl/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The nodes. A program may define them again, to the same. */
#define LOCAL_MEMORY 0
#define REMOTE_MEMORY 1

#ifndef PAGE_SIZE
#define PAGE_SIZE 4096
#endif

typedef struct Key_value {
    char key[50];
    int value;
    struct Key_value* next;
} Key_value;

/* Counted: as many emucxl_exit are needed as there were emucxl_init. When init fails, everything else does,
 * and says why; the next emucxl_init tries again. The last emucxl_exit frees every allocation. */
EMX_API void emucxl_init(void);
EMX_API void emucxl_exit(void);

/* `size` >= 1 zeroed bytes of the node; aligned to 16, and to PAGE_SIZE from that size on. */
EMX_API void* emucxl_alloc(size_t size, int node);
/* Frees the allocation that begins at `ptr`, all of it, whatever `size` says. NULL does nothing. */
EMX_API void emucxl_free(void* ptr, size_t size);
/* Moves the allocation to `node` with a new size: the bytes that fit are kept, new ones are zero. Its real
 * size counts, not `oldsize`. On failure it is where it was. */
EMX_API void* emucxl_resize(void* ptr, int node, size_t oldsize, size_t newsize);
/* Moves all of the allocation to `newnode`. It is at least `size` bytes long there. On failure it is where it
 * was. */
EMX_API void* emucxl_migrate(void* ptr, int newnode, size_t size);

/* `size` bytes between `buffer` and the allocation, from `start_index` bytes after `ptr` on. */
EMX_API bool emucxl_read(void* ptr, int start_index, void* buffer, size_t size);
EMX_API bool emucxl_write(void* ptr, int start_index, void* buffer, size_t size);
/* These take memory of any kind; what of it is emucxl's is checked against its end, and priced. They return
 * their first argument, or NULL for a size of 0. emucxl_memcpy allows overlap too. */
EMX_API void* emucxl_memset(void* ptr, int start_index, int value, size_t size);
EMX_API void* emucxl_memcpy(void* dest, const void* src, size_t size);
EMX_API void* emucxl_memmove(void* dest, const void* src, size_t size);

/* Of the allocation that `ptr` points into, its first byte or any other. */
EMX_API bool emucxl_is_local(void* ptr);
EMX_API int emucxl_get_numa_node(void* ptr); /* LOCAL_MEMORY, REMOTE_MEMORY */
EMX_API size_t emucxl_get_size(void* ptr);   /* as asked for */

/* Bytes allocated on a node now, as asked for. */
EMX_API size_t emucxl_stats(int numa_node);

#ifdef __cplusplus
}
#endif
#endif
