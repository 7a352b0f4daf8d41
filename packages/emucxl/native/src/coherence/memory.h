/* Moving bytes between a cache and memory that other threads and processes change at the same time.
 *
 * Every naturally aligned 1, 2, 4 or 8 bytes move at once, in order: loads acquire, stores release. */
#ifndef EMX_COHERENCE_MEMORY_H
#define EMX_COHERENCE_MEMORY_H

#include <stddef.h>
#include <stdint.h>

void memory_load(void* copy, const void* memory, size_t size_bytes);
void memory_store(void* memory, const void* copy, size_t size_bytes);
/* Stores those of the (up to) 64 bytes whose bit is set; `memory` is aligned to 64. */
void memory_store_masked(void* memory, const void* copy, uint64_t mask);

#endif
