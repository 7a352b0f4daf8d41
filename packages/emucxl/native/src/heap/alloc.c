/* Blocks: handed out, looked up, freed and resized. */
#include <string.h>

#include "fail.h"
#include "heap/cache.h"

/* ---- allocation ---------------------------------------------------------------------------------------- */

static void count_alloc(counters* counters, size_t size_bytes) {
    count(&counters->allocated_bytes, size_bytes);
    count(&counters->num_allocated, 1);
}

static void count_free(counters* counters, size_t size_bytes) {
    count(&counters->allocated_bytes, -(uint64_t)size_bytes);
    count(&counters->num_freed, 1);
}

static emx_status tier_full(heap* heap, size_t size_bytes) {
    pthread_mutex_lock(&heap->lock);
    const size_t reserved = heap->reserved_pages * PAGE_BYTES, retired = heap->retired_pages * PAGE_BYTES;
    pthread_mutex_unlock(&heap->lock);
    return fail(EMX_E_TIER_FULL,
                "asked for %zu bytes; of a capacity of %zu, %zu are reserved and %zu retired, and what is "
                "left has no such "
                "run; free some, or give the tier more capacity",
                size_bytes, heap->capacity_bytes, reserved, retired);
}

/* `base` is aligned to 16 and has room for `size_bytes` rounded up to 16. Small sizes are worth no call. */
static inline void zero_object(char* base, size_t size_bytes) {
    char* end = base + ((size_bytes + 15) & ~(size_t)15);
    if (end - base > 128) {
        memset(base, 0, size_bytes);
        return;
    }
    memset(base, 0, 16);
    memset(end - 16, 0, 16);
    if (end - base <= 32) return;
    memset(base + 16, 0, 16);
    memset(end - 32, 0, 16);
    if (end - base <= 64) return;
    memset(base + 32, 0, 32);
    memset(end - 64, 0, 32);
}

/* An object that is taken becomes a block. */
static inline void* hand_out(free_object object, size_t size_bytes, counters* counters) {
    atomic_store_explicit(object.size, (uint16_t)size_bytes, memory_order_relaxed);
    count_alloc(counters, size_bytes);
    return free_object_address(object);
}

static inline void zero_if_dirty(const heap* heap, free_object object, size_t size_bytes) {
    if (object.address_and_dirty & 1 && LIKELY(heap->touchable))
        zero_object(free_object_address(object), size_bytes);
}

/* Past the caches; empties them before it says "full". */
__attribute__((noinline)) static emx_status alloc_object_slowly(heap* heap, unsigned class, size_t size_bytes,
                                                                void** pointer) {
    for (bool drained = false;; drained = true) {
        free_object object;
        emx_status status;
        pthread_mutex_lock(&heap->lock);
        const bool taken = slab_take(heap, class, &object, 1, &status) == 1;
        if (taken) *pointer = hand_out(object, size_bytes, &heap->counters);
        pthread_mutex_unlock(&heap->lock);
        if (taken) {
            zero_if_dirty(heap, object, size_bytes);
            return EMX_OK;
        }
        if (status != EMX_E_TIER_FULL) return status;
        if (drained) return tier_full(heap, size_bytes);
        caches_drain(heap);
    }
}

static inline emx_status take_object(heap* heap, cache* cache, unsigned class, size_t size_bytes,
                                     void** pointer) {
    magazine* magazine = &cache->magazines[class];
    const free_object object = magazine->objects[--magazine->num_objects];
    *pointer = hand_out(object, size_bytes, &cache->counters);
    cache_leave(cache);
    zero_if_dirty(heap, object, size_bytes);
    return EMX_OK;
}

/* Through the cache, which may have to be made, waited for, or filled first. */
__attribute__((noinline)) static emx_status alloc_object(heap* heap, unsigned class, size_t size_bytes,
                                                         void** pointer) {
    cache* cache = cache_of(heap);
    if (!cache) return alloc_object_slowly(heap, class, size_bytes, pointer);
    cache_enter_patiently(cache);
    if (cache->magazines[class].num_objects > 0 || cache_refill(heap, cache, class))
        return take_object(heap, cache, class, size_bytes, pointer);
    cache_leave(cache);
    return alloc_object_slowly(heap, class, size_bytes, pointer);
}

static emx_status alloc_run(heap* heap, size_t size_bytes, size_t alignment_pages, void** pointer) {
    const size_t num_pages = pages_of(size_bytes);
    size_t page;
    for (bool drained = false;; drained = true) {
        pthread_mutex_lock(&heap->lock);
        const emx_status status = pages_alloc(heap, num_pages, alignment_pages, RUN_BLOCK, &page);
        if (status == EMX_OK) {
            atomic_store_explicit(&heap->runs[page].size_bytes, size_bytes, memory_order_relaxed);
            count_alloc(&heap->counters, size_bytes);
        }
        pthread_mutex_unlock(&heap->lock);
        if (status == EMX_OK) break;
        if (status != EMX_E_TIER_FULL) return status;
        if (drained) return tier_full(heap, size_bytes);
        caches_drain(heap);
    }
    pages_zero(heap, page, num_pages);
    *pointer = page_address(heap, page);
    return EMX_OK;
}

/* Large sizes, large alignments, and arguments that make no sense. */
__attribute__((noinline)) static emx_status alloc_rare(heap* heap, size_t size_bytes, size_t alignment,
                                                       void** pointer) {
    if (size_bytes == 0) return fail(EMX_E_INVALID, "got a size of 0 bytes; expected at least 1");
    if ((alignment & (alignment - 1)) != 0 || alignment > MAX_ALIGNMENT)
        return fail(EMX_E_INVALID, "got alignment %zu; expected a power of two up to 2 MiB, or 0 for 16",
                    alignment);
    if (size_bytes > heap->capacity_bytes) return tier_full(heap, size_bytes);
    if (alignment < MIN_ALIGNMENT) alignment = MIN_ALIGNMENT;
    if (size_bytes <= MAX_OBJECT_BYTES && alignment <= PAGE_BYTES) {
        /* Slabs start on pages, so objects are as aligned as their size. */
        unsigned class = class_of((size_bytes + alignment - 1) & ~(alignment - 1));
        while (heap->classes[class].object_bytes % alignment != 0) ++class; /* powers of two are classes */
        return alloc_object(heap, class, size_bytes, pointer);
    }
    return alloc_run(heap, size_bytes, alignment <= PAGE_BYTES ? 1 : alignment / PAGE_BYTES, pointer);
}

emx_status heap_alloc(heap* heap, size_t size_bytes, size_t alignment, void** pointer) {
    if (UNLIKELY(size_bytes - 1 >= MAX_OBJECT_BYTES || (alignment != 0 && alignment != MIN_ALIGNMENT)))
        return alloc_rare(heap, size_bytes, alignment, pointer);
    const unsigned class = class_of(size_bytes);
    cache* cache = cache_recent(heap);
    if (LIKELY(cache && cache_enter(cache))) {
        if (LIKELY(cache->magazines[class].num_objects > 0))
            return take_object(heap, cache, class, size_bytes, pointer);
        cache_leave(cache);
    }
    return alloc_object(heap, class, size_bytes, pointer);
}

/* ---- lookup -------------------------------------------------------------------------------------------- */

typedef struct live_block {
    heap_block block;
    size_t head;
    run_kind kind;
    object object; /* in slabs */
} live_block;

static inline bool find_live(const heap* heap, const void* pointer, live_block* found) {
    const size_t offset = offset_in(heap, pointer);
    if (offset >= heap->capacity_bytes) return false;
    const size_t head = found->head = head_of(heap, offset >> PAGE_SHIFT);
    if (UNLIKELY(head == BITS_NONE)) return false; /* only ever of a bitmap that changes under our eyes */
    const uint64_t tag = run_tag(heap, head);
    uint64_t within;
    switch (found->kind = tag_kind(tag)) {
        case RUN_BLOCK:
            within = offset - (head << PAGE_SHIFT);
            found->block.size_bytes =
                atomic_load_explicit(&heap->runs[head].size_bytes, memory_order_relaxed);
            break;
        case RUN_SLAB:
        case RUN_SLAB_POISONED:
            if (!object_in(heap, offset, head, tag, &found->object)) return false;
            within = found->object.offset;
            found->block.size_bytes = atomic_load_explicit(found->object.size, memory_order_relaxed);
            break;
        default:
            return false;
    }
    found->block.base = (char*)pointer - within;
    return within < found->block.size_bytes;
}

static emx_status bad_pointer(const void* pointer, const live_block* found, bool is_live) {
    if (is_live)
        return fail(EMX_E_BAD_POINTER, "got %p, which is %zu bytes into an allocation; expected its base, %p",
                    pointer, (size_t)((const char*)pointer - (char*)found->block.base), found->block.base);
    return fail(EMX_E_BAD_POINTER, "got %p, which is in no live allocation: never was, or freed already",
                pointer);
}

emx_status heap_query(const heap* heap, const void* pointer, heap_block* block) {
    live_block found;
    if (UNLIKELY(!find_live(heap, pointer, &found))) return bad_pointer(pointer, &found, false);
    *block = found.block;
    return EMX_OK;
}

/* ---- freeing ------------------------------------------------------------------------------------------- */

/* Runs, objects of poisoned slabs, threads without a cache, and pointers that are wrong. */
__attribute__((noinline)) static emx_status free_slowly(heap* heap, void* pointer) {
    live_block found;
    pthread_mutex_lock(&heap->lock);
    const bool is_live = find_live(heap, pointer, &found), is_base = is_live && found.block.base == pointer;
    if (is_base) {
        count_free(&heap->counters, found.block.size_bytes);
        if (found.kind == RUN_BLOCK) {
            pages_free(heap, found.head);
        } else {
            atomic_store_explicit(found.object.size, 0, memory_order_relaxed);
            slab_give(heap, (free_object){(uintptr_t)pointer | 1, found.object.size});
        }
    }
    pthread_mutex_unlock(&heap->lock);
    return is_base ? EMX_OK : bad_pointer(pointer, &found, is_live);
}

/* An object of a slab without poison, whose base `pointer` is. */
static inline bool find_plain_object(const heap* heap, const void* pointer, object* found) {
    const size_t offset = offset_in(heap, pointer);
    if (UNLIKELY(offset >= heap->capacity_bytes)) return false;
    /* Slabs are shorter than a word. */
    const size_t head = bitmap_previous_near(&heap->starts, offset >> PAGE_SHIFT);
    const uint64_t tag = LIKELY(head != BITS_NONE) ? run_tag(heap, head) : 0;
    return tag_kind(tag) == RUN_SLAB && object_in(heap, offset, head, tag, found) && found->offset == 0;
}

static inline void put_object(cache* cache, void* pointer, const object* found, uint16_t size) {
    magazine* magazine = &cache->magazines[found->class];
    magazine->objects[magazine->num_objects++] = (free_object){(uintptr_t)pointer | 1, found->size};
    atomic_store_explicit(found->size, 0, memory_order_relaxed);
    count_free(&cache->counters, size);
    cache_leave(cache);
}

/* The size of the live object in a plain slab whose base `pointer` is, or 0. */
static inline uint16_t find_freeable(const heap* heap, const void* pointer, object* found) {
    return LIKELY(find_plain_object(heap, pointer, found))
               ? atomic_load_explicit(found->size, memory_order_relaxed)
               : 0;
}

/* Through the cache, which may have to be made, waited for, or given room first. */
__attribute__((noinline)) static emx_status free_object_or_run(heap* heap, void* pointer) {
    cache* cache = cache_of(heap);
    if (!cache) return free_slowly(heap, pointer);
    cache_enter_patiently(cache);
    object found;
    const uint16_t size = find_freeable(heap, pointer, &found);
    if (size == 0) {
        cache_leave(cache);
        return free_slowly(heap, pointer);
    }
    const magazine* magazine = &cache->magazines[found.class];
    if (magazine->num_objects == magazine->max_objects) cache_make_room(heap, cache, found.class);
    put_object(cache, pointer, &found, size);
    return EMX_OK;
}

emx_status heap_free(heap* heap, void* pointer) {
    cache* cache = cache_recent(heap);
    /* Entered before the lookup, so that poison that comes in between finds the object in the cache. */
    if (LIKELY(cache && cache_enter(cache))) {
        object found;
        const uint16_t size = find_freeable(heap, pointer, &found);
        if (LIKELY(size > 0 &&
                   cache->magazines[found.class].num_objects < cache->magazines[found.class].max_objects)) {
            put_object(cache, pointer, &found, size);
            return EMX_OK;
        }
        cache_leave(cache);
    }
    return free_object_or_run(heap, pointer);
}

/* ---- resizing ------------------------------------------------------------------------------------------ */

static void zero_range(const heap* heap, char* from, char* to) {
    if (heap->touchable && from < to) memset(from, 0, (size_t)(to - from));
}

static bool resize_object(heap* heap, const live_block* found, size_t size_bytes) {
    if (size_bytes > heap->classes[found->object.class].object_bytes) return false;
    cache* cache = cache_of(heap);
    counters* counters = cache ? &cache->counters : &heap->counters;
    if (cache) cache_enter_patiently(cache);
    else pthread_mutex_lock(&heap->lock);
    atomic_store_explicit(found->object.size, (uint16_t)size_bytes, memory_order_relaxed);
    count(&counters->allocated_bytes, size_bytes - found->block.size_bytes);
    if (cache) cache_leave(cache);
    else pthread_mutex_unlock(&heap->lock);
    char* base = found->block.base;
    zero_range(heap, base + found->block.size_bytes, base + size_bytes);
    return true;
}

static bool resize_run(heap* heap, const live_block* found, size_t size_bytes) {
    const size_t page = found->head, old_bytes = found->block.size_bytes;
    const size_t now = pages_of(old_bytes), wanted = pages_of(size_bytes);
    pthread_mutex_lock(&heap->lock);
    if (wanted < now) pages_shrink(heap, page, wanted);
    const bool done = wanted <= now || pages_extend(heap, page, wanted);
    if (done) {
        atomic_store_explicit(&heap->runs[page].size_bytes, size_bytes, memory_order_relaxed);
        count(&heap->counters.allocated_bytes, size_bytes - old_bytes);
    }
    pthread_mutex_unlock(&heap->lock);
    if (!done) return false;
    char* base = found->block.base;
    const size_t old_end = now * PAGE_BYTES;
    zero_range(heap, base + old_bytes, base + (size_bytes < old_end ? size_bytes : old_end));
    if (wanted > now) pages_zero(heap, page + now, wanted - now);
    return true;
}

bool heap_resize_in_place(heap* heap, void* pointer, size_t size_bytes) {
    live_block found;
    if (size_bytes == 0 || size_bytes > heap->capacity_bytes) return false;
    if (!find_live(heap, pointer, &found) || found.block.base != pointer) return false;
    return found.kind == RUN_BLOCK ? resize_run(heap, &found, size_bytes)
                                   : resize_object(heap, &found, size_bytes);
}
