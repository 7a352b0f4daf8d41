/* Inside the heap. Three layers, each of which knows only the one below:
 *
 *   caches   heap/cache.c   blocks at hand, per thread and class: no lock, no atomic read-modify-write
 *   slabs    heap/slab.c    runs cut into blocks of one class
 *   pages    heap/pages.c   runs of pages, which tile the range
 *
 * and beside them poison (heap/poison.c), the checks (heap/check.c) and what all heaps share
 * (heap/registry.c).
 *
 * Thread safety: `lock` guards all that is not marked otherwise. Lookups (head_of, object_at) take no lock:
 * what they read are atomics, and memory that stays mapped as long as the heap lives. For a block that stays
 * live meanwhile the answer is exact, since nothing on the way to it changes; for any other address it is
 * "no", or what it was a moment ago.
 *
 * Lock order: registry, then caches stopped, then a heap's lock.
 *
 * Invariants
 *   1. Runs tile [0, num_pages): the bit in `starts` is set at each run's first page and nowhere else.
 *   2. No two free runs touch.
 *   3. A free run's pages that have no bit in `dirty` read as zero, once committed.
 *   4. An object is live (its size is not 0), or free in its slab, or held by exactly one cache, or retired.
 */
#ifndef EMX_HEAP_INTERNAL_H
#define EMX_HEAP_INTERNAL_H

#include <pthread.h>
#include <stdalign.h>

#include "heap/bits.h"
#include "heap/heap.h"

#define LIKELY(condition) __builtin_expect(!!(condition), 1)
#define UNLIKELY(condition) __builtin_expect(!!(condition), 0)

enum {
    PAGE_SHIFT = 12,
    PAGE_BYTES = 1 << PAGE_SHIFT,
    LINE_BYTES = 64,    /* of poison */
    EXTENT_PAGES = 512, /* 2 MiB: a huge page, and the step of commits */
    MIN_ALIGNMENT = 16,
    MAX_ALIGNMENT = 2 << 20,
    NUM_BINS = 480,   /* free runs by length: 16 to each power of two */
    NUM_CLASSES = 72, /* of objects by size: by 16 bytes up to 128, then 8 to each power of two */
    MAX_OBJECT_BYTES =
        32768,             /* larger ones are runs of their own: 8 pages, so that rounding up wastes little */
    MAX_SLAB_PAGES = 16,   /* two of the largest objects */
    RECORD_ALIGNMENT = 64, /* a cache line: no two records share one */
    MAX_CACHED_OBJECTS = 128, /* of one class, in one cache */
    MAX_CACHED_BYTES = 65536, /* the same, in bytes; but 4 objects in any case */
};

#define NO_PAGE UINT32_MAX
#define NO_SLAB 0u /* record 0 is never used */

/* ---- pages --------------------------------------------------------------------------------------------- */

typedef enum run_kind {
    RUN_NONE = 0, /* no run starts here */
    RUN_FREE,
    RUN_BLOCK,         /* one block */
    RUN_SLAB,          /* objects of one class */
    RUN_SLAB_POISONED, /* the same, with poison in it: its objects take the slow way */
    RUN_RETIRED,       /* one page with poison, which nobody gets any more */
} run_kind;

/* Describes the run that starts at the page of the same index. */
typedef struct run {
    _Atomic uint64_t tag; /* run_kind; of slabs also the class (bits 8-15) and the record (bits 32-63) */
    _Atomic uint64_t size_bytes; /* RUN_BLOCK: as asked for */
    uint32_t num_pages;
    uint32_t next, previous; /* RUN_FREE: in its bin, or NO_PAGE */
    uint32_t unused;
} run;

static inline run_kind tag_kind(uint64_t tag) { return (run_kind)(tag & 0xff); }
static inline unsigned tag_class(uint64_t tag) { return tag >> 8 & 0xff; }
static inline uint32_t tag_record(uint64_t tag) { return (uint32_t)(tag >> 32); }
static inline uint64_t tag_of(run_kind kind, unsigned class, uint32_t record) {
    return (uint64_t)record << 32 | class << 8 | kind;
}

/* ---- slabs --------------------------------------------------------------------------------------------- */

typedef _Atomic uint16_t object_size; /* as asked for; 0: not live */

typedef struct size_class {
    alignas(32) uint32_t object_bytes;
    uint32_t reciprocal;   /* offset * reciprocal >> 32 is offset / object_bytes, for offsets within a slab */
    uint32_t sizes_offset; /* of the object sizes in a record */
    uint32_t record_bytes;
    uint16_t max_objects; /* of the largest slab */
    uint16_t bitmap_words;
    uint16_t first_slab_pages; /* slabs of a class double from there on, so that little use reserves little */
    uint16_t max_slab_pages;
    uint16_t cached_objects; /* most that one cache holds */
} size_class;

/* The record of a slab. Records are only ever reused for slabs of the same class, so that a lookup that comes
 * too late still reads a record of that class. Behind it: the bitmaps `free` and `dirty`, then the sizes, and
 * one size more that is always 0, for the end of a slab that no object fits in. */
typedef struct slab {
    uint32_t first_page;
    uint16_t num_objects, num_free, num_retired;
    uint16_t class;
    uint32_t next, previous; /* among those of its class with free objects; `next` links unused records too */
    uint32_t checked;        /* scratch of heap_check */
    alignas(RECORD_ALIGNMENT) bits_word bitmaps[];
} slab;

/* A free object in the hands of a cache. The lowest bit of the address says that it must be zeroed. */
typedef struct free_object {
    uintptr_t address_and_dirty;
    object_size* size;
} free_object;

static inline char* free_object_address(free_object object) {
    return (char*)(object.address_and_dirty & ~(uintptr_t)1);
}

/* ---- caches -------------------------------------------------------------------------------------------- */

typedef struct counters {
    /* Written by one thread at a time. Differences may wrap: the sum over all caches is right. */
    _Atomic uint64_t allocated_bytes, num_allocated, num_freed;
} counters;

static inline void count(_Atomic uint64_t* counter, uint64_t difference) {
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + difference,
                          memory_order_relaxed);
}

static inline void add_counters(heap_stats* stats, const counters* counters) {
    const uint64_t allocated = atomic_load_explicit(&counters->num_allocated, memory_order_relaxed);
    stats->allocated_bytes += atomic_load_explicit(&counters->allocated_bytes, memory_order_relaxed);
    stats->total_allocations += allocated;
    stats->num_allocations += allocated - atomic_load_explicit(&counters->num_freed, memory_order_relaxed);
}

typedef struct magazine {
    uint32_t num_objects, max_objects;
    free_object* objects; /* a stack: the last freed is the first given */
} magazine;

/* The free objects that one thread holds of one heap. The owner enters and leaves with plain stores; another
 * thread that stops it pays for a barrier on every processor (heap/cache.h). */
typedef struct cache {
    _Atomic uint32_t inside;  /* the owner is using it */
    _Atomic uint32_t stopped; /* another thread is using it; the owner waits */
    counters counters;
    uint64_t thread;
    struct cache* next; /* of the same heap; guarded by the registry */
    magazine magazines[NUM_CLASSES];
    free_object objects[];
} cache;

/* ---- the heap ------------------------------------------------------------------------------------------ */

struct heap {
    /* Fixed once made. */
    char* base;
    size_t capacity_bytes, num_pages;
    uint64_t id; /* never used again, so that a thread's memory of a heap that is gone finds nothing */
    run* runs;   /* one more than there are pages, so that a run has a successor */
    char* records;
    bitmap starts; /* its bits: under the lock, read without */
    pages* pages;
    bool touchable; /* as pages->touchable, at hand for every allocation */
    void* metadata;
    size_t metadata_bytes;
    uint64_t max_records; /* all in units of RECORD_ALIGNMENT */
    size_class classes[NUM_CLASSES];

    alignas(64) pthread_mutex_t lock;
    uint64_t bin_bits[(NUM_BINS + 63) / 64];
    uint32_t bins[NUM_BINS];
    bits_word* dirty; /* per page; means something while the page is free, or handed out but not zeroed yet */
    bits_word* committed; /* per page */
    size_t reserved_pages, peak_reserved_pages, retired_pages;
    uint64_t used_records;
    uint32_t usable_slabs[NUM_CLASSES]; /* the first with free objects */
    uint32_t unused_records[NUM_CLASSES];
    uint32_t num_slabs[NUM_CLASSES];
    counters counters; /* of what goes past the caches, and of threads that ended */

    /* Poison: per line, mapped when the first is reported. */
    _Atomic uint64_t poisoned_pages;
    bitmap poison;
    void* poison_memory;
    size_t poison_memory_bytes;

    /* Guarded by the registry. */
    cache* caches;
    struct heap *next, **link;
};

static inline size_t pages_of(size_t size_bytes) {
    return size_bytes / PAGE_BYTES + (size_bytes % PAGE_BYTES != 0);
}
static inline uint64_t run_tag(const heap* heap, size_t page) {
    return atomic_load_explicit(&heap->runs[page].tag, memory_order_relaxed);
}
static inline void run_set_tag(heap* heap, size_t page, uint64_t tag) {
    atomic_store_explicit(&heap->runs[page].tag, tag, memory_order_relaxed);
}
static inline char* page_address(const heap* heap, size_t page) { return heap->base + (page << PAGE_SHIFT); }
/* Of any address; what is not in the heap is beyond its capacity. */
static inline size_t offset_in(const heap* heap, const void* address) {
    return (size_t)((uintptr_t)address - (uintptr_t)heap->base);
}
/* The first page of the run that `page` belongs to. */
static inline size_t head_of(const heap* heap, size_t page) { return bitmap_previous(&heap->starts, page); }

/* heap/pages.c. The lock is held; a failure leaves everything as it was and, if it is EMX_E_TIER_FULL, no
 * detail. */
void pages_prepare(heap* heap);
emx_status pages_alloc(heap* heap, size_t num_pages, size_t alignment_pages, run_kind kind, size_t* page);
void pages_free(heap* heap, size_t page);
bool pages_extend(heap* heap, size_t page, size_t num_pages);
void pages_shrink(heap* heap, size_t page, size_t num_pages);
void pages_retire_free(heap* heap, size_t page); /* a page of a free run */
emx_status pages_trim(heap* heap);
unsigned bin_of(size_t num_pages); /* of a free run */

/* Zeroes what is dirty. Needs no lock: the pages are handed out, and not yet known to anybody. */
void pages_zero(const heap* heap, size_t page, size_t num_pages);

/* heap/slab.c. The lock is held. */
void classes_prepare(heap* heap);
static inline slab* slab_at(const heap* heap, uint32_t record) {
    return (slab*)(heap->records + (size_t)record * RECORD_ALIGNMENT);
}
static inline object_size* slab_sizes(const heap* heap, unsigned class, uint32_t record) {
    return (object_size*)(heap->records + (size_t)record * RECORD_ALIGNMENT +
                          heap->classes[class].sizes_offset);
}
/* Up to `most` free objects. None: *status says why (EMX_E_TIER_FULL without a detail). */
unsigned slab_take(heap* heap, unsigned class, free_object* objects, unsigned most, emx_status* status);
void slab_give(heap* heap, free_object object);
void slab_retire_page(heap* heap, size_t head, size_t page); /* of a slab whose objects no cache holds */

/* The smallest class of at least `size_bytes`, 1 to MAX_OBJECT_BYTES. */
static inline unsigned class_of(size_t size_bytes) {
    if (size_bytes <= 128) return (unsigned)((size_bytes - 1) / 16);
    const unsigned top = 63u - (unsigned)__builtin_clzll(size_bytes - 1);
    return (top - 6) * 8 + (unsigned)((size_bytes - 1) >> (top - 3) & 7);
}

typedef struct object {
    unsigned class;
    uint32_t index, offset; /* of the address, from the start of the object */
    object_size* size;
} object;

/* The object, live or not, that an address in a slab falls into. */
static inline bool object_in(const heap* heap, size_t offset, size_t head, uint64_t tag, object* found) {
    const unsigned class = tag_class(tag);
    const size_class* kind = &heap->classes[class];
    const uint64_t within = offset - (head << PAGE_SHIFT), index = within * kind->reciprocal >> 32;
    if (UNLIKELY(index > kind->max_objects))
        return false; /* only ever of a tag that changes under our eyes */
    *found = (object){class, (uint32_t)index, (uint32_t)(within - index * kind->object_bytes),
                      slab_sizes(heap, class, tag_record(tag)) + index};
    return true;
}

/* heap/poison.c. Any pages of the range with poison? */
size_t poison_find_page(const heap* heap, size_t from, size_t to); /* the first such page, or `to` */

#endif
