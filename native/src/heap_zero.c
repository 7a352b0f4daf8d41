/* Zeroing by hand what was used before. */
#include <string.h>

#include "heap_internal.h"

void zero_pages(heap *heap, size_t page, size_t num_pages) {
  if (!heap->source.touchable) return;
  const size_t end = page + num_pages;
  for (size_t from = page; (from = bits_find(heap->dirty, from, end, true)) < end;) {
    const size_t to = bits_find(heap->dirty, from, end, false);
    memset(page_address(heap, from), 0, (to - from) << PAGE_SHIFT);
    from = to;
  }
}
