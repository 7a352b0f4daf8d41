/* Slabs: runs cut into objects of one class, with everything that is known about the objects in a record
 * elsewhere. */
#include "fail.h"
#include "heap/internal.h"

static size_t round_up(size_t value, size_t step) { return (value + step - 1) / step * step; }

static uint32_t bytes_of_class(unsigned class) {
    if (class < 8) return (class + 1) * 16;
    return (8 + class % 8 + 1) << (class / 8 + 3);
}

/* The fewest pages that waste at most an eighth behind the last object. */
static uint16_t fewest_pages(uint32_t object_bytes) {
    uint32_t pages = 1;
    while (pages * PAGE_BYTES / object_bytes == 0 ||
           pages * PAGE_BYTES % object_bytes > pages * PAGE_BYTES / 8)
        ++pages;
    return (uint16_t)pages;
}

static void class_prepare(size_class* kind, uint32_t object_bytes) {
    kind->object_bytes = object_bytes;
    kind->reciprocal = (uint32_t)(((1ull << 32) + object_bytes - 1) / object_bytes);
    kind->first_slab_pages = kind->max_slab_pages = fewest_pages(object_bytes);
    while (kind->max_slab_pages * 2 <= MAX_SLAB_PAGES) kind->max_slab_pages *= 2;
    kind->max_objects = (uint16_t)(kind->max_slab_pages * PAGE_BYTES / object_bytes);
    kind->bitmap_words = (uint16_t)bits_words(kind->max_objects);
    kind->sizes_offset = (uint32_t)(sizeof(slab) + kind->bitmap_words * sizeof(bits_word[2]));
    kind->record_bytes = (uint32_t)round_up(
        kind->sizes_offset + (kind->max_objects + 1) * sizeof(object_size), RECORD_ALIGNMENT);
    const uint32_t fitting = MAX_CACHED_BYTES / object_bytes;
    kind->cached_objects = (uint16_t)(fitting < 4                    ? 4
                                      : fitting > MAX_CACHED_OBJECTS ? MAX_CACHED_OBJECTS
                                                                     : fitting);
}

void classes_prepare(heap* heap) {
    for (unsigned class = 0; class < NUM_CLASSES; ++class)
        class_prepare(&heap->classes[class], bytes_of_class(class));
}

/* ---- records ------------------------------------------------------------------------------------------- */

static bits_word* free_bits(slab* slab) { return slab->bitmaps; }
static bits_word* dirty_bits(const heap* heap, slab* slab) {
    return slab->bitmaps + heap->classes[slab->class].bitmap_words;
}
static uint32_t record_of(const heap* heap, const slab* slab) {
    return (uint32_t)(((const char*)slab - heap->records) / RECORD_ALIGNMENT);
}

static uint32_t record_take(heap* heap, unsigned class) {
    uint32_t record = heap->unused_records[class];
    if (record != NO_SLAB) {
        heap->unused_records[class] = slab_at(heap, record)->next;
        return record;
    }
    const uint64_t units = heap->classes[class].record_bytes / RECORD_ALIGNMENT;
    if (heap->used_records + units > heap->max_records) return NO_SLAB;
    record = (uint32_t)heap->used_records;
    heap->used_records += units;
    return record;
}

static void record_give(heap* heap, slab* slab) {
    slab->next = heap->unused_records[slab->class];
    heap->unused_records[slab->class] = record_of(heap, slab);
}

/* ---- slabs --------------------------------------------------------------------------------------------- */

static void list_insert(heap* heap, slab* slab) {
    uint32_t* first = &heap->usable_slabs[slab->class];
    slab->previous = NO_SLAB;
    slab->next = *first;
    *first = record_of(heap, slab);
    if (slab->next != NO_SLAB) slab_at(heap, slab->next)->previous = *first;
}

static void list_remove(heap* heap, slab* slab) {
    if (slab->next != NO_SLAB) slab_at(heap, slab->next)->previous = slab->previous;
    if (slab->previous != NO_SLAB) slab_at(heap, slab->previous)->next = slab->next;
    else heap->usable_slabs[slab->class] = slab->next;
}

/* As many pages as the class has come to, or as few as an object fits in when that is all there is. */
static emx_status slab_pages(heap* heap, unsigned class, size_t* page) {
    const size_class* kind = &heap->classes[class];
    const size_t least = pages_of(kind->object_bytes);
    size_t pages = kind->first_slab_pages;
    for (uint32_t made = heap->num_slabs[class]; made > 0 && pages * 2 <= kind->max_slab_pages; --made)
        pages *= 2;
    for (;; pages = pages / 2 > least ? pages / 2 : least) {
        const emx_status status = pages_alloc(heap, pages, 1, RUN_SLAB, page);
        if (status == EMX_OK || pages == least) return status;
    }
}

static void slab_fill_in(heap* heap, slab* slab, unsigned class, size_t page) {
    const size_class* kind = &heap->classes[class];
    const size_t num_pages = heap->runs[page].num_pages;
    const bool dirty = bits_find(heap->dirty, page, page + num_pages, true) < page + num_pages;
    slab->first_page = (uint32_t)page;
    slab->class = (uint16_t)class;
    slab->num_objects = slab->num_free = (uint16_t)(num_pages * PAGE_BYTES / kind->object_bytes);
    slab->num_retired = 0;
    /* The sizes are all 0 since the last slab here ended. */
    bits_fill(free_bits(slab), 0, kind->max_objects, false);
    bits_fill(free_bits(slab), 0, slab->num_objects, true);
    bits_fill(dirty_bits(heap, slab), 0, kind->max_objects, dirty);
}

static slab* slab_create(heap* heap, unsigned class, emx_status* status) {
    const uint32_t record = record_take(heap, class);
    if (record == NO_SLAB) {
        *status = fail(EMX_E_NO_MEMORY, "no room for another slab's record beside the %llu in use",
                       (unsigned long long)heap->used_records);
        return NULL;
    }
    slab* slab = slab_at(heap, record);
    size_t page;
    *status = slab_pages(heap, class, &page);
    slab->class = (uint16_t)class;
    if (*status != EMX_OK) {
        record_give(heap, slab);
        return NULL;
    }
    slab_fill_in(heap, slab, class, page);
    run_set_tag(heap, page, tag_of(RUN_SLAB, class, record));
    list_insert(heap, slab);
    heap->num_slabs[class]++;
    return slab;
}

/* ---- objects ------------------------------------------------------------------------------------------- */

static unsigned take_from(heap* heap, slab* slab, free_object* objects, unsigned most) {
    const size_class* kind = &heap->classes[slab->class];
    const bits_word* dirty = dirty_bits(heap, slab);
    object_size* sizes = slab_sizes(heap, slab->class, record_of(heap, slab));
    const uintptr_t base = (uintptr_t)page_address(heap, slab->first_page);
    unsigned taken = 0;
    for (unsigned word = 0; taken < most && slab->num_free > 0; ++word) {
        uint64_t free = bits_load(&free_bits(slab)[word]);
        for (; free && taken < most; free &= free - 1, --slab->num_free) {
            const size_t index = word * 64 + bits_lowest(free);
            objects[taken++] =
                (free_object){(base + index * kind->object_bytes) | bits_test(dirty, index), &sizes[index]};
        }
        bits_store(&free_bits(slab)[word], free);
    }
    if (slab->num_free == 0) list_remove(heap, slab);
    return taken;
}

unsigned slab_take(heap* heap, unsigned class, free_object* objects, unsigned most, emx_status* status) {
    unsigned taken = 0;
    *status = EMX_OK;
    while (taken < most) {
        const uint32_t record = heap->usable_slabs[class];
        slab* slab = record != NO_SLAB ? slab_at(heap, record) : NULL;
        if (!slab && taken > 0) break; /* no new pages as long as there is anything */
        if (!slab) slab = slab_create(heap, class, status);
        if (!slab) break;
        taken += take_from(heap, slab, objects + taken, most - taken);
    }
    return taken;
}

/* The pages that an object touches: [*first, *end). */
static void pages_under(const heap* heap, const slab* slab, size_t index, size_t* first, size_t* end) {
    const size_t bytes = heap->classes[slab->class].object_bytes,
                 base = (size_t)slab->first_page << PAGE_SHIFT;
    *first = (base + index * bytes) >> PAGE_SHIFT;
    *end = ((base + (index + 1) * bytes - 1) >> PAGE_SHIFT) + 1;
}

static bool is_poisoned(const heap* heap, const slab* slab, size_t index) {
    size_t first, end;
    pages_under(heap, slab, index, &first, &end);
    return poison_find_page(heap, first, end) < end;
}

static void end_if_unused(heap* heap, slab* slab) {
    if (slab->num_free + slab->num_retired < slab->num_objects) return;
    if (slab->num_free > 0) list_remove(heap, slab);
    heap->num_slabs[slab->class]--;
    pages_free(heap, slab->first_page);
    record_give(heap, slab);
}

void slab_give(heap* heap, free_object object) {
    const size_t offset = offset_in(heap, free_object_address(object)),
                 head = head_of(heap, offset >> PAGE_SHIFT);
    const uint64_t tag = run_tag(heap, head);
    slab* slab = slab_at(heap, tag_record(tag));
    const size_t index = (size_t)(object.size - slab_sizes(heap, slab->class, tag_record(tag)));
    if (tag_kind(tag) == RUN_SLAB_POISONED && is_poisoned(heap, slab, index)) {
        slab->num_retired++;
    } else {
        bits_put(free_bits(slab), index, true);
        bits_put(dirty_bits(heap, slab), index, object.address_and_dirty & 1);
        if (slab->num_free++ == 0) list_insert(heap, slab);
    }
    end_if_unused(heap, slab);
}

void slab_retire_page(heap* heap, size_t head, size_t page) {
    const uint64_t tag = run_tag(heap, head);
    slab* slab = slab_at(heap, tag_record(tag));
    run_set_tag(heap, head, tag_of(RUN_SLAB_POISONED, slab->class, tag_record(tag)));
    const bool was_usable = slab->num_free > 0;
    for (size_t index = 0; was_usable && index < slab->num_objects; ++index) {
        size_t first, end;
        pages_under(heap, slab, index, &first, &end);
        if (first > page || end <= page || !bits_test(free_bits(slab), index)) continue;
        bits_put(free_bits(slab), index, false);
        slab->num_retired++;
        slab->num_free--;
    }
    if (was_usable && slab->num_free == 0) list_remove(heap, slab);
    end_if_unused(heap, slab);
}
