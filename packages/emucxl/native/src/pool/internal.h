/* Shared by the files of the pool: the objects behind the handles, and the moves of the protocol. */
#ifndef EMX_POOL_INTERNAL_H
#define EMX_POOL_INTERNAL_H

#include <pthread.h>
#include <stddef.h>

#include "fail.h"
#include "handle.h"
#include "pool/layout.h"
#include "prim/file_guard.h"

/* The last sight of a host whose clock or PID this process cannot judge. */
typedef struct observation {
    uint64_t word, heartbeats, since_ns; /* CLOCK_MONOTONIC */
} observation;

struct emx_pool {
    handle handle;
    int fd;
    bool writable;
    file_guard guard;
    uint64_t fork_count; /* at opening */
    pool_header header;  /* checked and copied: what the file says later is not believed */
    size_t tables_bytes;
    void* tables;
    host_record* hosts;
    region_record* regions;
    shared_word *extents, *poison;
    process_identity self;
    uint64_t lock_inode;         /* on which this process's hosts hold their slots' locks */
    _Atomic uint64_t own_slots;  /* bit h: a host that joined through this object has slot h */
    emx_pool* next_open;         /* pool/presence.c */
    _Atomic uint64_t claim_hint; /* where the search for a free extent begins */
    pthread_mutex_t lock;        /* over the following */
    observation observations[POOL_HOSTS];
    emx_host* joined;
};

struct emx_host {
    handle handle;
    emx_pool* pool;
    emx_host* next;
    uint32_t slot, epoch, flags;
    uint64_t word;       /* of the record while this host is active */
    uint64_t lock_inode; /* 0: its filesystem has no such locks */
    bool has_slot;
    uint64_t lease_ns, quota_bytes;
    pthread_mutex_t lock; /* over carving, opening, resizing, closing, heartbeats; taken before `mapping` */
    pthread_rwlock_t mapping; /* shared: bytes are being copied; exclusive: what is mapped changes */
    emx_region* regions;
    bool unmapped; /* it was fenced, and its regions lead nowhere now */
    bool has_thread, stopping;
    pthread_t thread;
    pthread_cond_t wake;
};

struct emx_region {
    handle handle;
    emx_host* host;
    emx_region* next;
    region_record* record;
    uint32_t slot, gen;
    bool writable;
    char tag[EMX_TAG_BYTES];
    unsigned char* base;
    uint64_t room_bytes;         /* of addresses */
    _Atomic uint64_t size_bytes; /* mapped here */
    uint32_t mapped_extents;
    uint32_t* extents; /* by index; room for room_bytes */
};

/* pool/file.c */
bool pool_is_inherited(const emx_pool* pool);
/* EMX_E_CORRUPT once another process has cut the pool's file short: its tables must not be touched then. */
emx_status pool_require_whole(const emx_pool* pool);
emx_status pool_require_open(const emx_pool* pool); /* and whole, and this process's */
emx_status pool_require_writable(const emx_pool* pool);
static inline uint32_t extents_for(const emx_pool* pool, uint64_t size_bytes) {
    return (uint32_t)((size_bytes + pool->header.extent_bytes - 1) / pool->header.extent_bytes);
}
void text_store(shared_word* words, const char* text);
void text_load(const shared_word* words, char* text);
emx_status text_check(const char* text, const char* what);

/* pool/host.c */
/* One load: EMX_OK or EMX_E_FENCED (or EMX_E_CLOSED after fork). */
emx_status host_require_active(const emx_host* host);
/* 7 bits that tell most other machines from this one. */
uint64_t host_machine_hash(const process_identity* self);
void host_identity(const host_record* record, process_identity* identity);
bool host_may_hold(const emx_pool* pool, uint32_t slot, uint64_t epoch, unsigned epoch_bits);
uint64_t host_owned_bytes(const emx_pool* pool, uint32_t slot, uint64_t epoch);
/* Once fenced: unmaps everything, and says so in the pool. `host->lock` is held. */
void host_surrender(emx_host* host);

/* pool/presence.c */
void presence_watch(emx_pool* pool); /* from then on a child of fork() closes its file */
void presence_unwatch(emx_pool* pool);
/* Takes the slot's lock, before its word. False: somebody has it. */
bool presence_take(emx_host* host, uint32_t slot);
void presence_let_go(emx_host* host);
/* Whether that host's process can still write to the pool. */
process_state presence_of(const emx_pool* pool, uint32_t slot, const process_identity* identity);
bool presence_is_locked(const emx_pool* pool, uint32_t slot);

/* pool/extents.c */
typedef struct claim {
    uint32_t extent;
    bool clean;
} claim;
/* Claims a free extent for one index of a region. False: there is none. */
bool extent_claim(emx_pool* pool, uint32_t region, uint32_t gen, uint32_t index, claim* claimed);
/* Gives back what `word` says is held; retired if poisoned. False: it changed meanwhile. */
bool extent_give_back(emx_pool* pool, uint32_t extent, uint64_t word);
/* Gives back a region's extents from `first_index` on, while `guard` holds `expected`. Returns how many. */
uint32_t extents_give_back(emx_pool* pool, uint32_t region, uint32_t gen, uint32_t first_index,
                           const shared_word* guard, uint64_t expected);
/* Finds a region's extents [first, last) by index. EMX_E_CORRUPT: one is missing or there twice. */
emx_status extents_find(const emx_pool* pool, uint32_t region, uint32_t gen, uint32_t first, uint32_t last,
                        uint32_t* extents);
emx_status extents_map(emx_region* region, uint32_t first, uint32_t last, bool writable);
/* Claims, maps and zeroes indices [first, last). On failure it has undone that. */
emx_status extents_add(emx_region* region, uint32_t first, uint32_t last);

/* pool/reclaim.c */
enum { RECLAIM_SWEEP = 1 << 16 }; /* look at every extent too; slow in a large pool */
emx_status reclaim(emx_pool* pool, uint32_t flags, emx_reclaim_report* report);
/* Frees the region if nobody may hold it any more. */
void region_settle(emx_pool* pool, uint32_t slot);
void region_bury(emx_pool* pool, uint32_t slot); /* finishes a dying region */
void region_drop_dead_owner(emx_pool* pool, uint32_t slot);
void host_clean(emx_pool* pool, uint32_t slot, uint64_t epoch, emx_reclaim_report* report);

/* pool/handle.c */
emx_status region_make(emx_host* host, uint32_t slot, uint32_t gen, const char* tag, uint64_t max_bytes,
                       emx_region** made);
void region_unmap(emx_region* region);
void region_destroy(emx_region* region);
void region_list(emx_region* region); /* among its host's */
void region_unlist(emx_region* region);

/* pool/region.c */
uint64_t holder_word(const emx_host* host, uint32_t gen, bool writable);
uint64_t owner_word(const emx_host* host, uint32_t gen);
bool owner_holds(const emx_pool* pool, uint64_t owner, uint64_t gen);
emx_status region_follow(emx_region* region); /* maps what the owner added since */

/* pool/poison.c */
bool poison_first(const emx_pool* pool, uint32_t extent, uint64_t offset, uint64_t size_bytes,
                  uint64_t* bad_offset);
emx_status poison_mark(emx_pool* pool, uint32_t extent, uint64_t offset, uint64_t size_bytes);
void poison_restore_flags(emx_pool* pool);

#endif
