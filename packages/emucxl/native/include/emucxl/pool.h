/* A pool: memory that several hosts (processes that stand for them, or real ones over one device) carve up
 * and share.
 *
 * A pool is a file, by default in /dev/shm, or a dax device: tables, then extents of one size. A process
 * joins it as a host, carves regions out of free extents under tags, opens regions of others by tag, and lets
 * them go. No host ever holds a lock in the pool: every change is a sequence of single 64-bit
 * compare-and-swaps that any other host can finish or undo, so a host that is killed between any two of them
 * leaves nothing that emx_pool_reclaim does not put right.
 *
 * Thread safety: any number of threads may use a pool, a host and a region at once; emx_pool_close,
 * emx_host_leave, emx_region_close and emx_region_release end their object. A child of fork() inherits
 * nothing of a pool: calls on its parent's objects fail with EMX_E_CLOSED there, but for the four that end an
 * object, which free its memory.
 *
 * Invariants (emx_pool_check verifies them)
 *   1. Every extent is free, retired, or held by exactly one region at one index.
 *   2. A live region has each of its extents; more only while its owner grows it.
 *   3. A region is held by a host whose lease runs (or ran out a moment ago), or is persistent.
 *   4. No host owns more than its quota.
 *   5. Memory is zero when a region gets it.
 */
#ifndef EMUCXL_POOL_H
#define EMUCXL_POOL_H

#include <stdbool.h>

#include "status.h"

#ifdef __cplusplus
extern "C" {
#endif

#define EMX_TAG_BYTES 64 /* of a tag or a host's name, its terminator included */
#define EMX_POOL_MAX_HOSTS 64
#define EMX_POOL_DIRECTORY "/dev/shm"
#define EMX_POOL_PREFIX "emucxl-pool-" /* of the files there: a pool's name follows */

typedef struct emx_pool emx_pool;
typedef struct emx_host emx_host;
typedef struct emx_region emx_region;

/* ---- pools --------------------------------------------------------------------------------------------- */

typedef enum emx_pool_flag {
    EMX_POOL_FORMAT = 1,    /* create: lay the pool out in the file or device that is already at `path` */
    EMX_POOL_OVERWRITE = 2, /* create, with FORMAT: even if it holds a pool */
    EMX_POOL_READ_ONLY = 4, /* open: for looking only; nobody can join through it */
} emx_pool_flag;

typedef struct emx_pool_config {
    uint32_t struct_bytes;
    uint32_t flags;
    uint64_t size_bytes;   /* to hand out, rounded up to whole extents; the file is larger by the tables. With
                              FORMAT, 0: all that fits */
    uint64_t extent_bytes; /* a multiple of the page size; 0: 2 MiB */
    uint32_t max_regions;  /* 1 to 1024; 0: 256 */
} emx_pool_config;

/* `path` is a path if it has a '/', else the name of a pool in EMX_POOL_DIRECTORY. All pages are reserved
 * here, mode 0600; a call that fails leaves nothing behind. EMX_E_EXISTS: there is such a file. */
EMX_API emx_status emx_pool_create(const char* path, const emx_pool_config* config, emx_pool** pool);
/* EMX_E_PERMISSION: the file is another user's, or others may open it. EMX_E_FOREIGN: it is no pool of this
 * version. EMX_E_CORRUPT: it is, but it is cut short or its tables contradict themselves. */
EMX_API emx_status emx_pool_open(const char* path, uint32_t flags, emx_pool** pool);
/* Hosts that joined through it leave. The file stays: remove it like any other. */
EMX_API void emx_pool_close(emx_pool* pool);

typedef struct emx_pool_info {
    char uuid[37];
    uint32_t max_hosts, max_regions;
    uint64_t file_bytes, extent_bytes, num_extents;
    uint64_t free_extents, held_extents, retired_extents; /* add up to num_extents, but while they change */
    uint64_t poisoned_extents; /* held ones with poison; retired when they are let go */
    uint64_t created_ns;       /* since 1970 */
    uint32_t num_hosts, num_regions, num_poison_ranges;
} emx_pool_info;

EMX_API emx_status emx_pool_get_info(const emx_pool* pool, emx_pool_info* info);

typedef enum emx_host_state {
    EMX_HOST_JOINING = 1,
    EMX_HOST_ACTIVE = 2,
    EMX_HOST_FENCED = 3,  /* its lease ran out; what it held waits until its process lets go or is gone */
    EMX_HOST_DRAINED = 4, /* it touches nothing any more; what it held is being freed */
} emx_host_state;

typedef struct emx_host_info {
    uint32_t slot, epoch, state; /* emx_host_state */
    uint32_t is_here;            /* 1: its PID counts on this machine, in this PID namespace */
    uint64_t pid, start_time;
    uint64_t lease_ns, quota_bytes; /* quota 0: none */
    uint64_t owned_bytes;           /* what counts against the quota */
    uint64_t silence_ns; /* since its last heartbeat, if it shares this machine's clock; else UINT64_MAX */
    uint64_t heartbeats;
    char name[EMX_TAG_BYTES];
} emx_host_info;

typedef enum emx_sharing {
    EMX_SHARE_WRITE = 0, /* other hosts may open it to read, or to read and write */
    EMX_SHARE_READ = 1,  /* other hosts may open it to read */
    EMX_SHARE_NONE = 2,  /* other hosts may not open it */
} emx_sharing;

typedef enum emx_region_state {
    EMX_REGION_CARVING = 1,
    EMX_REGION_LIVE = 2,
    EMX_REGION_RESIZING = 3, /* being shrunk */
    EMX_REGION_DYING = 4,
} emx_region_state;

typedef struct emx_region_entry {
    char tag[EMX_TAG_BYTES];
    uint32_t slot, state; /* emx_region_state */
    uint32_t persistent, sharing;
    int32_t owner; /* a host's slot, or -1 */
    uint32_t num_extents, poisoned_extents;
    uint64_t size_bytes, max_bytes;
    uint64_t readers, writers; /* bit h: the host in slot h has it open */
} emx_region_entry;

/* Up to `capacity` entries; `*count` is how many there were. `entries` may be NULL when `capacity` is 0. */
EMX_API emx_status emx_pool_list_hosts(const emx_pool* pool, emx_host_info* entries, uint32_t capacity,
                                       uint32_t* count);
EMX_API emx_status emx_pool_list_regions(const emx_pool* pool, emx_region_entry* entries, uint32_t capacity,
                                         uint32_t* count);

typedef struct emx_poison_range {
    uint64_t offset, size_bytes; /* from the first extent; in lines of 64 bytes */
} emx_poison_range;

EMX_API emx_status emx_pool_list_poison(const emx_pool* pool, emx_poison_range* entries, uint32_t capacity,
                                        uint32_t* count);
/* Marks lines as bad, counted from the first extent, as a device reports them. */
EMX_API emx_status emx_pool_poison(emx_pool* pool, uint64_t offset, uint64_t size_bytes);

typedef enum emx_reclaim_flag {
    EMX_RECLAIM_KILL = 1, /* SIGKILL to the processes of these PID and time namespaces whose hosts were fenced
                             but hold on to memory */
} emx_reclaim_flag;

typedef struct emx_reclaim_report {
    uint32_t fenced_hosts, freed_hosts, freed_regions, freed_extents; /* by this call */
    uint32_t quarantined_hosts; /* fenced before or now, and perhaps still able to write to what they held */
} emx_reclaim_report;

/* Fences hosts whose lease ran out or whose process is gone, and finishes or undoes what hosts left
 * half-done. Joining, carving and every heartbeat do the same. `report` may be NULL. Of a host that cannot be
 * looked at (another machine's, or one from before a restart) only silence tells: a lease until it is fenced,
 * another until it is freed, as seen by calls on this `pool` object. A program that exits after one call
 * never frees it; call again until nothing is in quarantine. */
EMX_API emx_status emx_pool_reclaim(emx_pool* pool, uint32_t flags, emx_reclaim_report* report);
/* Every invariant; EMX_E_CORRUPT names the first that does not hold. May run while hosts work. */
EMX_API emx_status emx_pool_check(const emx_pool* pool);

/* ---- hosts --------------------------------------------------------------------------------------------- */

typedef enum emx_join_flag {
    /* The caller calls emx_host_heartbeat; without it a thread of the library does, which sleeps. */
    EMX_JOIN_NO_HEARTBEAT = 1,
    /* Once fenced, pointers into regions fault; without it they lead to zeroes that are nobody's. */
    EMX_JOIN_FAULT_ON_FENCE = 2,
} emx_join_flag;

typedef struct emx_join_config {
    uint32_t struct_bytes;
    uint32_t flags;
    uint64_t lease_ns;    /* 1 ms to 1 h; 0: 5 s */
    uint64_t quota_bytes; /* 0: none */
} emx_join_config;

/* `name` is for people; it need not be unique. `config` may be NULL. */
EMX_API emx_status emx_pool_join(emx_pool* pool, const char* name, const emx_join_config* config,
                                 emx_host** host);
/* Closes its regions and frees its slot. */
EMX_API void emx_host_leave(emx_host* host);
/* Prolongs the lease. EMX_E_FENCED: too late; what it held is unmapped by now, and it can only leave. */
EMX_API emx_status emx_host_heartbeat(emx_host* host);
EMX_API emx_status emx_host_get_info(const emx_host* host, emx_host_info* info);

/* ---- regions ------------------------------------------------------------------------------------------- */

typedef enum emx_carve_flag {
    EMX_CARVE_PERSISTENT = 1, /* outlives its holders, until somebody releases it */
} emx_carve_flag;

typedef struct emx_carve_config {
    uint32_t struct_bytes;
    uint32_t flags;
    uint32_t sharing;   /* emx_sharing */
    uint64_t max_bytes; /* to which it can grow: address room for it is set aside. 0: the pool's size, at most
                           64 GiB */
} emx_carve_config;

/* `size_bytes` >= 1 zeroed bytes under a tag that no other live region has; this host owns it. `config` may
 * be NULL. */
EMX_API emx_status emx_host_carve(emx_host* host, const char* tag, uint64_t size_bytes,
                                  const emx_carve_config* config, emx_region** region);
/* A region without an owner becomes this host's if it is opened to write, and counts against its quota. */
EMX_API emx_status emx_host_open(emx_host* host, const char* tag, bool writable, emx_region** region);
/* Owner only. Growing adds zeroed bytes, in place. Shrinking frees whole extents: EMX_E_BUSY while others
 * hold it. */
EMX_API emx_status emx_region_resize(emx_region* region, uint64_t size_bytes);
/* Lets go. The last holder's letting go frees the region, unless it is persistent. */
EMX_API void emx_region_close(emx_region* region);
/* Lets go, and a persistent region is no longer one: it is freed when the last holder has let go. Ends
 * `region` if it succeeds. EMX_E_PERMISSION: it is open here read-only. */
EMX_API emx_status emx_region_release(emx_region* region);

typedef struct emx_region_info {
    char tag[64];
    void* base; /* where this process has it mapped, contiguous; stays as long as the region is open here */
    uint64_t size_bytes;
    uint32_t writable;
    uint32_t epoch; /* of the host that holds it here */
} emx_region_info;

EMX_API emx_status emx_region_get_info(const emx_region* region, emx_region_info* info);
/* EMX_OK if this host may access the range now; EMX_E_FENCED, _POISONED, _PERMISSION or _OUT_OF_BOUNDS if
 * not. */
EMX_API emx_status emx_region_check_access(const emx_region* region, uint64_t offset, uint64_t size_bytes,
                                           bool write);

/* Checked before and after: a read that overlaps the host's fencing fails, and a write that does corrupts
 * nobody. */
EMX_API emx_status emx_region_read(emx_region* region, uint64_t offset, void* buffer, uint64_t size_bytes);
EMX_API emx_status emx_region_write(emx_region* region, uint64_t offset, const void* buffer,
                                    uint64_t size_bytes);
EMX_API emx_status emx_region_fill(emx_region* region, uint64_t offset, int value, uint64_t size_bytes);
/* Marks the 64-byte lines of a range as bad. Accesses to them fail from now on, in every host; their extents
 * are retired when the region lets them go. */
EMX_API emx_status emx_region_poison(emx_region* region, uint64_t offset, uint64_t size_bytes);

#ifdef __cplusplus
}
#endif
#endif
