/* Providers: where a tier's pages come from. One file each (provider_*.c); provider.c finds them by number.
 *
 * A provider lays a tier's memory out in one range of addresses, aligned to 2 MiB, and gives the range its pages as the
 * heap asks for them. It never hands out what the system can't give: it refuses, with figures.
 *
 * Thread safety: commit and decommit may run in any number of threads; open and close of one `pages` in one.
 */
#ifndef EMX_PROVIDER_H
#define EMX_PROVIDER_H

#include <stdatomic.h>

#include "emucxl/context.h"

#define PAGES_ALIGNMENT ((size_t)2 << 20)

typedef struct provider provider;

/* A tier's memory. */
typedef struct pages {
  const provider *provider;
  char *base;
  size_t capacity_bytes;
  int fd;              /* that other processes can map from offset 0, or -1; owned */
  int numa_node;       /* where the pages are, or -1 when that is unknown */
  bool fresh_is_zero;  /* what was never handed out reads as zero */
  bool touchable;      /* false: there is nothing behind the addresses */
  bool counts;         /* its capacity was promised out of the system's memory (see provider_memory.c) */
  const emx_region *region;
  _Atomic size_t unchecked_bytes; /* committed since the system's memory was looked at last */
  struct pages *next;  /* of those that count */
} pages;

struct provider {
  const char *name;
  const char *(*unavailable)(void); /* NULL when it works here; else why not, a static string */
  /* Fills in `pages`, which is zero but for `provider` and fd and numa_node (-1). config->capacity_bytes may be 0. */
  emx_status (*open)(const emx_tier_config *config, pages *pages);
  void (*close)(pages *pages);
  /* Of the heap's source (heap.h); NULL: always committed, can't be given back. */
  emx_status (*commit)(pages *pages, size_t offset, size_t size_bytes);
  emx_status (*decommit)(pages *pages, size_t offset, size_t size_bytes);
};

const provider *provider_of(uint32_t number); /* NULL: there is no such provider */

extern const provider provider_anon, provider_shm, provider_numa, provider_dax, provider_null, provider_region;

/* What providers have in common. */
emx_status pages_require_capacity(const emx_tier_config *config); /* EMX_E_INVALID when it is 0 */
size_t pages_round_up(size_t size_bytes);                         /* to whole pages; 0 on overflow */
emx_status pages_reserve(pages *pages, size_t capacity_bytes, size_t alignment);
void pages_release(pages *pages);

#endif
