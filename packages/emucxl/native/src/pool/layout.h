/* A pool's tables, as they lie in its file, and the only ways to change them.
 *
 *   header (4 KiB) | host records | region records | extent words | poison words | extents
 *
 * Everything that changes after creation is an atomic 64-bit word. A word of state packs all that has to change
 * at once:
 *
 *   host word     state:3 epoch:32 pid:22 machine:7             state, and who joins while its record isn't written yet
 *   region word   state:3 persistent:1 worker:6 epoch:16 gen:16 version:22   worker: the host at work on it
 *   extent word   state:2 poisoned:1 whole:1 clean:1 region:10 index:20 gen:16 version:13
 *   holder word   mode:2 epoch:32 gen:16        one per host and region: that host, in that epoch, has it open
 *   owner word    valid:1 slot:6 epoch:32 gen:16
 *   poison word   first line:40 lines:24        lines of 64 bytes from the first extent; 0: unused
 *
 * `gen` counts a region slot's uses, so that what belonged to an earlier region is never taken for the present one's.
 * `version` counts openings (regions) and claims (extents), so that a compare-and-swap of a host that slept for long
 * fails even if all else is as it was.
 */
#ifndef EMX_POOL_LAYOUT_H
#define EMX_POOL_LAYOUT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "emucxl/pool.h"
#include "prim/process.h"

#define POOL_MAGIC 0x6c6f6f706c78636dull /* "mcxlpool" */
enum {
    POOL_VERSION = 2,
    POOL_PAGE = 4096,
    POOL_LINE = 64,
    POOL_HOSTS = EMX_POOL_MAX_HOSTS,
    POOL_MAX_REGIONS = 1024,
    POOL_MAX_EXTENTS = 1 << 20,
    POOL_POISON_WORDS = 2048,
    TAG_WORDS = EMX_TAG_BYTES / 8,
};

typedef _Atomic uint64_t shared_word;

/* Written once. `checksum` is over all that is before it. */
typedef struct pool_header {
    uint64_t magic;
    uint32_t version, header_bytes;
    uint8_t uuid[16];
    uint64_t created_ns, file_bytes, extent_bytes, num_extents;
    uint32_t max_hosts, max_regions, max_poison, reserved;
    uint64_t hosts_offset, regions_offset, extents_offset, poison_offset, data_offset;
    uint64_t checksum;
} pool_header;

typedef struct host_record {
    shared_word word;
    shared_word heartbeat_ns, heartbeats; /* CLOCK_BOOTTIME of the host's machine; a count */
    shared_word lease_ns, quota_bytes;
    shared_word pid, start_time, boot_id[2], pid_namespace, time_namespace;
    shared_word name[TAG_WORDS];
    shared_word lock_inode; /* on which the host holds its slot's lock while it lives; 0: it holds none */
    shared_word unused[32 - 12 - TAG_WORDS];
} host_record;

typedef struct region_record {
    shared_word word, owner;
    shared_word size_bytes, max_bytes, sharing;
    shared_word tag[TAG_WORDS];
    shared_word unused[64 - 5 - TAG_WORDS];
    shared_word holders[POOL_HOSTS];
} region_record;

_Static_assert(sizeof(pool_header) <= POOL_PAGE, "the header is a page");
_Static_assert(sizeof(host_record) == 256 && sizeof(region_record) == 1024,
               "records have their published sizes");

/* ---- packing ------------------------------------------------------------------------------------------- */

#define POOL_FIELD(name, shift, width)                                                                      \
    enum { name##_SHIFT = (shift), name##_WIDTH = (width) };                                                \
    static inline uint64_t name(uint64_t word) { return word >> (shift) & ((UINT64_C(1) << (width)) - 1); } \
    static inline uint64_t with_##name(uint64_t word, uint64_t value) {                                     \
        const uint64_t mask = ((UINT64_C(1) << (width)) - 1) << (shift);                                    \
        return (word & ~mask) | (value << (shift) & mask);                                                  \
    }

enum host_state { HOST_FREE, HOST_JOINING, HOST_ACTIVE, HOST_FENCED, HOST_DRAINED };
POOL_FIELD(host_state, 0, 3)
POOL_FIELD(host_epoch, 3, 32)
POOL_FIELD(host_pid, 35, 22)
POOL_FIELD(host_machine, 57, 7)

enum region_state {
    REGION_FREE,
    REGION_NAMING,
    REGION_NAMED,
    REGION_FILLING,
    REGION_LIVE,
    REGION_RESIZING,
    REGION_DYING
};
POOL_FIELD(region_state, 0, 3)
POOL_FIELD(region_persistent, 3, 1)
POOL_FIELD(region_worker, 4, 6)
POOL_FIELD(region_epoch, 10, 16)
POOL_FIELD(region_gen, 26, 16)
POOL_FIELD(region_version, 42, 22)

enum extent_state { EXTENT_FREE, EXTENT_CLAIMED, EXTENT_READY, EXTENT_RETIRED };
POOL_FIELD(extent_state, 0, 2)
POOL_FIELD(extent_poisoned, 2, 1) /* lines of it are in the poison table, or all of it is bad: */
POOL_FIELD(extent_whole, 3, 1)
POOL_FIELD(extent_clean, 4, 1) /* free and zero: never handed out since creation */
POOL_FIELD(extent_region, 5, 10)
POOL_FIELD(extent_index, 15, 20)
POOL_FIELD(extent_gen, 35, 16)
POOL_FIELD(extent_version, 51, 13)

enum holder_mode { HOLDER_NONE, HOLDER_READS, HOLDER_WRITES };
POOL_FIELD(holder_mode, 0, 2)
POOL_FIELD(holder_epoch, 2, 32)
POOL_FIELD(holder_gen, 34, 16)

POOL_FIELD(owner_valid, 0, 1)
POOL_FIELD(owner_slot, 1, 6)
POOL_FIELD(owner_epoch, 7, 32)
POOL_FIELD(owner_gen, 39, 16)

POOL_FIELD(poison_line, 0, 40)
POOL_FIELD(poison_lines, 40, 24)

/* ---- changing ------------------------------------------------------------------------------------------ */

/* A test's build makes every store a step at which it may kill the process. */
#ifdef EMX_POOL_STEPS
void pool_step(void);
#else
static inline void pool_step(void) {}
#endif

static inline uint64_t shared_load(const shared_word* word) { return atomic_load(word); }

static inline void shared_store(shared_word* word, uint64_t value) {
    pool_step();
    atomic_store(word, value);
}

static inline bool shared_swap(shared_word* word, uint64_t expected, uint64_t desired) {
    pool_step();
    return atomic_compare_exchange_strong(word, &expected, desired);
}

#endif
