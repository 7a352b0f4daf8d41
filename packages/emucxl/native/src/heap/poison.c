/* Poison: which lines are bad, and what becomes of the pages they are on. */
#include "fail.h"
#include "heap/cache.h"
#include "prim/memory.h"

enum { LINES_PER_PAGE = PAGE_BYTES / LINE_BYTES };

/* Acquire: pairs with the release in page_went_bad, so that who finds a count finds the bitmap mapped and the
 * bit set. */
static bool any_poison(const heap* heap) {
    return atomic_load_explicit(&heap->poisoned_pages, memory_order_acquire) > 0;
}

size_t poison_find_page(const heap* heap, size_t from, size_t to) {
    if (!any_poison(heap)) return to;
    const size_t line = bitmap_next(&heap->poison, from * LINES_PER_PAGE);
    return line / LINES_PER_PAGE < to ? line / LINES_PER_PAGE : to; /* BITS_NONE is far beyond */
}

bool heap_first_poison(const heap* heap, const void* address, size_t size_bytes, const void** bad_line) {
    if (LIKELY(!any_poison(heap)) || size_bytes == 0) return false;
    const size_t offset = offset_in(heap, address);
    if (offset >= heap->capacity_bytes) return false;
    const size_t line = bitmap_next(&heap->poison, offset / LINE_BYTES);
    if (line == BITS_NONE || line * LINE_BYTES >= offset + size_bytes) return false;
    *bad_line = heap->base + line * LINE_BYTES;
    return true;
}

static emx_status map_lines(heap* heap) {
    if (heap->poison_memory) return EMX_OK;
    const size_t num_lines = heap->capacity_bytes / LINE_BYTES, bytes = bitmap_bytes(num_lines);
    void* memory;
    int error = memory_reserve(bytes, PAGE_BYTES, &memory);
    if (error == 0 && (error = memory_enable(memory, bytes)) != 0) memory_release(memory, bytes);
    if (error != 0) return fail_system(error, "cannot map %zu bytes to note poison in", bytes);
    heap->poison_memory = memory;
    heap->poison_memory_bytes = bytes;
    bitmap_place(&heap->poison, num_lines, memory);
    return EMX_OK;
}

/* A page has its first bad line: if it is free nobody gets it any more, if not it is retired when it becomes
 * free. */
static void page_went_bad(heap* heap, size_t page) {
    atomic_fetch_add_explicit(&heap->poisoned_pages, 1, memory_order_release);
    const size_t head = head_of(heap, page);
    switch (tag_kind(run_tag(heap, head))) {
        case RUN_FREE:
            pages_retire_free(heap, page);
            break;
        case RUN_SLAB:
        case RUN_SLAB_POISONED:
            slab_retire_page(heap, head, page);
            break;
        default:
            break;
    }
}

static void poison_lines(heap* heap, size_t first, size_t end) {
    for (size_t line = first; line < end; ++line) {
        const size_t page = line / LINES_PER_PAGE;
        const bool page_is_new = bitmap_next(&heap->poison, page * LINES_PER_PAGE) / LINES_PER_PAGE != page;
        bitmap_set(&heap->poison, line);
        if (page_is_new) page_went_bad(heap, page);
    }
}

emx_status heap_poison(heap* heap, const void* address, size_t size_bytes) {
    const size_t offset = offset_in(heap, address);
    if (offset >= heap->capacity_bytes || size_bytes > heap->capacity_bytes - offset)
        return fail(EMX_E_OUT_OF_BOUNDS, "got %zu bytes at %p; expected a range of the %zu bytes at %p",
                    size_bytes, address, heap->capacity_bytes, (void*)heap->base);
    if (size_bytes == 0) return EMX_OK;
    caches_stop(heap); /* no cache must hold an object on these pages */
    pthread_mutex_lock(&heap->lock);
    caches_empty(heap);
    const emx_status status = map_lines(heap);
    if (status == EMX_OK) poison_lines(heap, offset / LINE_BYTES, (offset + size_bytes - 1) / LINE_BYTES + 1);
    pthread_mutex_unlock(&heap->lock);
    caches_resume(heap);
    return status;
}
