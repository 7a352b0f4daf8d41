/* Shared by the files of the library that work on contexts.
 *
 * Thread safety: `tiers` and `ranges` below num_tiers never change until the context is closed; num_tiers is
 * stored with release order after what it counts, so that a lookup needs no lock.
 */
#ifndef EMX_CONTEXT_INTERNAL_H
#define EMX_CONTEXT_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "emucxl/context.h"
#include "emucxl/monitor.h"
#include "heap/heap.h"
#include "provider/provider.h"
#include "timing/transfer.h"

typedef struct tier {
    heap* heap;
    path* path; /* NULL: unmodelled */
    bool touchable;
    bool is_guarded;          /* something has to be asked before every access: */
    const emx_region* region; /* asked before every access; NULL for every other provider */
    emx_monitor_tier* monitor;
    uint32_t number;
    pages pages;
    emx_timing timing;
    char name[EMX_NAME_BYTES];
} tier;

typedef struct range {
    uintptr_t base;
    size_t size_bytes;
} range;

typedef struct pin {
    const void* base; /* of a block; NULL: free */
    uint32_t count;
} pin;

/* Blocks that copies in flight use. emx_free, emx_resize and emx_migrate refuse them (EMX_E_BUSY). */
typedef struct pin_table {
    _Atomic uint32_t num_pinned; /* blocks: 0 spares the lock */
    pthread_mutex_t lock;
    pin* slots;
    uint32_t num_slots; /* 0, or a power of two */
} pin_table;

struct emx_context {
    uint32_t magic; /* CONTEXT_OPEN; the memory of a closed context is kept for the next one, so that this can
                       be asked */
    _Atomic uint32_t num_tiers;
    range ranges[EMX_MAX_TIERS];
    tier tiers[EMX_MAX_TIERS];
    model_clock clock;
    bool has_calibration;
    emx_calibration calibration;
    pin_table pins;
    pthread_mutex_t adding;
    emx_monitor_page* monitor;
    int monitor_fd;           /* -1: this system has no memfd, nobody can look */
    struct emx_context* next; /* of the open ones, or of the closed ones */
};

#define CONTEXT_OPEN 0x656d7831u

emx_status context_refuse(const emx_context* context) __attribute__((cold));

/* context/list.c. Every open context is listed, for the sake of forks. */
emx_context* context_take_memory(void); /* zeroed; NULL: there is none */
void context_keep_memory(emx_context* context);
void context_list(emx_context* context);
void context_unlist(emx_context* context);

/* EMX_E_INVALID for NULL, EMX_E_CLOSED for a context that was closed. */
static inline emx_status context_require(const emx_context* context) {
    return __builtin_expect(context != NULL && context->magic == CONTEXT_OPEN, 1) ? EMX_OK
                                                                                  : context_refuse(context);
}

/* The tier whose range of addresses `pointer` is in, or NULL. */
static inline tier* context_tier_of(const emx_context* context, const void* pointer) {
    const uint32_t num_tiers = atomic_load_explicit(&context->num_tiers, memory_order_acquire);
    for (uint32_t i = 0; i < num_tiers; i++)
        if ((uintptr_t)pointer - context->ranges[i].base < context->ranges[i].size_bytes)
            return (tier*)&context->tiers[i];
    return NULL;
}

/* The live block that `pointer` points into, and its tier. EMX_E_BAD_POINTER (with detail) if there is none.
 */
emx_status context_find(const emx_context* context, const void* pointer, tier** tier, heap_block* block);

/* The tier of a number; EMX_E_INVALID if there is none. Checks the context too. */
emx_status context_get_tier(const emx_context* context, emx_tier number, tier** tier);

/* EMX_E_POISONED, and where. */
emx_status tier_poisoned(const tier* tier, const void* address, size_t size_bytes, const void* bad)
    __attribute__((cold));

/* The part of that which is not about poison: the region, the tier's file, the link's. */
emx_status tier_ask_guards(const tier* tier, const void* address, size_t size_bytes, bool write);
static inline emx_status tier_check_guards(const tier* tier, const void* address, size_t size_bytes,
                                           bool write) {
    return __builtin_expect(tier->is_guarded, 0) ? tier_ask_guards(tier, address, size_bytes, write) : EMX_OK;
}

/* EMX_OK if [address, address + size_bytes), which lies in a live block of `tier`, may be read or written
 * now: not poisoned, the pool's region (if it is one) still this host's, and no file cut short. Cheap where
 * there is none of it. */
static inline emx_status context_check_access(const emx_context* context, const tier* tier,
                                              const void* address, size_t size_bytes, bool write) {
    const void* bad;
    (void)context;
    if (__builtin_expect(heap_first_poison(tier->heap, address, size_bytes, &bad), 0))
        return tier_poisoned(tier, address, size_bytes, bad);
    return tier_check_guards(tier, address, size_bytes, write);
}

/* Pins the block at `base` (heap_block.base, as context_find gives it) against free, resize and migrate; as
 * often as it is pinned it must be unpinned. EMX_E_NO_MEMORY at worst. */
emx_status context_pin(emx_context* context, const void* base);
void context_unpin(emx_context* context, const void* base);
/* EMX_E_BUSY if the block is pinned. One load while nothing is. */
emx_status context_check_unpinned(emx_context* context, const void* base);
void pin_table_init(pin_table* table);
void pin_table_destroy(pin_table* table);
void pin_table_forget(pin_table* table); /* unpins all; its lock is held */

/* Moves, prices and counts bytes between two checked ranges, which may overlap. */
void tier_copy(emx_context* context, tier* to, void* destination, tier* from, const void* source,
               size_t size_bytes, uint64_t entry_ticks);

/* Adds an access, or a modelled duration, to a tier's statistics. */
void tier_count(tier* tier, emx_direction direction, size_t size_bytes, uint64_t delayed_ns);
/* Shows the heap's figures in the monitor: now, or after some calls of a thread, of which one allocated
 * `size_bytes`. */
void tier_show(tier* tier);
void tier_show_sometimes(tier* tier, size_t size_bytes);

/* EMX_E_INVALID unless it is printable, and neither empty nor too long. `what` has it, for the detail. */
emx_status context_check_name(const char* what, const char* name);

/* Prefixes the detail of a failure with the tier's name; returns `status`. */
emx_status tier_failed(const tier* tier, emx_status status) __attribute__((cold));

/* The monitor page: in a memfd if the system has them, in private memory if not. */
emx_status monitor_open(emx_context* context, uint32_t clock);
void monitor_close(emx_context* context);
void monitor_sum(const tier* tier, emx_tier_stats* stats); /* the figures of accesses, over the shards */
void monitor_add_tier(emx_context* context, tier* tier);

#endif
