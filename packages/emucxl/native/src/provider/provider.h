/* Providers: where a tier's pages come from. One file each; provider/provider.c finds them by number.
 *
 * A provider lays a tier's memory out in one range of addresses, aligned to 2 MiB, and gives the range its
 * pages as the heap asks for them. It never hands out what the system can't give: it refuses, with figures.
 *
 * Thread safety: commit and decommit may run in any number of threads; open and close of one `pages` in one.
 */
#ifndef EMX_PROVIDER_H
#define EMX_PROVIDER_H

#include <stdatomic.h>

#include "emucxl/context.h"
#include "prim/backing.h"
#include "prim/file_guard.h"

#define PAGES_ALIGNMENT ((size_t)2 << 20)

typedef struct provider provider;

/* A tier's memory. */
typedef struct pages {
    const provider* provider;
    char* base;
    size_t capacity_bytes;
    int fd;             /* that other processes can map from offset 0, or -1; owned */
    int numa_node;      /* where the pages are, or -1 when that is unknown */
    bool fresh_is_zero; /* what was never handed out reads as zero */
    bool touchable;     /* false: there is nothing behind the addresses */
    bool in_memory;     /* its pages are the system's memory, not a file system's or a device's */
    file_guard guard;   /* of its file: file_pages_check before each touch */
    bool counts;        /* its capacity is promised out of the system's memory */
    const emx_region* region;
    /* End of the furthest range that was committed: beyond it private pages were never touched. */
    _Atomic size_t reached_bytes;
    _Atomic size_t unchecked_bytes; /* committed since the system's memory was looked at last */
    struct pages* next;             /* of those that count, or of those on regions */
} pages;

struct provider {
    const char* name;
    const char* (*unavailable)(void); /* NULL when it works here; else why not, a static string */
    /* Fills in `pages`, which is zero but for `provider` and fd and numa_node (-1). config->capacity_bytes
     * may be 0. */
    emx_status (*open)(const emx_tier_config* config, pages* pages);
    void (*close)(pages* pages);
    size_t (*resident)(const pages* pages); /* bytes that are in use already; for those that promise */
    /* The heap's calls, which may be NULL. Offsets count from pages->base; ranges are whole pages.
     * Makes a range usable before its first touch, or after a decommit: EMX_E_NO_MEMORY rather than a kill.
     * NULL: it always is. */
    emx_status (*commit)(pages* pages, size_t offset, size_t size_bytes);
    /* Gives a range back to the system; it reads as zero when next committed. NULL: it can't, the heap zeroes
     * by hand. */
    emx_status (*decommit)(pages* pages, size_t offset, size_t size_bytes);
};

const provider* provider_of(uint32_t number); /* NULL: there is no such provider */

extern const provider provider_anon, provider_shm, provider_numa, provider_dax, provider_null,
    provider_region;

/* Shared by the providers. */
emx_status pages_require_capacity(const emx_tier_config* config); /* EMX_E_INVALID when it is 0 */
size_t pages_round_up(size_t size_bytes);                         /* to whole pages */
emx_status pages_reserve(pages* pages, size_t capacity_bytes, size_t alignment);
void pages_release(pages* pages);

/* Promises the capacity out of the system's memory, until it is withdrawn: EMX_E_NO_MEMORY if there is too
 * little, with the other tiers of this process counted in full. The provider must have `resident`. */
emx_status pages_promise(pages* pages);
void pages_withdraw(pages* pages);
/* Before committing more: EMX_E_NO_MEMORY if the system ran out in the meantime. Looks every 64 MiB of
 * growth. */
emx_status pages_check_growth(pages* pages, size_t size_bytes);

/* Private pages, which nobody can touch before they are enabled: in commit, in decommit, and how many are in
 * use. The kernel is asked only about those that were ever enabled: about 8 GiB it takes 20 to 40 ms to
 * answer. */
emx_status pages_enable(pages* pages, size_t offset, size_t size_bytes);
emx_status pages_discard(pages* pages, size_t offset, size_t size_bytes);
size_t pages_resident(const pages* pages);

/* Pages of a file or device (provider/file.c). Takes over `fd`, and locks it: EMX_E_BUSY while another tier,
 * of this or another process, has it. `what` names it in messages. */
emx_status file_pages_take(pages* pages, int fd, const char* what);
/* EMX_E_PERMISSION if the file is another user's, or has a name and others may write to it: they could change
 * a tier's bytes, and cut the file short. Files that others may read are the user's choice. */
emx_status file_pages_check_owner(const backing_info* info, const char* what);
/* Maps the first `capacity_bytes` of what was taken; commit sets blocks of it aside. */
emx_status file_pages_map(pages* pages, size_t capacity_bytes, size_t alignment, bool synchronous);
/* EMX_E_CORRUPT once another process has cut the file short. */
emx_status file_pages_check(const pages* pages);
void file_pages_close(pages* pages);
size_t file_pages_resident(const pages* pages);
emx_status file_pages_commit(pages* pages, size_t offset, size_t size_bytes);
emx_status file_pages_decommit(pages* pages, size_t offset, size_t size_bytes);

#endif
