/* The calls of heap/heap.h. */
#include "heap/heap.h"

#include <stdlib.h>
#include <string.h>

#include "fail.h"
#include "heap/cache.h"
#include "prim/memory.h"

/* ---- made and ended ------------------------------------------------------------------------------------ */

static void* place(const heap* heap, size_t* used, size_t size_bytes) {
    void* at = (char*)heap->metadata + *used;
    *used += (size_bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
    return at;
}

/* Addresses for all that could ever be needed; only what is used gets memory. As many bytes of records as the
 * heap has are plenty: the smallest objects need a seventh of that. */
static size_t lay_out(heap* heap) {
    const size_t num_pages = heap->num_pages, most = (size_t)UINT32_MAX * RECORD_ALIGNMENT;
    const size_t record_bytes =
        heap->capacity_bytes < most - (1 << 20) ? heap->capacity_bytes + (1 << 20) : most;
    size_t used = 0;
    heap->runs = place(heap, &used, (num_pages + 1) * sizeof(run));
    void* starts = place(heap, &used, bitmap_bytes(num_pages));
    heap->dirty = place(heap, &used, bits_words(num_pages) * sizeof(bits_word));
    heap->committed = place(heap, &used, bits_words(num_pages) * sizeof(bits_word));
    heap->records = place(heap, &used, record_bytes);
    heap->max_records = record_bytes / RECORD_ALIGNMENT;
    heap->used_records = 1; /* NO_SLAB is 0 */
    bitmap_place(&heap->starts, num_pages, starts);
    return used;
}

static emx_status map_metadata(heap* heap) {
    heap->metadata_bytes = lay_out(heap); /* how much; the addresses come when there is a place */
    int error = memory_reserve(heap->metadata_bytes, PAGE_BYTES, &heap->metadata);
    if (error == 0 && (error = memory_enable(heap->metadata, heap->metadata_bytes)) != 0)
        memory_release(heap->metadata, heap->metadata_bytes);
    if (error != 0)
        return fail_system(error, "cannot map %zu bytes for a heap's metadata", heap->metadata_bytes);
    lay_out(heap);
    return EMX_OK;
}

_Static_assert(HEAP_MOST_BYTES / PAGE_BYTES < NO_PAGE, "every page of a heap has a number");

static emx_status check_range(const void* base, size_t capacity_bytes) {
    if ((uintptr_t)base % MAX_ALIGNMENT != 0)
        return fail(EMX_E_INVALID, "got a heap's base %p; expected a multiple of 2 MiB", base);
    if (capacity_bytes == 0 || capacity_bytes % PAGE_BYTES != 0 || capacity_bytes > HEAP_MOST_BYTES)
        return fail(EMX_E_INVALID, "got a heap of %zu bytes; expected whole pages of 4096, up to %llu",
                    capacity_bytes, (unsigned long long)HEAP_MOST_BYTES);
    return EMX_OK;
}

emx_status heap_create(pages* pages, heap** created) {
    emx_status status = check_range(pages->base, pages->capacity_bytes);
    if (status != EMX_OK) return status;
    heap* made = aligned_alloc(64, sizeof *made);
    if (!made) return fail(EMX_E_NO_MEMORY, "no memory for a heap's metadata (%zu bytes)", sizeof *made);
    memset(made, 0, sizeof *made);
    made->base = pages->base;
    made->capacity_bytes = pages->capacity_bytes;
    made->num_pages = pages->capacity_bytes / PAGE_BYTES;
    made->pages = pages;
    made->touchable = pages->touchable;
    if ((status = map_metadata(made)) != EMX_OK) {
        free(made);
        return status;
    }
    classes_prepare(made);
    pages_prepare(made);
    pthread_mutex_init(&made->lock, NULL);
    registry_add(made);
    *created = made;
    return EMX_OK;
}

void heap_destroy(heap* heap) {
    if (!heap) return;
    registry_remove(heap);
    pthread_mutex_destroy(&heap->lock);
    memory_release(heap->metadata, heap->metadata_bytes);
    if (heap->poison_memory) memory_release(heap->poison_memory, heap->poison_memory_bytes);
    free(heap);
}

/* ---- the rest ------------------------------------------------------------------------------------------ */

/* Read while others count, a free may be seen before its allocation. */
static uint64_t not_below_zero(uint64_t sum) { return (int64_t)sum < 0 ? 0 : sum; }

void heap_get_stats(const heap* heap, heap_stats* stats) {
    pthread_mutex_t* lock = (pthread_mutex_t*)&heap->lock;
    *stats = (heap_stats){0};
    registry_lock();
    pthread_mutex_lock(lock);
    add_counters(stats, &heap->counters);
    for (const cache* cache = heap->caches; cache; cache = cache->next) add_counters(stats, &cache->counters);
    stats->reserved_bytes = heap->reserved_pages * PAGE_BYTES;
    stats->peak_reserved_bytes = heap->peak_reserved_pages * PAGE_BYTES;
    pthread_mutex_unlock(lock);
    registry_unlock();
    stats->poisoned_bytes = atomic_load_explicit(&heap->poisoned_pages, memory_order_relaxed) * PAGE_BYTES;
    stats->allocated_bytes = not_below_zero(stats->allocated_bytes);
    stats->num_allocations = not_below_zero(stats->num_allocations);
}

emx_status heap_trim(heap* heap) {
    caches_drain(heap);
    pthread_mutex_lock(&heap->lock);
    const emx_status status = pages_trim(heap);
    pthread_mutex_unlock(&heap->lock);
    return status;
}
