#include "cache.h"

#if defined(__x86_64__) || defined(__i386__)
#include <emmintrin.h>

void cache_flush_line(const void* address) { _mm_clflush(address); }

void cache_flush_done(void) { _mm_mfence(); }
#else
void cache_flush_line(const void* address) { (void)address; }

void cache_flush_done(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
#endif
