/* Contexts, tiers and allocations.
 *
 * A context is one program's view of its memories: up to EMX_MAX_TIERS tiers, each with a provider (where its
 * pages come from), a capacity, a heap and a timing. A tier's pages lie in one range of addresses, so that
 * any pointer tells its tier.
 *
 * What is priced: emx_read, emx_write, emx_memset, emx_copy, emx_migrate, emx_resize (when it moves), their
 * batched forms, and the copy engine. What is not: loads and stores through the pointers themselves, which
 * run at this machine's speed.
 *
 * Thread safety: as emucxl.h says. After fork, the child may read and write what the parent allocated in
 * shared tiers (SHM, DAX), and allocates and frees nothing there: both processes would hand out the same
 * bytes.
 *
 * Invariants
 *   1. Memory that is handed out is zero.
 *   2. A tier never holds more than its capacity, and is never made with more than the system can give.
 *   3. A live allocation is moved by nobody but emx_resize and emx_migrate.
 */
#ifndef EMUCXL_CONTEXT_H
#define EMUCXL_CONTEXT_H

#include <stdbool.h>

#include "pool.h"
#include "status.h"
#include "timing.h"

#ifdef __cplusplus
extern "C" {
#endif

#define EMX_MAX_TIERS 16
#define EMX_NAME_BYTES 32 /* of a tier's or context's name, its terminator included */

typedef struct emx_context emx_context;
typedef uint32_t emx_tier; /* a tier's number in its context: 0, 1, ... in the order they were added */

/* EMX_CLOCK_REAL: an access takes as long as the model says. EMX_CLOCK_VIRTUAL: it takes what it takes, and
 * the context's own clock advances by what the model says; deterministic as long as one thread uses the
 * context. */
typedef enum emx_clock { EMX_CLOCK_REAL = 0, EMX_CLOCK_VIRTUAL = 1 } emx_clock;

typedef struct emx_context_config {
    uint32_t struct_bytes;
    uint32_t clock;                     /* emx_clock */
    const emx_calibration* calibration; /* needed to add a timed tier on the real clock; copied */
} emx_context_config;

/* `config` may be NULL. */
EMX_API emx_status emx_context_open(const emx_context_config* config, emx_context** context);
/* Frees every allocation and tier. Copy engines of the context must be closed before. */
EMX_API void emx_context_close(emx_context* context);
/* The calibration of a context that was opened without one; EMX_E_EXISTS if it has one. Copied. */
EMX_API emx_status emx_context_set_calibration(emx_context* context, const emx_calibration* calibration);
/* Says what the context is for ("rank 1", say), where `emucxl top` shows several that look alike: at most
 * EMX_NAME_BYTES - 1 bytes of printable text, copied. The last one counts. */
EMX_API emx_status emx_context_set_name(emx_context* context, const char* name);

/* The context's clock. Advancing it stands for computing: the virtual clock jumps, the real one is waited
 * for. */
EMX_API uint64_t emx_context_now_ns(const emx_context* context);
EMX_API void emx_context_advance(emx_context* context, uint64_t duration_ns);

/* ---- tiers --------------------------------------------------------------------------------------------- */

typedef enum emx_provider {
    EMX_PROVIDER_ANON = 0, /* this process's own memory */
    EMX_PROVIDER_SHM = 1,  /* a memfd, the file at `path`, or `fd`: other processes can map it */
    EMX_PROVIDER_NUMA = 2, /* memory of `numa_node`, verified by asking the kernel */
    EMX_PROVIDER_DAX = 3,  /* the device at `path` (/dev/daxX.Y), or an ordinary file that stands in for it */
    EMX_PROVIDER_NULL = 4, /* addresses without memory: everything but touching the bytes works */
    EMX_PROVIDER_REGION = 5, /* `region` of a pool */
} emx_provider;

typedef struct emx_tier_config {
    uint32_t struct_bytes;
    uint32_t provider;       /* emx_provider */
    const char* name;        /* unique in the context */
    uint64_t capacity_bytes; /* rounded up to whole pages; 0: all that the device, file or region has */
    const char*
        path; /* SHM: a file, made if missing, and left when the tier is closed; DAX: the device; else NULL */
    int32_t fd;         /* SHM: a descriptor to map instead, which stays the caller's; or -1 */
    int32_t numa_node;  /* NUMA */
    emx_region* region; /* REGION: stays the caller's, and must outlive the tier */
    emx_link* link;     /* shared link that the tier's traffic queues on, or NULL; kept alive by the tier */
    emx_timing timing;
} emx_tier_config;

typedef struct emx_tier_info {
    char name[EMX_NAME_BYTES];
    uint32_t provider;
    int32_t numa_node; /* where the pages are, or -1 when that is unknown */
    uint64_t capacity_bytes;
    void* base; /* of the tier's range of addresses */
    int32_t fd; /* that other processes can map from offset 0, as `base` is here; the tier's own; or -1 */
    uint32_t modelled; /* 1: the timing is not all zero, or there is a link */
    emx_timing timing;
} emx_tier_info;

typedef struct emx_tier_stats {
    uint64_t capacity_bytes;
    uint64_t allocated_bytes;   /* as asked for */
    uint64_t reserved_bytes;    /* taken from the capacity: with rounding, and what caches hold */
    uint64_t num_allocations;   /* live */
    uint64_t total_allocations; /* ever */
    uint64_t peak_reserved_bytes;
    uint64_t read_bytes, write_bytes; /* through the calls of this interface */
    uint64_t read_accesses, write_accesses;
    uint64_t delayed_ns; /* modelled time that accesses took */
    uint64_t poisoned_bytes;
} emx_tier_stats;

/* NULL when the provider works here; else why it does not. The string is static. */
EMX_API const char* emx_provider_unavailable(emx_provider provider);

EMX_API emx_status emx_tier_add(emx_context* context, const emx_tier_config* config, emx_tier* tier);
EMX_API uint32_t emx_tier_count(const emx_context* context);
EMX_API emx_status emx_tier_get_info(const emx_context* context, emx_tier tier, emx_tier_info* info);
EMX_API emx_status emx_tier_get_stats(const emx_context* context, emx_tier tier, emx_tier_stats* stats);
/* Gives memory that is free back to the system. */
EMX_API emx_status emx_tier_trim(emx_context* context, emx_tier tier);
/* Every invariant of every tier's heap; EMX_E_CORRUPT names the first that does not hold. Slow: for tests. */
EMX_API emx_status emx_context_check(emx_context* context);

/* ---- allocations --------------------------------------------------------------------------------------- */

typedef struct emx_allocation {
    void* base;
    uint64_t size_bytes; /* as asked for */
    uint64_t offset;     /* of the pointer that was asked about, from `base` */
    emx_tier tier;
} emx_allocation;

/* `size_bytes` >= 1 zeroed bytes. `alignment` is 0 (16 bytes) or a power of two up to 2 MiB. EMX_E_TIER_FULL
 * when the tier's capacity is used up, EMX_E_NO_MEMORY when the system ran out before that. */
EMX_API emx_status emx_alloc(emx_context* context, emx_tier tier, size_t size_bytes, size_t alignment,
                             void** pointer);
/* `pointer` is the base of a live allocation; NULL does nothing. EMX_E_BUSY, here and in the two calls below,
 * while a copy engine uses the allocation. */
EMX_API emx_status emx_free(emx_context* context, void* pointer);
/* Same tier, new size >= 1. The common bytes stay, new ones are zero. What moves is aligned to 16 bytes,
 * whatever was asked for at first. On failure the old allocation is as it was. */
EMX_API emx_status emx_resize(emx_context* context, void* pointer, size_t size_bytes, void** moved);
/* Same size and bytes, another tier; in the tier where it is already, it stays. Aligned as by emx_resize. On
 * failure the old allocation is as it was. */
EMX_API emx_status emx_migrate(emx_context* context, void* pointer, emx_tier tier, void** moved);
/* The live allocation that `pointer` points into, its end excluded. EMX_E_BAD_POINTER if there is none. */
EMX_API emx_status emx_query(const emx_context* context, const void* pointer, emx_allocation* allocation);

/* ---- priced accesses ----------------------------------------------------------------------------------- */

/* `pointer` points into a live allocation; `offset` counts from it, and the range is checked against the
 * allocation's end. `size_bytes` 0 is checked too, does nothing and costs nothing; `buffer` may then be NULL.
 * Where there is no memory behind the addresses (EMX_PROVIDER_NULL), reads and copies find zeros, and what is
 * written is forgotten. */
EMX_API emx_status emx_read(emx_context* context, const void* pointer, size_t offset, void* buffer,
                            size_t size_bytes);
EMX_API emx_status emx_write(emx_context* context, void* pointer, size_t offset, const void* buffer,
                             size_t size_bytes);
EMX_API emx_status emx_memset(emx_context* context, void* pointer, size_t offset, int value,
                              size_t size_bytes);
/* Between allocations, or within one, where the ranges may overlap. Priced as a read there and a write here,
 * which run at the same time: it takes the longer of the two. */
EMX_API emx_status emx_copy(emx_context* context, void* destination, size_t destination_offset,
                            const void* source, size_t source_offset, size_t size_bytes);

/* One access of a batch. */
typedef struct emx_access {
    void* pointer;
    size_t offset;
    void* buffer; /* not written to by emx_write_batch */
    size_t size_bytes;
} emx_access;

/* All at once, as a program with enough accesses in flight would: each tier's latency counts once, its bytes
 * add up. Checks everything before it moves anything. */
EMX_API emx_status emx_read_batch(emx_context* context, const emx_access* accesses, size_t num_accesses);
EMX_API emx_status emx_write_batch(emx_context* context, const emx_access* accesses, size_t num_accesses);

/* ---- poison -------------------------------------------------------------------------------------------- */

/* Marks the 64-byte lines that a range of a tier touches as bad, as a device reports them. Priced accesses to
 * them fail with EMX_E_POISONED; the pages are retired when their allocation is freed, and their bytes leave
 * the capacity. */
EMX_API emx_status emx_poison(emx_context* context, emx_tier tier, const void* address, size_t size_bytes);

#ifdef __cplusplus
}
#endif
#endif
