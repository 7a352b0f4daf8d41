/* The heap of one tier: size classes for small blocks, runs of pages for large ones, all metadata outside of
 * the memory it hands out (which may be far, shared, or not there at all).
 *
 * Thread safety: every call but heap_create and heap_destroy may run in any number of threads.
 *
 * Invariants (heap_check verifies them)
 *   1. Live blocks do not overlap and lie inside [base, base + capacity).
 *   2. A block that is handed out is zero, and aligned as asked for.
 *   3. reserved_bytes <= capacity - poisoned pages, and is what runs and slabs add up to.
 */
#ifndef EMX_HEAP_H
#define EMX_HEAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "provider/provider.h"

typedef struct heap heap;

typedef struct heap_block {
    void* base;
    size_t size_bytes; /* as asked for */
} heap_block;

typedef struct heap_stats {
    uint64_t allocated_bytes, reserved_bytes, peak_reserved_bytes, poisoned_bytes;
    uint64_t num_allocations, total_allocations;
} heap_stats;

/* The most that a heap can have: its pages have numbers of 32 bits. */
#define HEAP_MOST_BYTES ((UINT64_C(1) << 44) - UINT64_C(2) * 4096)

/* A heap over `pages`, which must outlive it: base aligned to 2 MiB, capacity of whole pages, up to
 * HEAP_MOST_BYTES. */
emx_status heap_create(pages* pages, heap** created);
void heap_destroy(heap* heap); /* frees the metadata; the memory is the provider's */
emx_status heap_alloc(heap* heap, size_t size_bytes, size_t alignment, void** pointer);
emx_status heap_free(heap* heap, void* pointer);
/* The live block that `pointer` points into; EMX_E_BAD_POINTER otherwise. Any pointer may be asked about. */
emx_status heap_query(const heap* heap, const void* pointer, heap_block* block);
/* Grows or shrinks in place if that is possible without moving (new bytes are zero); false if not. */
bool heap_resize_in_place(heap* heap, void* pointer, size_t size_bytes);
void heap_get_stats(const heap* heap, heap_stats* stats);
emx_status heap_trim(heap* heap);
emx_status heap_check(heap* heap);

/* Poison, in lines of 64 bytes. A page with poison is never handed out again; a block that is live on one
 * keeps it until it is freed. heap_first_poison is cheap (one load) while nothing is poisoned. */
emx_status heap_poison(heap* heap, const void* address, size_t size_bytes);
bool heap_first_poison(const heap* heap, const void* address, size_t size_bytes, const void** bad_line);

#endif
