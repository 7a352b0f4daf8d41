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

#include "emucxl/status.h"

typedef struct heap heap;

/* Where the heap's pages come from. Offsets count from the heap's base; ranges are whole pages. */
typedef struct heap_source {
    void* state;
    /* Makes a range usable before its first touch, or after a decommit: EMX_E_NO_MEMORY rather than a kill.
     * NULL: it always is. */
    emx_status (*commit)(void* state, size_t offset, size_t size_bytes);
    /* Gives a range back to the system; it reads as zero when next committed. NULL: it can't, the heap zeroes
     * by hand. */
    emx_status (*decommit)(void* state, size_t offset, size_t size_bytes);
    bool fresh_is_zero; /* committed memory that was never handed out is zero */
    bool touchable;     /* false: addresses without memory, nothing is ever zeroed (and so never dirty) */
} heap_source;

typedef struct heap_block {
    void* base;
    size_t size_bytes; /* as asked for */
} heap_block;

typedef struct heap_stats {
    uint64_t allocated_bytes, reserved_bytes, peak_reserved_bytes, poisoned_bytes;
    uint64_t num_allocations, total_allocations;
} heap_stats;

/* What a heap can have at most: its pages have numbers of 32 bits. */
#define HEAP_MOST_BYTES ((UINT64_C(1) << 44) - UINT64_C(2) * 4096)

/* `base` is aligned to 2 MiB, `capacity_bytes` is whole pages, up to HEAP_MOST_BYTES. */
emx_status heap_create(void* base, size_t capacity_bytes, const heap_source* source, heap** created);
void heap_destroy(heap* heap); /* frees the metadata; the memory is the source's */
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
