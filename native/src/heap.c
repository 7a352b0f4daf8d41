/* The heap, in its simplest form: live blocks in an array sorted by address, first fit between them, one lock. */
#include "heap.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "fail.h"

enum { PAGE = 4096, EXTENT = 2 << 20, GRAIN = 16 };

typedef struct entry {
  size_t offset, size, span; /* span: taken from the capacity */
} entry;

struct heap {
  pthread_mutex_t lock;
  char *base;
  size_t capacity;
  heap_source source;
  entry *entries;
  size_t num_entries, max_entries;
  unsigned char *committed, *poisoned; /* per extent, per line */
  _Atomic uint64_t poisoned_bytes;
  heap_stats stats;
};

emx_status heap_create(void *base, size_t capacity, const heap_source *source, heap **created) {
  heap *h = calloc(1, sizeof *h);
  if (!h) return fail(EMX_E_NO_MEMORY, "no memory for the heap's metadata");
  h->base = base, h->capacity = capacity, h->source = *source;
  h->committed = calloc(capacity / EXTENT + 1, 1);
  pthread_mutex_init(&h->lock, NULL);
  *created = h;
  return EMX_OK;
}

void heap_destroy(heap *h) {
  if (!h) return;
  pthread_mutex_destroy(&h->lock);
  free(h->entries), free(h->committed), free(h->poisoned), free(h);
}

static size_t up(size_t n, size_t a) { return (n + a - 1) / a * a; }

/* The first entry at or after `offset`. */
static size_t position(const heap *h, size_t offset) {
  size_t low = 0, high = h->num_entries;
  while (low < high) {
    size_t middle = (low + high) / 2;
    if (h->entries[middle].offset < offset) low = middle + 1; else high = middle;
  }
  return low;
}

static bool bad_range(const heap *h, size_t start, size_t end) {
  if (!h->poisoned) return false;
  for (size_t line = start / 64; line * 64 < end; ++line) if (h->poisoned[line]) return true;
  return false;
}

static bool bad_pages(const heap *h, size_t start, size_t end) {
  return bad_range(h, start / PAGE * PAGE, up(end, PAGE));
}

static size_t fit(const heap *h, size_t span, size_t alignment, size_t *index) {
  size_t start = 0;
  for (size_t i = 0;; ++i) {
    size_t limit = i < h->num_entries ? h->entries[i].offset : h->capacity;
    for (size_t at = up(start, alignment); at + span <= limit; at += alignment < PAGE ? PAGE : alignment)
      if (!bad_pages(h, at, at + span)) { *index = i; return at; }
    if (i == h->num_entries) return SIZE_MAX;
    start = h->entries[i].offset + h->entries[i].span;
  }
}

static emx_status commit(heap *h, size_t start, size_t end) {
  for (size_t extent = start / EXTENT; extent * EXTENT < end; ++extent) {
    if (h->committed[extent]) continue;
    size_t offset = extent * EXTENT, size = h->capacity - offset < EXTENT ? h->capacity - offset : EXTENT;
    if (h->source.commit) {
      emx_status status = h->source.commit(h->source.state, offset, size);
      if (status) return status;
    }
    h->committed[extent] = 1;
  }
  return EMX_OK;
}

static emx_status alloc_locked(heap *h, size_t size, size_t alignment, void **pointer) {
  size_t index, span = up(size, GRAIN), at = fit(h, span, alignment, &index);
  if (at == SIZE_MAX)
    return fail(EMX_E_TIER_FULL, "asked for %zu bytes; %llu of %zu are reserved; free some, or make the tier larger",
                size, (unsigned long long)h->stats.reserved_bytes, h->capacity);
  if (h->num_entries == h->max_entries) {
    size_t max = h->max_entries ? 2 * h->max_entries : 64;
    entry *grown = realloc(h->entries, max * sizeof *grown);
    if (!grown) return fail(EMX_E_NO_MEMORY, "no memory for the heap's metadata");
    h->entries = grown, h->max_entries = max;
  }
  emx_status status = commit(h, at, at + span);
  if (status) return status;
  memmove(h->entries + index + 1, h->entries + index, (h->num_entries - index) * sizeof(entry));
  h->entries[index] = (entry){at, size, span};
  h->num_entries++;
  if (h->source.touchable) memset(h->base + at, 0, span);
  h->stats.allocated_bytes += size, h->stats.reserved_bytes += span;
  h->stats.num_allocations++, h->stats.total_allocations++;
  if (h->stats.peak_reserved_bytes < h->stats.reserved_bytes) h->stats.peak_reserved_bytes = h->stats.reserved_bytes;
  *pointer = h->base + at;
  return EMX_OK;
}

emx_status heap_alloc(heap *h, size_t size, size_t alignment, void **pointer) {
  if (!size) return fail(EMX_E_INVALID, "got size 0; expected at least 1 byte");
  if (alignment < GRAIN && (alignment & (alignment - 1)) == 0) alignment = GRAIN;
  if ((alignment & (alignment - 1)) || alignment > EXTENT)
    return fail(EMX_E_INVALID, "got alignment %zu; expected a power of two up to 2 MiB", alignment);
  if (size > h->capacity)
    return fail(EMX_E_TIER_FULL, "asked for %zu bytes; the tier has a capacity of %zu", size, h->capacity);
  pthread_mutex_lock(&h->lock);
  emx_status status = alloc_locked(h, size, alignment, pointer);
  pthread_mutex_unlock(&h->lock);
  return status;
}

static entry *find(const heap *h, const void *pointer) {
  size_t offset = (size_t)((uintptr_t)pointer - (uintptr_t)h->base);
  if (offset >= h->capacity) return NULL;
  size_t index = position(h, offset + 1);
  if (!index) return NULL;
  entry *e = &h->entries[index - 1];
  return offset < e->offset + e->size ? e : NULL;
}

emx_status heap_free(heap *h, void *pointer) {
  pthread_mutex_lock(&h->lock);
  entry *e = find(h, pointer);
  emx_status status = EMX_OK;
  if (!e || h->base + e->offset != (char *)pointer) {
    status = fail(EMX_E_BAD_POINTER, "%p is not the start of a live allocation", pointer);
  } else {
    h->stats.allocated_bytes -= e->size, h->stats.reserved_bytes -= e->span, h->stats.num_allocations--;
    memmove(e, e + 1, (size_t)(h->entries + h->num_entries - e - 1) * sizeof *e);
    h->num_entries--;
  }
  pthread_mutex_unlock(&h->lock);
  return status;
}

emx_status heap_query(const heap *h, const void *pointer, heap_block *block) {
  heap *mutable = (heap *)h;
  pthread_mutex_lock(&mutable->lock);
  entry *e = find(h, pointer);
  if (e) *block = (heap_block){h->base + e->offset, e->size};
  pthread_mutex_unlock(&mutable->lock);
  return e ? EMX_OK : fail(EMX_E_BAD_POINTER, "%p is not in a live allocation", pointer);
}

bool heap_resize_in_place(heap *h, void *pointer, size_t size) {
  pthread_mutex_lock(&h->lock);
  entry *e = find(h, pointer);
  bool fits = e && size && h->base + e->offset == (char *)pointer && size <= e->span;
  if (fits) {
    if (size > e->size && h->source.touchable) memset((char *)pointer + e->size, 0, size - e->size);
    h->stats.allocated_bytes += size - e->size;
    e->size = size;
  }
  pthread_mutex_unlock(&h->lock);
  return fits;
}

void heap_get_stats(const heap *h, heap_stats *stats) {
  heap *mutable = (heap *)h;
  pthread_mutex_lock(&mutable->lock);
  *stats = h->stats;
  stats->poisoned_bytes = h->poisoned_bytes;
  pthread_mutex_unlock(&mutable->lock);
}

emx_status heap_trim(heap *h) { (void)h; return EMX_OK; }

emx_status heap_check(heap *h) {
  pthread_mutex_lock(&h->lock);
  emx_status status = EMX_OK;
  for (size_t i = 0, end = 0; i < h->num_entries; end = h->entries[i].offset + h->entries[i].span, ++i)
    if (h->entries[i].offset < end) status = fail(EMX_E_CORRUPT, "block %zu overlaps the one before", i);
  pthread_mutex_unlock(&h->lock);
  return status;
}

emx_status heap_poison(heap *h, const void *address, size_t size) {
  size_t offset = (size_t)((uintptr_t)address - (uintptr_t)h->base);
  if (offset >= h->capacity || size > h->capacity - offset)
    return fail(EMX_E_OUT_OF_BOUNDS, "%zu bytes at %p leave the tier", size, address);
  pthread_mutex_lock(&h->lock);
  if (!h->poisoned) h->poisoned = calloc(h->capacity / 64, 1);
  for (size_t line = offset / 64; line * 64 < offset + size; ++line)
    if (!h->poisoned[line]) h->poisoned[line] = 1, h->poisoned_bytes += 64;
  pthread_mutex_unlock(&h->lock);
  return EMX_OK;
}

bool heap_first_poison(const heap *h, const void *address, size_t size, const void **bad_line) {
  if (!atomic_load_explicit(&h->poisoned_bytes, memory_order_relaxed)) return false;
  size_t offset = (size_t)((uintptr_t)address - (uintptr_t)h->base);
  for (size_t line = offset / 64; line * 64 < offset + size; ++line)
    if (h->poisoned[line]) { *bad_line = h->base + line * 64; return true; }
  return false;
}
