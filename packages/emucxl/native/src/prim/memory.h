/* Address space and pages. What the system does, never what to do: each answers 0, or the errno of the call
 * that failed. */
#ifndef EMX_PRIM_MEMORY_H
#define EMX_PRIM_MEMORY_H

#include <stdbool.h>
#include <stddef.h>

size_t memory_page_bytes(void);

/* Addresses without memory, aligned to `alignment` (a power of two). */
int memory_reserve(size_t size_bytes, size_t alignment, void** base);
int memory_release(void* base, size_t size_bytes);

/* Makes reserved addresses readable and writable. */
int memory_enable(void* base, size_t size_bytes);
/* Drops the pages of a private range: they read as zero again. */
int memory_discard(void* base, size_t size_bytes);
/* Gives the range its pages now. EINVAL where the kernel is older than 5.14. */
int memory_populate(void* base, size_t size_bytes);
/* Asks for huge pages; a refusal does not matter. */
void memory_advise_huge(void* base, size_t size_bytes);
/* Bytes of the range that have a page. */
int memory_resident(void* base, size_t size_bytes, size_t* resident_bytes);

/* Maps `fd` from offset 0 over reserved addresses, shared. `synchronous`: with MAP_SYNC, where the file can.
 */
int memory_map_file(void* base, size_t size_bytes, int fd, bool synchronous);
/* Maps `fd` from offset 0 anywhere, shared and writable. */
int memory_map_anywhere(size_t size_bytes, int fd, void** base);

/* An unnamed file in memory; its descriptor is not inherited over exec. */
int memory_create_file(const char* name, size_t size_bytes, int* fd);

#endif
