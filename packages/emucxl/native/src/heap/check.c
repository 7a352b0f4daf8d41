/* Every invariant of a heap at rest. Slow, and allocates: for tests.
 *
 * Everything is counted on its own and compared with what the heap believes; the first contradiction is told.
 */
#include <stdlib.h>

#include "fail.h"
#include "heap/cache.h"

typedef struct survey {
    heap* heap;
    emx_status status; /* of the first contradiction */
    size_t free_runs, free_pages, reserved_pages, retired_pages, poisoned_pages;
    size_t live_blocks, live_bytes, slabs[NUM_CLASSES], usable_slabs;
} survey;

#define EXPECT(survey, condition, ...)                                                                       \
    do {                                                                                                     \
        if ((survey)->status == EMX_OK && !(condition)) (survey)->status = fail(EMX_E_CORRUPT, __VA_ARGS__); \
    } while (0)

/* ---- slabs --------------------------------------------------------------------------------------------- */

static bool is_object_free(const slab* slab, size_t index) { return bits_test(slab->bitmaps, index); }

static void check_objects(survey* survey, size_t page, slab* slab, size_t* num_free, size_t* num_live) {
    const heap* heap = survey->heap;
    const size_class* kind = &heap->classes[slab->class];
    const object_size* sizes = slab_sizes(heap, slab->class, tag_record(run_tag(heap, page)));
    *num_free = *num_live = 0;
    for (size_t index = 0; index <= kind->max_objects; ++index) {
        const uint16_t size = atomic_load_explicit(&sizes[index], memory_order_relaxed);
        const bool is_free = index < kind->max_objects && is_object_free(slab, index);
        EXPECT(survey, size <= kind->object_bytes, "slab at page %zu: object %zu has %u bytes", page, index,
               size);
        EXPECT(survey, !is_free || size == 0, "slab at page %zu: object %zu is free, and has %u bytes", page,
               index, size);
        EXPECT(survey, index < slab->num_objects || (!is_free && size == 0),
               "slab at page %zu: object %zu is none of its %u", page, index, slab->num_objects);
        *num_free += is_free;
        *num_live += size > 0;
        survey->live_bytes += size;
    }
}

/* Checks the record of a slab against its objects. */
static void check_slab(survey* survey, size_t page, uint64_t tag) {
    heap* heap = survey->heap;
    const unsigned class = tag_class(tag);
    EXPECT(survey, class < NUM_CLASSES && tag_record(tag) > 0 && tag_record(tag) < heap->used_records,
           "slab at page %zu: class %u, record %u", page, class, tag_record(tag));
    if (survey->status != EMX_OK) return;
    slab* slab = slab_at(heap, tag_record(tag));
    const size_class* kind = &heap->classes[class];
    EXPECT(survey, slab->first_page == page && slab->class == class,
           "slab at page %zu: its record says page %u, class %u", page, slab->first_page, slab->class);
    if (survey->status != EMX_OK) return;
    EXPECT(survey, slab->num_objects == heap->runs[page].num_pages * PAGE_BYTES / kind->object_bytes,
           "slab at page %zu: %u objects of %u bytes in %u pages", page, slab->num_objects,
           kind->object_bytes, heap->runs[page].num_pages);
    size_t num_free, num_live;
    check_objects(survey, page, slab, &num_free, &num_live);
    EXPECT(survey, num_free == slab->num_free, "slab at page %zu: %zu objects free, believes %u", page,
           num_free, slab->num_free);
    EXPECT(survey, slab->num_retired == 0 || tag_kind(tag) == RUN_SLAB_POISONED,
           "slab at page %zu: %u objects retired without poison", page, slab->num_retired);
    EXPECT(survey, num_free + num_live + slab->num_retired <= slab->num_objects,
           "slab at page %zu: %zu free, %zu live, %u retired of %u objects", page, num_free, num_live,
           slab->num_retired, slab->num_objects);
    EXPECT(survey, num_free + slab->num_retired < slab->num_objects,
           "slab at page %zu has nothing live, and still exists", page);
    slab->checked = (uint32_t)(slab->num_objects - num_free - num_live - slab->num_retired);
    survey->live_blocks += num_live;
    survey->slabs[class]++;
    survey->usable_slabs += num_free > 0;
}

static void check_slab_lists(survey* survey) {
    heap* heap = survey->heap;
    for (unsigned class = 0; class < NUM_CLASSES; ++class) {
        EXPECT(survey, survey->slabs[class] == heap->num_slabs[class], "class %u: %zu slabs, believes %u",
               class, survey->slabs[class], heap->num_slabs[class]);
        uint32_t previous = NO_SLAB;
        for (uint32_t record = heap->usable_slabs[class]; record != NO_SLAB && survey->status == EMX_OK;) {
            const slab* slab = slab_at(heap, record);
            const uint64_t tag = run_tag(heap, slab->first_page);
            EXPECT(survey,
                   slab->class == class && slab->num_free > 0 && tag_record(tag) == record &&
                       slab->previous == previous,
                   "class %u: record %u is wrongly in the list of usable slabs", class, record);
            EXPECT(survey, survey->usable_slabs-- > 0, "class %u: the list of usable slabs is too long",
                   class);
            previous = record;
            record = slab->next;
        }
    }
    EXPECT(survey, survey->usable_slabs == 0, "%zu usable slabs are in no list", survey->usable_slabs);
}

/* ---- runs ---------------------------------------------------------------------------------------------- */

static void check_free_run(survey* survey, size_t page, bool after_free) {
    heap* heap = survey->heap;
    const size_t end = page + heap->runs[page].num_pages;
    EXPECT(survey, !after_free, "the free runs at and before page %zu touch", page);
    EXPECT(survey, poison_find_page(heap, page, end) == end, "the free run at page %zu has poison", page);
    /* Else what never was is dirty too. */
    const bool dirty_was_used = heap->pages->provider->commit && heap->pages->fresh_is_zero;
    for (size_t at = page; dirty_was_used && (at = bits_find(heap->dirty, at, end, true)) < end; ++at)
        EXPECT(survey, bits_test(heap->committed, at), "page %zu is dirty, and not committed", at);
    survey->free_runs++;
    survey->free_pages += end - page;
}

static void check_block(survey* survey, size_t page) {
    heap* heap = survey->heap;
    const uint64_t size_bytes = atomic_load_explicit(&heap->runs[page].size_bytes, memory_order_relaxed);
    EXPECT(survey, size_bytes > 0 && pages_of(size_bytes) == heap->runs[page].num_pages,
           "block at page %zu: %llu bytes in %u pages", page, (unsigned long long)size_bytes,
           heap->runs[page].num_pages);
    survey->live_blocks++;
    survey->live_bytes += size_bytes;
}

static void check_run(survey* survey, size_t page, run_kind kind, bool after_free) {
    heap* heap = survey->heap;
    const size_t num_pages = heap->runs[page].num_pages, end = page + num_pages;
    if (kind == RUN_FREE) {
        check_free_run(survey, page, after_free);
        return;
    }
    if (kind == RUN_RETIRED) {
        EXPECT(survey, num_pages == 1 && poison_find_page(heap, page, end) == page,
               "page %zu is retired without poison", page);
        survey->retired_pages++;
        return;
    }
    EXPECT(survey, !heap->pages->provider->commit || bits_find(heap->committed, page, end, false) == end,
           "the run at page %zu is in use, and not all committed", page);
    survey->reserved_pages += num_pages;
    if (kind == RUN_BLOCK) check_block(survey, page);
    else check_slab(survey, page, run_tag(heap, page));
}

static void check_runs(survey* survey) {
    heap* heap = survey->heap;
    bool after_free = false;
    for (size_t page = 0; page < heap->num_pages && survey->status == EMX_OK;) {
        const run_kind kind = tag_kind(run_tag(heap, page));
        const size_t num_pages = heap->runs[page].num_pages, next = bitmap_next(&heap->starts, page + 1);
        EXPECT(survey, kind > RUN_NONE && kind <= RUN_RETIRED, "the run at page %zu is of kind %d", page,
               (int)kind);
        EXPECT(survey, bitmap_previous(&heap->starts, page) == page, "no run starts at page %zu", page);
        EXPECT(survey, num_pages > 0 && (next == BITS_NONE ? heap->num_pages : next) == page + num_pages,
               "the run at page %zu has %zu pages, and the next starts at %zu", page, num_pages, next);
        if (survey->status == EMX_OK) check_run(survey, page, kind, after_free);
        after_free = kind == RUN_FREE;
        page += num_pages;
    }
    EXPECT(survey, bitmap_is_sound(&heap->starts), "the summaries of run starts are wrong");
}

static void check_bins(survey* survey) {
    heap* heap = survey->heap;
    for (unsigned bin = 0; bin < NUM_BINS; ++bin) {
        if (!(heap->bin_bits[bin / 64] >> bin % 64 & 1)) continue;
        uint32_t previous = NO_PAGE;
        for (uint32_t page = heap->bins[bin]; page != NO_PAGE && survey->status == EMX_OK;
             page = heap->runs[page].next) {
            const run* run = &heap->runs[page];
            EXPECT(survey,
                   tag_kind(run_tag(heap, page)) == RUN_FREE && bin_of(run->num_pages) == bin &&
                       run->previous == previous,
                   "page %u is wrongly in bin %u", page, bin);
            EXPECT(survey, survey->free_runs-- > 0, "bin %u is too long", bin);
            previous = page;
        }
    }
    EXPECT(survey, survey->free_runs == 0, "%zu free runs are in no bin", survey->free_runs);
}

/* ---- caches -------------------------------------------------------------------------------------------- */

static int compare_addresses(const void* left, const void* right) {
    const uintptr_t a = *(const uintptr_t*)left, b = *(const uintptr_t*)right;
    return (a > b) - (a < b);
}

static void check_cached(survey* survey, const free_object* cached, unsigned class) {
    heap* heap = survey->heap;
    const char* address = free_object_address(*cached);
    const size_t offset = offset_in(heap, address), head = head_of(heap, offset >> PAGE_SHIFT);
    const uint64_t tag = run_tag(heap, head);
    object object;
    const bool found =
        tag_class(tag) == class && (tag_kind(tag) == RUN_SLAB || tag_kind(tag) == RUN_SLAB_POISONED) &&
        object_in(heap, offset, head, tag, &object) && object.offset == 0 && object.size == cached->size;
    EXPECT(survey, found, "a cache holds %p, which is no object of class %u", (const void*)address, class);
    if (!found) return;
    slab* slab = slab_at(heap, tag_record(tag));
    EXPECT(
        survey,
        atomic_load_explicit(object.size, memory_order_relaxed) == 0 && !is_object_free(slab, object.index),
        "a cache holds %p, which is live or free as well", (const void*)address);
    EXPECT(survey, slab->checked-- > 0, "caches hold more of the slab at page %zu than it gave", head);
}

static void check_magazine(survey* survey, const magazine* magazine, unsigned class, uintptr_t* addresses,
                           size_t* count) {
    EXPECT(survey, magazine->num_objects <= magazine->max_objects, "a magazine of class %u holds %u objects",
           class, magazine->num_objects);
    for (uint32_t i = 0; i < magazine->num_objects && survey->status == EMX_OK; ++i) {
        check_cached(survey, &magazine->objects[i], class);
        addresses[(*count)++] = (uintptr_t)free_object_address(magazine->objects[i]);
    }
}

static void check_caches(survey* survey) {
    size_t most = 1, count = 0;
    for (const cache* cache = survey->heap->caches; cache; cache = cache->next)
        for (unsigned class = 0; class < NUM_CLASSES; ++class) most += cache->magazines[class].num_objects;
    uintptr_t* addresses = malloc(most * sizeof *addresses);
    if (!addresses) {
        survey->status = fail(EMX_E_NO_MEMORY, "no memory to check %zu cached objects with", most);
        return;
    }
    for (const cache* cache = survey->heap->caches; cache; cache = cache->next)
        for (unsigned class = 0; class < NUM_CLASSES; ++class)
            check_magazine(survey, &cache->magazines[class], class, addresses, &count);
    qsort(addresses, count, sizeof *addresses, compare_addresses);
    for (size_t i = 1; i < count; ++i)
        EXPECT(survey, addresses[i - 1] != addresses[i], "caches hold %p twice", (void*)addresses[i]);
    free(addresses);
}

/* An object that is neither live, free nor retired must be in a cache. */
static void check_nothing_lost(survey* survey) {
    heap* heap = survey->heap;
    for (size_t page = 0; page < heap->num_pages && survey->status == EMX_OK;
         page += heap->runs[page].num_pages) {
        const uint64_t tag = run_tag(heap, page);
        if (tag_kind(tag) != RUN_SLAB && tag_kind(tag) != RUN_SLAB_POISONED) continue;
        EXPECT(survey, slab_at(heap, tag_record(tag))->checked == 0,
               "%u objects of the slab at page %zu are lost", slab_at(heap, tag_record(tag))->checked, page);
    }
}

/* ---- sums ---------------------------------------------------------------------------------------------- */

static void check_poison(survey* survey) {
    const heap* heap = survey->heap;
    for (size_t page = 0; (page = poison_find_page(heap, page, heap->num_pages)) < heap->num_pages; ++page)
        survey->poisoned_pages++;
    EXPECT(survey, survey->poisoned_pages == heap->poisoned_pages, "%zu pages have poison, believes %llu",
           survey->poisoned_pages, (unsigned long long)heap->poisoned_pages);
    EXPECT(survey, survey->poisoned_pages == 0 || bitmap_is_sound(&heap->poison),
           "the summaries of poison are wrong");
}

static void check_sums(survey* survey) {
    const heap* heap = survey->heap;
    heap_stats stats = {0};
    add_counters(&stats, &heap->counters);
    for (const cache* cache = heap->caches; cache; cache = cache->next)
        add_counters(&stats, &cache->counters);
    EXPECT(survey, survey->reserved_pages == heap->reserved_pages, "%zu pages are reserved, believes %zu",
           survey->reserved_pages, heap->reserved_pages);
    EXPECT(survey, survey->retired_pages == heap->retired_pages, "%zu pages are retired, believes %zu",
           survey->retired_pages, heap->retired_pages);
    EXPECT(survey,
           survey->live_blocks == stats.num_allocations && survey->live_bytes == stats.allocated_bytes,
           "%zu blocks of %zu bytes are live, believes %llu of %llu", survey->live_blocks, survey->live_bytes,
           (unsigned long long)stats.num_allocations, (unsigned long long)stats.allocated_bytes);
}

emx_status heap_check(heap* heap) {
    survey survey = {.heap = heap};
    void (*const checks[])(struct survey*) = {
        check_runs, check_bins, check_slab_lists, check_caches, check_nothing_lost, check_poison, check_sums};
    caches_stop(heap);
    pthread_mutex_lock(&heap->lock);
    for (size_t i = 0; i < sizeof checks / sizeof checks[0] && survey.status == EMX_OK; ++i)
        checks[i](&survey);
    pthread_mutex_unlock(&heap->lock);
    caches_resume(heap);
    return survey.status;
}
